"""Photographs in: whatever a file or an array holds becomes (H, W, 3) uint8 RGB, upright.

The one thing to know: colour is kept, transparency is dropped (a transparent pixel shows the colour
stored beneath it), and what cannot be read stops with one line instead of a black image.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
"""What Pillow's decoders raise on a file that is damaged or too large, or is no image."""


def read_image(path: str | Path) -> np.ndarray:
    """The photograph in `path`, (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Any format that Pillow reads, of several frames the first. Grey, palette and CMYK images become RGB; an
    alpha channel is dropped; integer grey of more than 8 bits is scaled by its bit depth (see `to_rgb`).
    Raises ValueError, one line naming the file, if it is missing, empty, truncated or no image.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a directory" if path.is_dir() else "does not exist"
        raise ValueError(f"image {path} {problem}; name an image file")
    if path.stat().st_size == 0:
        raise ValueError(f"image {path} is empty (0 bytes); copy or download it again")
    try:
        opened = Image.open(path)
        opened.load()
    except UnidentifiedImageError as error:
        raise ValueError(f"image {path} is in no format that Pillow reads; save it as PNG or JPEG") from error
    except UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"image {path} cannot be read ({reason}); copy it again or save it as PNG or JPEG") from error
    try:
        with opened:
            return to_rgb(opened)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def to_rgb(image: np.ndarray | Image.Image) -> np.ndarray:
    """`image` as (H, W, 3) uint8 RGB; an array that is so already comes back as it is, not copied.

    Takes a PIL image (EXIF orientation applied) or a uint8 array: grey (H, W) or (H, W, 1), RGB (H, W, 3),
    RGBA (H, W, 4). Alpha is dropped. A PIL image of integer grey above 8 bits is divided by the smallest whole
    number of bits that holds its brightest pixel, so 10, 12 and 16 bit pictures all keep their contrast.
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
        raise ValueError(f"image of {image.width} x {image.height} pixels has none; check where it came from")
    image = _upright(image)
    if image.mode == "F":
        raise ValueError("image of floating-point pixels has no agreed white; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        return to_rgb(_eight_bits(np.asarray(image)))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about transparent palettes
    return np.array(image.convert("RGB"))  # a copy: an array over Pillow's memory is read-only


def _upright(image: Image.Image) -> Image.Image:
    """`image` turned by its EXIF orientation; unreadable EXIF data says nothing about orientation."""
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return image


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Integer `grey` (H, W) as uint8: its brightest value decides whether it holds 8, 9, ... 16 or more bits."""
    if grey.min() < 0:
        raise ValueError(f"image of signed grey, lowest pixel {grey.min()}, has no agreed black; save it with 8 bits")
    bits = max(8, int(grey.max()).bit_length())
    return (grey.astype(np.int64) >> (bits - 8)).astype(np.uint8)


def _channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3, 4)
