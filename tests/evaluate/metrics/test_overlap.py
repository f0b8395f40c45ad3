"""IoU and Boundary IoU are those of slow obvious code, and whole numbers of pixels are counted exactly."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import cv2
import numpy as np
import pytest

from sam_blvit.evaluate.metrics.overlap import boundary_iou, iou


def blobs(seed: int, height: int, width: int) -> np.ndarray:
    """Round shapes, some of them across the border."""
    smooth = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(height, width)), (0, 0), 3)
    return smooth > np.quantile(smooth, 0.6)


def rectangle(rows: slice, columns: slice, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[rows, columns] = True
    return mask


def slow_boundary(mask: np.ndarray, depth: int) -> np.ndarray:
    """Pixels of `mask` with any pixel within `depth` rows and columns that is outside it, or outside the image."""
    height, width = mask.shape
    boundary = np.zeros(mask.shape, dtype=bool)
    for y, x in np.argwhere(mask):
        inside_image = depth <= y < height - depth and depth <= x < width - depth
        around = mask[max(y - depth, 0) : y + depth + 1, max(x - depth, 0) : x + depth + 1]
        boundary[y, x] = not (inside_image and around.all())
    return boundary


def slow_boundary_iou(mask: np.ndarray, truth: np.ndarray, depth: int) -> float:
    one, other = slow_boundary(mask, depth), slow_boundary(truth, depth)
    return 100 * int((one & other).sum()) / int((one | other).sum())


@pytest.mark.parametrize(
    ("size", "depth"),
    [
        ((6, 9), 1),  # 0.22 of a pixel, which counts as one
        ((54, 72), 2),  # 1.8
        ((60, 80), 2),  # diagonal 100
        ((75, 100), 2),  # 2.5, which rounds to the even number, as in the authors' code
        ((90, 120), 3),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_boundary_iou_is_that_of_looking_at_every_pixel(size: tuple[int, int], depth: int, seed: int) -> None:
    mask, truth = blobs(seed, *size), blobs(seed + 100, *size) | blobs(seed, *size)
    assert boundary_iou(mask, truth) == slow_boundary_iou(mask, truth, depth)


@pytest.mark.parametrize(
    ("mask", "truth"),
    [
        (rectangle(np.s_[20:40], np.s_[30:50]), rectangle(np.s_[22:41], np.s_[30:53])),  # away from every border
        (rectangle(np.s_[:20], np.s_[60:]), rectangle(np.s_[:25], np.s_[50:])),  # in a corner
        (rectangle(np.s_[:], np.s_[:]), rectangle(np.s_[3:], np.s_[:-1])),  # the whole image
        (rectangle(np.s_[10:11], np.s_[5:70]), rectangle(np.s_[9:12], np.s_[5:70])),  # too thin to have a core
        (rectangle(np.s_[10:11], np.s_[5:6]), rectangle(np.s_[10:12], np.s_[5:6])),
    ],
)
def test_shapes_anywhere_have_the_boundary_of_the_whole_image(mask: np.ndarray, truth: np.ndarray) -> None:
    expected = slow_boundary_iou(mask, truth, 2)
    assert boundary_iou(mask, truth) == expected
    assert 0 < expected < 100


def test_depth_comes_from_the_image_and_not_from_the_object() -> None:
    mask, truth = (rectangle(np.s_[20:40], np.s_[30:end], (60, 80)) for end in (50, 53))
    larger = [np.pad(m, ((0, 240), (0, 320))) for m in (mask, truth)]  # diagonal 500: depth 10
    assert boundary_iou(*larger) == slow_boundary_iou(*larger, 10) != boundary_iou(mask, truth)


def test_memory_order_does_not_matter() -> None:
    mask, truth = blobs(0, 60, 80), blobs(1, 60, 80)
    assert boundary_iou(mask, np.asfortranarray(truth)) == boundary_iou(mask, truth)
    assert iou(mask, np.asfortranarray(truth)) == iou(mask, truth)


@pytest.mark.parametrize("overlap", [iou, boundary_iou])
def test_equal_masks_agree_and_disjoint_ones_do_not(overlap: Callable) -> None:
    mask = blobs(0, 60, 80)
    assert overlap(mask, mask.copy()) == 100
    assert overlap(rectangle(np.s_[:20], np.s_[:20]), rectangle(np.s_[20:40], np.s_[20:40])) == 0


@pytest.mark.parametrize("overlap", [iou, boundary_iou])
def test_two_empty_masks_are_equal_and_one_empty_mask_is_wrong(overlap: Callable) -> None:
    empty, mask = np.zeros((60, 80), dtype=bool), blobs(0, 60, 80)
    assert overlap(empty, empty) == 100
    assert overlap(empty, mask) == overlap(mask, empty) == 0


def test_iou_counts_pixels_exactly() -> None:
    truth = np.ones((4100, 4100), dtype=bool)  # 16,810,000: beyond what float32 counts
    mask = truth.copy()
    mask[7, 9] = False
    assert iou(mask, truth) == 100 * 16_809_999 / 16_810_000


def test_iou_is_the_quotient_of_pixels() -> None:
    mask, truth = rectangle(np.s_[:10], np.s_[:10]), rectangle(np.s_[3:10], np.s_[:15])
    assert iou(mask, truth) == iou(truth, mask) == float(100 * Fraction(70, 135))
    assert type(iou(mask, truth)) is float  # a table writes it as it is
