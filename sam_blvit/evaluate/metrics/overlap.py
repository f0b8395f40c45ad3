"""How well a mask agrees with the truth, in percent: over its whole area (IoU) and along its contour (Boundary IoU).

Both are quotients of whole numbers of pixels, counted at the photograph's own resolution.

Shapes:
    H, W  the photograph
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

BOUNDARY = 0.02
"""Depth of the boundary in diagonals of the image, as Boundary IoU was published."""


def iou(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """IoU of `mask` with `truth` (both H, W), percent; of two empty ones, which are equal, 100."""
    both, either = int(np.count_nonzero(mask & truth)), int(np.count_nonzero(mask | truth))
    return 100 * both / either if either else 100.0


def boundary_iou(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Boundary IoU of `mask` with `truth` (both H, W), percent; of two empty ones, which are equal, 100.

    It is the IoU of the rims of both: the pixels of each that lie within 2 % of the image's diagonal of its contour
    (Cheng et al. 2021, arXiv 2103.16562). The image's border is contour too, as in the authors' code.
    """
    depth = max(1, round(BOUNDARY * math.hypot(*mask.shape)))
    left, top, width, height = cv2.boundingRect((mask | truth).astype(np.uint8))
    around = np.s_[top : top + height, left : left + width]  # both are empty outside: nothing changes but the time
    return iou(_boundary(mask[around], depth), _boundary(truth[around], depth))


def _boundary(mask: NDArray[np.bool_], depth: int) -> NDArray[np.bool_]:
    """Pixels of `mask` with a pixel outside, or beyond the array, in the square of `depth` pixels to each side."""
    padded = np.pad(mask, 1).astype(np.uint8)
    core = cv2.erode(padded, np.ones((3, 3), dtype=np.uint8), iterations=depth)[1:-1, 1:-1]
    return mask & (core == 0)
