"""How sure a model is of an answer. Every confidence is higher for surer answers.

Shapes:
    n  samples    C  classes or labels    H, W  pixels of a mask
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Confidence = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Maps probabilities (n, C) to confidences (n,)."""


def softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Probabilities (n, C) of `logits` (n, C), in float64."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def sigmoid(logits: ArrayLike) -> NDArray[np.float64]:
    """Probabilities of independent labels, in float64; no overflow for large logits."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64))))


def max_softmax(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest probability (n,), the paper's confidence (equation 4)."""
    return np.asarray(probabilities.max(axis=1))


def margin(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest probability minus the second largest (n,), 0 to 1."""
    if probabilities.shape[1] < 2:
        raise ValueError("margin needs at least 2 classes; use max_softmax")
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    return np.asarray(first - second)


def negentropy(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - entropy / log C (n,): 0 for equal probabilities, 1 for a single certain class."""
    classes = probabilities.shape[1]
    if classes < 2:
        raise ValueError("entropy needs at least 2 classes; use max_softmax")
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    return np.asarray(1 + (probabilities * logs).sum(axis=1) / np.log(classes))


def distance_from_half(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of |p - 0.5| over independent labels (n,), 0 to 0.5 (paper, appendix A.1.2)."""
    return np.asarray(np.abs(probabilities - 0.5).mean(axis=1))


CONFIDENCES: dict[str, Confidence] = {
    "max": max_softmax,
    "margin": margin,
    "entropy": negentropy,
    "multi_label": distance_from_half,
}
"""Confidences that scores alone give, by name."""


def region_mean(pixels: NDArray[np.float64], regions: NDArray[np.integer]) -> float:
    """Confidence of a segmentation (paper, appendix A.1.3): the mean over regions of each region's mean.

    Args:
        pixels: (H, W) confidence of each pixel, such as its largest softmax probability.
        regions: (H, W) label of each pixel's region, from superpixels for example.
    """
    if pixels.shape != regions.shape or not pixels.size:
        raise ValueError(f"pixels {pixels.shape} and regions {regions.shape} must have one shape that is not empty")
    _, index = np.unique(regions, return_inverse=True)
    index = index.reshape(-1)
    return float((np.bincount(index, weights=pixels.reshape(-1)) / np.bincount(index)).mean())


def mask_agreement(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU (n,) of two sets of masks (n, H, W), as of two of a decoder's answers; 1 where both are empty."""
    if first.shape != second.shape:
        raise ValueError(f"masks of shapes {first.shape} and {second.shape} cannot agree; pass the same shape")
    return _iou((first & second).sum(axis=(1, 2)), (first | second).sum(axis=(1, 2)))


def stability(logits: NDArray[np.floating], *, threshold: float = 0.0, offset: float = 1.0) -> NDArray[np.float64]:
    """IoU (n,) of each mask (n, H, W) cut at `threshold` + `offset` and at `threshold` - `offset`, as SAM's
    `stability_score`; 1 where both are empty."""
    return _iou((logits > threshold + offset).sum(axis=(1, 2)), (logits > threshold - offset).sum(axis=(1, 2)))


def _iou(intersection: NDArray[np.integer], union: NDArray[np.integer]) -> NDArray[np.float64]:
    return np.divide(intersection, union, out=np.ones(len(union)), where=union > 0)
