"""Photographs by kind: whatever depth, order, turn and container, the 8-bit picture comes back, or one line."""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from sam_blvit.data.images import read_image

pytestmark = pytest.mark.property

PNG_COLOUR_TYPE = {1: 0, 3: 2, 2: 4, 4: 6}
"""By channels."""
TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}
"""The upright picture of a stored one, by EXIF orientation (EXIF 2.3, 4.6.4)."""


@dataclass(frozen=True)
class Picture:
    """Samples as a file stores them, and the picture they are of."""

    stored: np.ndarray
    """(H, W, C) uint8 or uint16, of which the brightest colour has `bits` bits."""
    bits: int
    orientation: int
    alpha: bool

    @property
    def upright(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        colours = self.stored[:, :, :-1] if self.alpha else self.stored
        eight = (colours >> (self.bits - 8)).astype(np.uint8)
        return TURNED[self.orientation](np.broadcast_to(eight, (*eight.shape[:2], 3)))


@st.composite
def pictures(draw: DrawFn, *, depths: Sequence[int] = (8, 16), channels: Sequence[int] = (1, 2, 3, 4)) -> Picture:
    height, width, count = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.sampled_from(channels))
    depth = draw(st.sampled_from(depths))
    bits = 8 if depth == 8 else draw(st.integers(8, 16))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    samples = random.integers(0, 1 << bits, (height, width, count))
    samples[random.integers(height), random.integers(width), 0] = (1 << bits) - 1
    if alpha := count in (2, 4):  # opaque, unseen, or between: in its own depth or that of the colours
        white = draw(st.sampled_from([(1 << bits) - 1, (1 << depth) - 1]))
        samples[:, :, -1] = random.integers(0, white + 1, (height, width)) if draw(st.booleans()) else white
    stored = samples.astype(np.uint8 if depth == 8 else np.uint16)
    return Picture(stored, bits, draw(st.integers(1, 8)), alpha)


