"""Prompts for measuring: drawn from an object's true mask and the mask so far, by the seed and the annotation's id.

So they are the same whatever the order, the batch or the number of processes; and those that look at no mask so far
are the same for every model.

Shapes:
    H, W  the photograph; a pixel is column x, row y
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

POINTS = 3
"""Points drawn for an object. A prompt of fewer points is the first of them."""


class Click(NamedTuple):
    """A point for the decoder."""

    x: int
    y: int
    positive: bool
    """Whether the pixel belongs to the object."""


class Centre(NamedTuple):
    """The pixel of a region that lies farthest inside."""

    x: int
    y: int
    distance: float
    """Pixels to the nearest one outside; 0 if there is no pixel to click, and x and y mean nothing."""


def uniform_points(mask: NDArray[np.bool_], *, seed: int, ann_id: int) -> NDArray[np.int64]:
    """Three pixels of `mask` (H, W), each as likely as any other, as integer x, y (3, 2) in the order drawn.

    They differ where the mask has three pixels. An empty mask has none to draw from.
    """
    pixels = np.flatnonzero(mask)
    assert len(pixels), "a prompt needs a mask with at least one pixel"
    rng = np.random.Generator(np.random.PCG64([seed, ann_id]))
    drawn = rng.choice(pixels, POINTS, replace=len(pixels) < POINTS)
    return np.stack([drawn % mask.shape[1], drawn // mask.shape[1]], axis=-1)


def centre_point(region: NDArray[np.bool_], *, clicked: ArrayLike = ()) -> Centre:
    """The pixel of `region` (H, W) farthest from its outside, of equals the first by row, then by column.

    Distance is Euclidean and exact, and beyond the image's border is outside (RITM's clicker). Pixels `clicked` (n, 2)
    before, each x, y, are not clicked again, but stay part of the region.
    """
    left, top, width, height = cv2.boundingRect(region.astype(np.uint8))
    inside = np.pad(region[top : top + height, left : left + width], 1).astype(np.uint8)  # no nearer outside is cut off
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    squared = np.rint(np.square(distance, dtype=np.float64))  # whole numbers: the roots of equals may differ by a bit
    x, y = np.array(clicked, dtype=np.int64).reshape(-1, 2).T
    squared[np.clip(y - top + 1, 0, height + 1), np.clip(x - left + 1, 0, width + 1)] = 0  # the rim is 0 already
    row, column = divmod(int(squared.argmax()), width + 2)
    return Centre(x=left + column - 1, y=top + row - 1, distance=math.sqrt(squared[row, column]))


def uniform_error_point(
    truth: NDArray[np.bool_], mask: NDArray[np.bool_], *, seed: int, ann_id: int, number: int
) -> Click | None:
    """A pixel where `mask` differs from `truth` (both H, W), each as likely as any other; None if they are equal.

    `number` counts the object's clicks from 0. The first looks at no mask, and must not be drawn here: NumPy's
    generator takes [seed, ann_id, 0] for [seed, ann_id], which is that of `uniform_points`.
    """
    assert number > 0, f"click {number} has no mask to correct"
    pixels = np.flatnonzero(truth != mask)
    if not len(pixels):
        return None
    rng = np.random.Generator(np.random.PCG64([seed, ann_id, number]))
    y, x = divmod(int(rng.choice(pixels)), truth.shape[1])
    return Click(x=x, y=y, positive=bool(truth[y, x]))


def centre_error_point(truth: NDArray[np.bool_], mask: NDArray[np.bool_], *, clicked: ArrayLike = ()) -> Click | None:
    """The centre of what `mask` lacks of `truth` or of what it has too much (H, W), whichever lies farther inside.

    Equals give a negative click (RITM's clicker). None if no error is left that was not `clicked` (n, 2), each x, y.
    """
    missed = centre_point(truth & ~mask, clicked=clicked)
    wrong = centre_point(mask & ~truth, clicked=clicked)
    positive = missed.distance > wrong.distance
    x, y, distance = missed if positive else wrong
    return Click(x=x, y=y, positive=positive) if distance else None


def corners(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """x, y, width, height as x0, y0, x1, y1."""
    x, y, width, height = box
    return x, y, x + width, y + height
