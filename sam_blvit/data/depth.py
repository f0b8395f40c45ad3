"""Samples of more than 8 bits: what a file says about them, and colour that Pillow would cut to its high bytes.

The one thing to know: 10, 12 or 14 bits are stored in 16, so their high bytes alone are a nearly black image.
Colour whose brightest high byte is 128 or more uses all 16 bits, and the high bytes are its 8 bits; darker colour
is read again by OpenCV, which keeps all 16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

CODESTREAM = b"\xff\x4f\xff\x51"
"""First markers of a JPEG 2000 codestream; its precision stands PRECISION_AT bytes further on."""
PRECISION_AT = 42
COMPRESSION, PHOTOMETRIC, BITS, PLANAR, COLOUR_MAP, EXTRA_SAMPLES, SAMPLE_FORMAT = 259, 262, 258, 284, 320, 338, 339
"""TIFF tags."""


class UnsuitableError(ValueError):
    """An image that is whole, but whose pixels have no 8-bit RGB that all would agree on, or none that is known."""


@dataclass(frozen=True)
class Samples:
    """What a file says about its samples and Pillow does not keep."""

    file: bytes | None = None
    """The whole file, if it holds colour of more than 8 bits a channel, of which Pillow keeps 8."""
    container: str | None = None
    """Pillow's name of the file's format."""
    bits: int | None = None
    """Bits of white in integer grey as Pillow returns it, or in deep colour as OpenCV does, where the file says so."""
    white_is_zero: bool = False
    """Whether 0 is white in them."""
    colour_map: Sequence[int] = ()
    """All reds, greens and blues of a TIFF's palette, if they hold 8 bits of their 16."""
    associated_alpha: bool = False
    """Whether the stored colour is multiplied by alpha."""
    opencv_reads_it: bool = True
    """Whether OpenCV returns the colours in their order, and as they are."""