def png(picture: Picture, *, significant: bool) -> bytes:
    """A PNG, written by its specification; with sBIT if `significant`."""
    height, width, channels = picture.stored.shape
    depth = picture.stored.itemsize * 8
    rows = picture.stored.astype(picture.stored.dtype.newbyteorder(">"))
    header = struct.pack(">IIBBBBB", width, height, depth, PNG_COLOUR_TYPE[channels], 0, 0, 0)
    chunks = [(b"IHDR", header)]
    if significant:
        chunks.append((b"sBIT", bytes([picture.bits] * channels)))
    chunks.append((b"eXIf", exif(picture.orientation)))
    chunks.append((b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))))
    chunks.append((b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def exif(orientation: int) -> bytes:
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)


def read(content: bytes, suffix: str) -> np.ndarray:
    """What `read_image` makes of a file; a refusal has to be one line that names it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"photo.{suffix}"
        path.write_bytes(content)
        try:
            return read_image(path)
        except ValueError as error:
            line = str(error)
            if "\n" in line or str(path) not in line:
                pytest.fail(f"not one line that names the file: {line!r}")
            raise


def assert_same_picture(found: np.ndarray, expected: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (np.uint8, expected.shape)
    assert np.abs(found.astype(int) - expected).max() <= 1


@given(pictures(), st.booleans())
def test_png_of_any_depth_is_the_picture(picture: Picture, significant: bool) -> None:
    assert_same_picture(read(png(picture, significant=significant), "png"), picture.upright)


@st.composite
def tiffs(draw: DrawFn) -> tuple[Picture, dict]:
    """A picture and how tifffile is to write it."""
    picture = draw(pictures(channels=(1, 3, 4)))
    options = {
        "byteorder": draw(st.sampled_from("<>")),
        "compression": draw(st.sampled_from([None, "zlib"])),
        "tile": draw(st.sampled_from([None, (16, 16)])),
        "photometric": "rgb",
    }
    if picture.stored.shape[2] == 1:
        options["photometric"] = draw(st.sampled_from(["minisblack", "miniswhite"]))
    else:
        options["planarconfig"] = draw(st.sampled_from(["contig", "separate"]))
    return picture, options


def tiff(picture: Picture, options: dict) -> bytes:
    stored = picture.stored
    if options["photometric"] == "miniswhite":
        stored = np.array((1 << picture.bits) - 1, stored.dtype) - stored
        stored.flat[0] = (1 << picture.bits) - 1  # black: the bits that are used show in it
        picture.stored.flat[0] = 0
    if stored.shape[2] == 1:
        stored = stored[:, :, 0]
    elif options["planarconfig"] == "separate":
        stored = np.ascontiguousarray(stored.transpose(2, 0, 1))
    extra = ["unassalpha"] if picture.alpha else None
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "photo.tif"
        orientation = [(274, 3, 1, picture.orientation, True)]
        tifffile.imwrite(path, stored, extratags=orientation, extrasamples=extra, metadata=None, **options)
        return path.read_bytes()


@given(tiffs())
def test_tiff_of_any_kind_is_the_picture_or_refused(case: tuple[Picture, dict]) -> None:
    picture, options = case
    content = tiff(picture, options)
    try:
        found = read(content, "tif")
    except ValueError:
        deep = picture.stored.itemsize == 2
        raw_or_dark = options["compression"] is None or picture.bits < 16
        planes = options.get("planarconfig") == "separate" and raw_or_dark
        big_endian_negative = options["photometric"] == "miniswhite" and options["byteorder"] == ">"
        assert deep and (planes or big_endian_negative), "a kind that Pillow or OpenCV reads"  # noqa: PT018
    else:
        assert_same_picture(found, picture.upright)


@given(pictures(channels=(1, 3)), st.booleans())
def test_ppm_with_white_at_65535_is_the_picture(picture: Picture, plain: bool) -> None:
    white = 255 if picture.stored.itemsize == 1 else 65535
    expected = Picture(picture.stored, picture.bits, 1, alpha=False).upright
    assert_same_picture(read(ppm(picture.stored, white, plain=plain), "ppm"), expected)


@given(pictures(depths=[16], channels=(1, 3)), st.booleans(), st.data())
def test_ppm_is_scaled_by_the_white_that_it_declares(picture: Picture, plain: bool, data: st.DataObject) -> None:
    white = data.draw(st.integers(max(1, min(int(picture.stored.max()), 65534)), 65534))
    stored = np.minimum(picture.stored, white)
    expected = np.broadcast_to(np.rint(stored / white * 255), (*stored.shape[:2], 3))
    assert_same_picture(read(ppm(stored, white, plain=plain), "ppm"), expected)


def ppm(stored: np.ndarray, white: int, *, plain: bool) -> bytes:
    """A PGM or PPM, written by its specification: plain is decimal, else the high byte comes first."""
    height, width, channels = stored.shape
    kind = {(1, True): 2, (3, True): 3, (1, False): 5, (3, False): 6}[channels, plain]
    header = f"P{kind}\n{width} {height}\n{white}\n".encode()
    if plain:
        return header + b"\n".join(str(sample).encode() for sample in stored.ravel().tolist()) + b"\n"
    return header + stored.astype("u1" if white < 256 else ">u2").tobytes()


@given(st.integers(1, 8), st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_jpeg_is_turned_upright(orientation: int, height: int, width: int, grey: int) -> None:
    stored = np.full((height, width, 3), grey, np.uint8)
    stored[: height // 2] //= 2
    _, written = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, 100])
    content = written.tobytes()
    marker = b"Exif\0\0" + exif(orientation)
    content = content[:2] + b"\xff\xe1" + struct.pack(">H", len(marker) + 2) + marker + content[2:]
    decoded = cv2.imdecode(written, cv2.IMREAD_COLOR)
    assert_same_picture(read(content, "jpg"), TURNED[orientation](decoded))


@given(pictures(depths=[8], channels=[3]), st.booleans())
def test_the_palette_of_a_tiff_may_hold_8_or_16_bits(picture: Picture, wide: bool) -> None:
    height, width, _ = picture.stored.shape
    colours = picture.stored.reshape(-1, 3)
    palette = np.zeros((256, 3), np.uint16)
    palette[: len(colours)] = colours.astype(np.uint16) * (257 if wide else 1)
    stored = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "photo.tif"
        tifffile.imwrite(path, stored, photometric="palette", colormap=palette.T, metadata=None)
        content = path.read_bytes()
    assert_same_picture(read(content, "tif"), picture.stored)


@given(pictures(channels=[1]), st.sampled_from([1, 2, 4]), st.booleans())
def test_tiff_of_few_bits_is_the_picture(picture: Picture, bits: int, negative: bool) -> None:
    grey = picture.upright[:, :, 0] >> (8 - bits)
    white = (1 << bits) - 1
    found = read(tiff_of_few_bits(white - grey if negative else grey, bits, photometric=0 if negative else 1), "tif")
    assert_same_picture(found, np.repeat(grey[:, :, None] * np.uint8(255 // white), 3, axis=2))


def tiff_of_few_bits(grey: np.ndarray, bits: int, *, photometric: int) -> bytes:
    """A TIFF of grey (H, W) with `bits` a pixel, written by its specification."""
    height, width = grey.shape
    planes = (grey[:, :, None] >> np.arange(bits)[::-1]) & 1
    data = np.packbits(planes.reshape(height, -1), axis=1).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    padding = b"\0" * (len(data) % 2)
    start = 8 + len(data) + len(padding)
    return struct.pack("<2sHI", b"II", 42, start) + data + padding + struct.pack("<H", len(tags)) + entries + bytes(4)
