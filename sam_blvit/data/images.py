"""Photographs in: whatever a file or an array holds becomes (H, W, 3) uint8 RGB, upright.

The one thing to know: colour is kept, transparency is dropped (a transparent pixel shows the colour
stored beneath it), and what cannot be read stops with one line instead of a black image.
"""

from __future__ import annotations

import math
import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from sam_blvit.data.depth import Samples, UnsuitableError, deep_colour, eight_bits, samples_of

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
"""What Pillow's decoders raise on a file that is damaged or too large, or is no image."""
BAD_EXIF = (SyntaxError, ValueError, TypeError, KeyError, struct.error)
"""What Pillow raises on EXIF data that it cannot parse."""
PHOTOGRAPH_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
"""Suffixes of photographs in a directory."""
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def read_image(path: str | Path) -> np.ndarray:
    """The photograph in `path`, (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Any format that Pillow reads, of several frames the first. Grey, palette and CMYK images become RGB; an
    alpha channel is dropped; integers of more than 8 bits are scaled by their bit depth (see `to_rgb`).
    Raises ValueError, one line naming the file, if it is missing, empty, truncated, too large or no image.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a directory" if path.is_dir() else "does not exist"
        raise ValueError(f"image {path} {problem}; name an image file")
    if path.stat().st_size == 0:
        raise ValueError(f"image {path} is empty (0 bytes); copy or download it again")
    try:
        opened = open_image(path)
        with opened:
            return to_rgb(opened)
    except UnsuitableError as error:
        raise ValueError(f"{path}: {error}") from error
    except UNREADABLE as error:
        raise ValueError(f"image {path} {why_unreadable(error)}") from error


def open_image(file: str | Path | BinaryIO) -> Image.Image:
    """As `PIL.Image.open`, without its warning about images of more than 89 megapixels: they are read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file)


def why_unreadable(error: Exception) -> str:
    """What is wrong with an image that Pillow raised `error` on, and what to do; follows the image's name."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, UnidentifiedImageError):  # names bytes by their address
        return "is in no format that Pillow reads; save it as PNG or JPEG"
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large ({reason.split(', could be')[0]}); shrink it"
    return f"cannot be read ({reason}); copy it again or save it as PNG or JPEG"


def size_mismatch(found: tuple[int, ...], annotated: tuple[int, ...], file: str | Path | BinaryIO) -> str:
    """How the size `found` (H, W) of the upright image in `file` differs from the `annotated` one, why, and what to do.

    Follows the image's name.
    """
    line = f"is {found[1]} x {found[0]} pixels, its annotations are for {annotated[1]} x {annotated[0]}"
    if found != annotated[::-1]:
        return f"{line}; use the dataset's original files"
    if (orientation := _orientation(file)) in SIDEWAYS:
        return f"{line}, as before its EXIF orientation {orientation} turns it; annotate it upright, or drop its EXIF"
    return f"{line}; use the dataset's original files, as width and height are swapped (or the file was turned)"


def to_rgb(image: np.ndarray | Image.Image) -> np.ndarray:
    """`image` as (H, W, 3) uint8 RGB; an array that is so already comes back as it is, not copied.

    Takes a PIL image (EXIF orientation applied) or a uint8 array: grey (H, W) or (H, W, 1), RGB (H, W, 3),
    RGBA (H, W, 4). Alpha is dropped. A PIL image of integers above 8 bits is divided by the smallest whole number of
    bits that holds its brightest sample, or by what its file declares, so 10, 12 and 16 bit pictures all keep their
    contrast. Pass one of 16-bit colour as `PIL.Image.open` returns it: once loaded, Pillow has cut it to 8 bits.
    Raises ValueError naming the shape or dtype and what to do about it.
    """
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image is a {type(image).__name__}; pass a NumPy uint8 array or a PIL image")
    if image.dtype != np.uint8:
        raise ValueError(
            f"image of dtype {image.dtype}, shape {image.shape}: uint8 from 0 to 255 is expected; scale it to that "
            "range and convert with .astype(numpy.uint8)"
        )
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        hint = "; move the channels last with image.transpose(1, 2, 0)" if _channels_first(image.shape) else ""
        raise ValueError(f"image of shape {image.shape}: (H, W) or (H, W, 1, 3 or 4 channels) is expected{hint}")
    if image.size == 0:
        raise ValueError(f"image of shape {image.shape} has no pixels; check the crop or the file it came from")
    if image.ndim == 2:
        image = image[:, :, None]
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[:, :, :3]


def _from_pil(image: Image.Image) -> np.ndarray:
    if 0 in image.size:
        raise UnsuitableError(f"image of {image.width} x {image.height} pixels has none; check where it came from")
    samples = samples_of(image)
    _load(image)
    if image.mode == "F":
        raise UnsuitableError("image of floating-point pixels has no agreed white; save it with 8 or 16 bits a channel")
    image = _upright(image)
    if image.mode.startswith("I"):
        grey = to_rgb(eight_bits(np.asarray(image), samples.bits))
        return 255 - grey if samples.white_is_zero else grey
    deep = deep_colour(image, samples)
    return _rgb(image, samples) if deep is None else deep


def _load(image: Image.Image) -> None:
    """Decode `image`; of a large one Pillow may warn here too.

    Pillow maps an uncompressed TIFF into memory by its upright size, which scrambles one that is stored sideways. An
    image without a file name is read instead.
    """
    if isinstance(image, TiffImageFile):
        name, image.filename = image.filename, ""
        try:
            _decode(image)
        finally:
            image.filename = name
    else:
        _decode(image)


def _decode(image: Image.Image) -> None:
    if image.width * image.height <= (Image.MAX_IMAGE_PIXELS or math.inf):
        image.load()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image.load()


def _rgb(image: Image.Image, samples: Samples) -> np.ndarray:
    if samples.colour_map:
        image = image.copy()
        image.putpalette(np.reshape(samples.colour_map, (3, -1)).T.astype(np.uint8).tobytes())
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about transparent palettes
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow converts it to
    return np.array(image.convert("RGB"))  # a copy: an array over Pillow's memory is read-only


def _orientation(file: str | Path | BinaryIO) -> int:
    """The EXIF orientation of an image, 1 to 8; 1 if there is none that can be read."""
    with open_image(file) as image:
        try:
            return image.getexif().get(ExifTags.Base.Orientation, 1)
        except BAD_EXIF:
            return 1


def _upright(image: Image.Image) -> Image.Image:
    """`image` turned by its EXIF orientation; unreadable EXIF data says nothing about orientation."""
    try:
        return ImageOps.exif_transpose(image)
    except BAD_EXIF:
        return image


def _channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3, 4)