def samples_of(image: Image.Image) -> Samples:
    """What the file of `image` says; call it before `image` is loaded, which closes the file.

    Raises UnsuitableError for samples that Pillow misreads.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    bits, planar = tags.get(BITS, (1,)), tags.get(PLANAR) == 2
    deep_grey = image.mode.startswith("I")
    if image.mode == "L" and bits == (8,) and tags.get(SAMPLE_FORMAT) == (2,):
        raise UnsuitableError("image of signed 8-bit grey has no agreed black; save it with unsigned pixels")
    if planar and tags.get(COMPRESSION, 1) == 1 and len(bits) > 1 and max(bits) > 8:
        raise UnsuitableError(f"image of {max(bits)}-bit planes cannot be read; save it interleaved or as PNG")
    file = None if deep_grey or not _is_deep(image) else _whole_file(image)
    colour_map = tags.get(COLOUR_MAP, ())
    return Samples(
        file=file,
        container=image.format,
        bits=_declared_bits(image, bits) if deep_grey else _declared_precision(image),
        white_is_zero=deep_grey and tags.get(PHOTOMETRIC) == 0,
        colour_map=colour_map if 0 < max(colour_map, default=0) < 256 else (),
        associated_alpha=1 in tags.get(EXTRA_SAMPLES, ()),
        opencv_reads_it=not tags or (tags.get(PHOTOMETRIC) == 2 and not planar),
    )


def deep_colour(image: Image.Image, samples: Samples) -> np.ndarray | None:
    """The colour (H, W, 3) uint8 RGB of upright `image`, if its high bytes alone are too dark to be right.

    All channels are scaled alike, by `eight_bits`. Of JPEG 2000 the high bytes are never right: Pillow rounds white up
    to 256, which is 0. Raises UnsuitableError if neither library reads the low bytes.
    """
    if samples.file is None or (samples.container != "JPEG2000" and _brightest(image, samples) >= 128):
        return None
    colours = _by_opencv(samples.file, tiff=samples.container == "TIFF") if samples.opencv_reads_it else None
    high = np.asarray(image.convert("RGB"))
    if samples.associated_alpha or colours is None or not _agree(colours, high, bits=samples.bits or 16):
        raise UnsuitableError(f"image of 16-bit {image.mode} may use fewer bits, which are lost; save it as 8-bit RGB")
    return eight_bits(colours, samples.bits)


def eight_bits(samples: np.ndarray, bits: int | None = None) -> np.ndarray:
    """Integer `samples` of any shape as uint8; without `bits`, the brightest decides whether they hold 8, 9, ... bits.

    Raises UnsuitableError for negative samples.
    """
    if samples.min() < 0:
        raise UnsuitableError(
            f"image of signed or 32-bit integers, lowest {samples.min()}, has no agreed black; save it with 8 bits"
        )
    bits = bits or max(8, int(samples.max()).bit_length())
    return (samples >> np.asarray(bits - 8, dtype=samples.dtype)).astype(np.uint8)


def _is_deep(image: Image.Image) -> bool:
    """Whether the file of `image`, not loaded yet, holds 16 bits where Pillow returns 8."""
    if not (tiles := getattr(image, "tile", None)):
        return False
    codec, arguments = tiles[0][0], tiles[0][3]
    if codec in ("ppm", "ppm_plain"):
        return arguments[-1] == 65535
    if codec == "jpeg2k":
        return _jpeg2000_precision(_whole_file(image)) > 8
    return codec == "SGI16" or ";16" in str(arguments)


def _declared_bits(image: Image.Image, tiff_bits: tuple[int, ...]) -> int | None:
    """Bits of white in deep grey: Pillow scales what a PGM or JPEG 2000 file declares to 16."""
    if image.format == "TIFF":
        return tiff_bits[0] if 8 < tiff_bits[0] < 16 else None
    if not (tiles := getattr(image, "tile", None)):
        return None
    codec, arguments = tiles[0][0], tiles[0][3]
    scaled = codec in ("ppm", "ppm_plain") and arguments[-1] < 65535
    return 16 if scaled or _declared_precision(image) else None


def _declared_precision(image: Image.Image) -> int | None:
    """Bits of white in colour that a JPEG 2000 file says to hold 9 to 15 bits."""
    if image.format != "JPEG2000" or not getattr(image, "tile", None):
        return None
    precision = _jpeg2000_precision(_whole_file(image))
    return precision if 8 < precision < 16 else None


def _whole_file(image: Any) -> bytes:
    place = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(place)
    return content


def _jpeg2000_precision(file: bytes) -> int:
    start = file.find(CODESTREAM)
    return (file[start + PRECISION_AT] & 127) + 1


def _brightest(image: Image.Image, samples: Samples) -> int:
    """The highest high byte of the colours; alpha, often opaque at 65535 beside 12 bits of colour, does not count.

    Of colour that was divided by its alpha, alpha alone tells.
    """
    stored = np.asarray(image)
    if image.mode == "RGBA":
        stored = stored[:, :, 3] if samples.associated_alpha else stored[:, :, :3]
    return int(stored.max())


def _by_opencv(file: bytes, *, tiff: bool) -> np.ndarray | None:
    """Upright RGB of 16 bits (H, W, 3), if OpenCV reads that from `file`."""
    # OpenCV turns TIFF by its orientation always, and with IMREAD_COLOR twice
    flags = cv2.IMREAD_UNCHANGED if tiff else cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    try:
        read = cv2.imdecode(np.frombuffer(file, np.uint8), flags)
    except cv2.error:
        return None
    if read is None or read.dtype != np.uint16 or read.ndim != 3:
        return None
    return read[:, :, 2::-1]


def _agree(colours: np.ndarray, high: np.ndarray, *, bits: int) -> bool:
    """Whether `high` are the first 8 of the `bits` of `colours`; Pillow rounds some, of JPEG 2000 to 256, kept as 0."""
    if colours.shape != high.shape:
        return False
    difference = (colours >> (bits - 8)).astype(np.uint8) - high  # modulo 256
    return bool(np.isin(difference, (0, 1, 255)).all())
