"""Named changes of a photograph, for a table of how well a model bears them; the truth moves along.

Shapes:
    H, W  the photograph
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Box = tuple[float, float, float, float]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Perturbation:
    """One change, of the pixels and of where objects are."""

    name: str
    image: Callable[[Pixels], Pixels]
    """The photograph (H, W, 3), changed; its size stays the same."""
    shift: int = 0
    """Pixels by which `image` moves what it shows, right and down."""

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """`mask` (H, W) moved along: what leaves the image is cut off, and no object enters it."""
        moved = np.zeros(mask.shape, dtype=np.bool_)
        inside = moved[self.shift :, self.shift :]
        inside[:] = mask[: inside.shape[0], : inside.shape[1]]
        return moved

    def box(self, box: Box) -> Box:
        """`box` x0, y0, x1, y1 moved along; it may reach beyond the image, whose size it does not know."""
        x0, y0, x1, y1 = box
        return x0 + self.shift, y0 + self.shift, x1 + self.shift, y1 + self.shift


def _same(pixels: Pixels) -> Pixels:
    return pixels


def _jpeg(pixels: Pixels, *, quality: int) -> Pixels:
    """`pixels` as they come back from a JPEG file of `quality`, with Pillow's usual settings."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
    return np.array(Image.open(file))


def _shifted(pixels: Pixels, *, by: int) -> Pixels:
    """`pixels` moved right and down; the rim that is uncovered repeats the first column and row."""
    rows, columns = (np.maximum(np.arange(length) - by, 0) for length in pixels.shape[:2])
    return pixels[rows][:, columns]


def _blurred(pixels: Pixels, *, radius: int) -> Pixels:
    """`pixels` after a Gaussian blur whose standard deviation is `radius` pixels."""
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def _dark(pixels: Pixels) -> Pixels:
    """A quarter of every value, rounded down: two bits fewer, as a photograph far too dark."""
    return pixels // 4


CLEAN = Perturbation("clean", _same)
"""No change."""


def perturbation_named(name: str) -> Perturbation:
    """The perturbation called `name`; `clean` is always the object CLEAN. ValueError lists the forms of names."""
    if name == "clean":
        return CLEAN
    if name == "dark":
        return Perturbation(name, _dark)
    if quality := re.fullmatch("jpeg([1-9]|[1-8][0-9]|9[0-5])", name):
        return Perturbation(name, partial(_jpeg, quality=int(quality[1])))
    if radius := re.fullmatch("blur([1-9][0-9]?)", name):
        return Perturbation(name, partial(_blurred, radius=int(radius[1])))
    if pixels := re.fullmatch("shift([1-9][0-9]{0,3})", name):
        by = int(pixels[1])
        return Perturbation(name, partial(_shifted, by=by), shift=by)
    raise ValueError(
        f"no perturbation named {name!r}; there are clean, dark, jpeg<quality from 1 to 95>, blur<radius from 1 to 99> "
        "and shift<pixels from 1 to 9999>, such as jpeg30, blur2 or shift8"
    )


def perturbations_named(text: Sequence[str]) -> list[Perturbation]:
    """The perturbations named in `text`, whose elements may be lists with commas, after `clean`.

    One that is named twice counts once: a second time would measure the same numbers again.
    """
    names = [name.strip() for element in text for name in element.split(",")]
    return [perturbation_named(name) for name in dict.fromkeys(["clean", *names])]
