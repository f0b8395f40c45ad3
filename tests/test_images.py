"""Any photograph becomes upright RGB, and anything else one clear line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam_blvit.data.images import read_image, to_rgb

ORIENTATION = 0x0112
"""EXIF tag."""


@pytest.fixture
def colours() -> np.ndarray:
    """(5, 7, 3) with no two rows, columns or channels alike."""
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (2, lambda upright: upright[:, ::-1]),
        (3, lambda upright: upright[::-1, ::-1]),
        (6, lambda upright: np.rot90(upright)),
        (8, lambda upright: np.rot90(upright, -1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, colours: np.ndarray, orientation: int, stored) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(stored(colours))).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), colours)
    with Image.open(path) as image:
        np.testing.assert_array_equal(to_rgb(image), colours)


def test_unreadable_exif_leaves_the_photograph_as_stored(tmp_path: Path, colours: np.ndarray) -> None:
    path = tmp_path / "odd.png"
    Image.fromarray(colours).save(path, exif=b"Exif\x00\x00rubbish!")
    np.testing.assert_array_equal(read_image(path), colours)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm"])
def test_any_format_is_read(tmp_path: Path, colours: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(colours).save(path, lossless=True)
    np.testing.assert_array_equal(read_image(path), colours)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_fills_three_channels(tmp_path: Path, colours: np.ndarray, mode: str) -> None:
    grey = colours[:, :, 0]
    image = Image.fromarray(grey)
    image.convert(mode).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, axis=-1))


def test_alpha_is_dropped(tmp_path: Path, colours: np.ndarray) -> None:
    half_seen = np.dstack([colours, np.arange(35, dtype=np.uint8).reshape(5, 7)])
    Image.fromarray(half_seen).save(tmp_path / "seen.png")
    np.testing.assert_array_equal(read_image(tmp_path / "seen.png"), colours)


@pytest.mark.filterwarnings("error")
def test_a_transparent_palette_is_read(tmp_path: Path, colours: np.ndarray) -> None:
    palette = Image.fromarray(colours).quantize(colors=64)
    expected = np.asarray(palette.convert("RGB"))
    palette.save(tmp_path / "palette.png", transparency=bytes(range(64)))
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), expected)


@pytest.mark.parametrize(("brightest", "shift"), [(65535, 8), (4095, 4), (1000, 2), (200, 0)])
def test_deep_grey_is_scaled_by_its_bit_depth(tmp_path: Path, brightest: int, shift: int) -> None:
    deep = np.linspace(0, brightest, 35).astype(np.uint16).reshape(5, 7)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png")[:, :, 1], deep >> shift)


def test_an_image_that_was_read_can_be_written_to(tmp_path: Path, colours: np.ndarray) -> None:
    Image.fromarray(colours).save(tmp_path / "photo.png")
    assert read_image(tmp_path / "photo.png").flags.writeable


def _truncated(path: Path) -> None:
    photograph = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(photograph, "JPEG")
    path.write_bytes(photograph.getvalue()[:1500])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("a note"), "no format"),
        (_truncated, "truncated"),
        (lambda path: Image.fromarray(np.ones((4, 4), np.float32)).save(path, "TIFF"), "floating-point"),
    ],
)
def test_what_is_no_photograph_stops_with_one_line_naming_the_file(tmp_path: Path, make, reason: str) -> None:
    path = tmp_path / "photo.jpg"
    make(path)
    with pytest.raises(ValueError, match=reason) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_png_stops_too(tmp_path: Path, colours: np.ndarray) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(np.tile(colours, (20, 20, 1))).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cannot be read"):
        read_image(path)


def test_every_array_layout_becomes_rgb(colours: np.ndarray) -> None:
    grey = colours[:, :, 0]
    grey_rgb = np.stack([grey] * 3, axis=-1)
    np.testing.assert_array_equal(to_rgb(grey), grey_rgb)
    np.testing.assert_array_equal(to_rgb(grey[:, :, None]), grey_rgb)
    np.testing.assert_array_equal(to_rgb(np.dstack([colours, grey])), colours)
    assert to_rgb(colours) is colours or np.shares_memory(to_rgb(colours), colours)


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (np.zeros((4, 5, 3), np.float32), "float32.*uint8"),
        (np.zeros((4, 5), np.uint16), "uint16.*uint8"),
        (np.zeros((4, 5), bool), "bool.*uint8"),
        (np.zeros((3, 40, 50), np.uint8), r"\(3, 40, 50\).*channels last"),
        (np.zeros((4, 5, 2), np.uint8), r"\(4, 5, 2\)"),
        (np.zeros((1, 4, 5, 3), np.uint8), r"\(1, 4, 5, 3\)"),
        (np.zeros(7, np.uint8), r"\(7,\)"),
        (np.zeros((0, 5, 3), np.uint8), r"\(0, 5, 3\) has no pixels"),
        (np.zeros((4, 0), np.uint8), r"\(4, 0\) has no pixels"),
        (Image.new("RGB", (0, 3)), "0 x 3"),
        ("photo.jpg", "str"),
        ([[1, 2]], "list"),
    ],
)
def test_other_images_are_refused_by_name(image: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        to_rgb(image)  # type: ignore[arg-type]
