"""Any photograph becomes upright RGB, and anything else one clear line."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from sam_blvit.data.images import read_image, size_mismatch, to_rgb

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


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_an_uncompressed_tiff_is_turned_upright(
    tmp_path: Path, colours: np.ndarray, mode: str, orientation: int
) -> None:
    path = tmp_path / "turned.tif"
    upright = Image.fromarray(colours).convert(mode)
    stored = np.rot90(np.asarray(upright), int(orientation == 6))
    tags = [(ORIENTATION, 3, 1, orientation, True)]
    tifffile.imwrite(path, np.ascontiguousarray(stored), metadata=None, extratags=tags)
    expected = to_rgb(np.asarray(upright))
    np.testing.assert_array_equal(read_image(path), expected)
    with Image.open(path) as image:
        np.testing.assert_array_equal(to_rgb(image), expected)
        assert image.filename == str(path)


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


@pytest.mark.parametrize("suffix", ["png", "tiff", "jp2", "ppm"])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_colour_is_scaled_as_grey_is(tmp_path: Path, suffix: str, bits: int) -> None:
    colours = np.zeros((64, 96, 3), np.uint16)
    colours[:, 32:64] = (1 << bits) // np.array([4, 3, 2])
    colours[:, 64:] = (1 << bits) - 1
    path = tmp_path / f"deep.{suffix}"
    cv2.imwrite(str(path), colours[:, :, ::-1], [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])
    expected = (colours >> (bits - 8)).astype(int)
    assert np.abs(read_image(path) - expected).max() <= 1
    with Image.open(path) as image:
        assert np.abs(to_rgb(image) - expected).max() <= 1


def test_tiff_in_which_0_is_white_is_not_inverted(tmp_path: Path) -> None:
    stored = np.zeros((4, 6), np.uint16)
    stored[:, :2] = 65535
    tifffile.imwrite(tmp_path / "white.tif", stored, photometric="miniswhite")
    found = read_image(tmp_path / "white.tif")
    assert (found[:, :2] == 0).all()
    assert (found[:, 2:] == 255).all()


@pytest.mark.parametrize(
    ("samples", "options", "reason"),
    [
        (np.ones((2, 2), np.int8), {}, "signed 8-bit"),
        (np.full((2, 2), 2**31, np.uint32), {}, "signed or 32-bit"),
        (np.ones((3, 2, 2), np.uint16), {"photometric": "rgb", "planarconfig": "separate"}, "16-bit planes"),
        (np.ones((2, 2, 4), np.uint16), {"photometric": "separated"}, "16-bit CMYK"),
        (np.ones((2, 2, 4), np.uint16), {"photometric": "rgb", "extrasamples": ["assocalpha"]}, "16-bit RGBA"),
    ],
)
def test_tiff_that_cannot_be_read_rightly_is_refused(
    tmp_path: Path, samples: np.ndarray, options: dict, reason: str, refused
) -> None:
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, samples, metadata=None, **options)
    with refused(ValueError, f"odd.tif: image of {reason}.*; save it"):
        read_image(path)


def test_grey_under_associated_alpha_is_read(tmp_path: Path) -> None:
    premultiplied = np.array([[[50, 255], [40, 128]]], np.uint8)
    options = {"photometric": "minisblack", "extrasamples": ["assocalpha"], "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "grey.tif", premultiplied, metadata=None, **options)
    assert np.abs(read_image(tmp_path / "grey.tif") - np.array([[[50], [80]]])).max() <= 1


def _black_png(path: Path, width: int, height: int) -> None:
    """One bit a pixel; the rows of a very large one are left out."""
    rows = bytes(height * (1 + (width + 7) // 8)) if width * height < 1e8 else b""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0),
        b"IDAT": zlib.compress(rows, 1),
        b"IEND": b"",
    }
    written = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks.items():
        written += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(written)


def test_a_photograph_that_is_too_large_is_to_be_shrunk(tmp_path: Path, refused) -> None:
    _black_png(tmp_path / "vast.png", 30_000, 30_000)
    with refused(ValueError, r"vast\.png is too large .*900000000 pixels.*; shrink it$") as error:
        read_image(tmp_path / "vast.png")
    assert "bomb" not in str(error.value)


def test_a_large_photograph_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    _black_png(tmp_path / "large.png", 40, 30)
    Image.new("L", (40, 30)).save(tmp_path / "large.tif")  # of TIFF, Pillow warns once more when it decodes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("large.png", "large.tif"):
            assert read_image(tmp_path / name).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("annotated", "orientation", "cause"),
    [
        ((50, 70), 1, "is 5 x 7 pixels, its annotations are for 70 x 50; use the dataset's original files$"),
        ((5, 7), 1, "its annotations are for 7 x 5; use the dataset's original files, as width and height are swapped"),
        ((5, 7), 6, "as before its EXIF orientation 6 turns it"),
        ((50, 70), 6, "original files$"),
    ],
)
def test_a_size_mismatch_names_its_cause(
    colours: np.ndarray, annotated: tuple[int, int], orientation: int, cause: str
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(colours).save(file, "PNG", exif=exif)
    assert re.search(cause, size_mismatch((7, 5), annotated, file))
