"""Prompts for measuring: drawn from an object's true mask by the seed and the annotation's id alone.

So they are the same whatever the order, the batch, the number of processes or the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

POINTS = 3
"""Points drawn for an object. A prompt of fewer points is the first of them."""


def uniform_points(mask: NDArray[np.bool_], *, seed: int, ann_id: int) -> NDArray[np.int64]:
    """Three pixels of `mask` (H, W), each as likely as any other, as integer x, y (3, 2) in the order drawn.

    They differ where the mask has three pixels. An empty mask has none to draw from.
    """
    pixels = np.flatnonzero(mask)
    assert len(pixels), "a prompt needs a mask with at least one pixel"
    rng = np.random.Generator(np.random.PCG64([seed, ann_id]))
    drawn = rng.choice(pixels, POINTS, replace=len(pixels) < POINTS)
    return np.stack([drawn % mask.shape[1], drawn // mask.shape[1]], axis=-1)


def corners(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """x, y, width, height as x0, y0, x1, y1."""
    x, y, width, height = box
    return x, y, x + width, y + height


DRAW: Mapping[str, Callable[..., NDArray[np.int64]]] = {"uniform": uniform_points}
"""Ways to draw points, by the name a protocol calls them."""
