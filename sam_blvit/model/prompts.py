"""Prompts as tensors, checked: one line of error for what segment_anything's prompt encoder cannot process.

Shapes:
    P  prompts    n  points of a prompt    G  tokens along a side of the embedding
"""

from __future__ import annotations

from typing import TypedDict

import torch
from segment_anything.modeling import Sam as OriginalSam
from torch import Tensor

LABELS = (1, 0, -1)
"""On the object, off the object, and SAM's padding ("not a point")."""


class Prompts(TypedDict):
    """Arguments of `sam_blvit.model.decoder.decode`."""

    points: tuple[Tensor, Tensor | None] | None
    boxes: Tensor | None
    masks: Tensor | None


def check_prompts(
    sam: OriginalSam,
    *,
    coords: Tensor | None,
    labels: Tensor | None,
    boxes: Tensor | None,
    masks: Tensor | None,
) -> Prompts:
    """Check prompts, and return them as `decode` takes them.

    Args:
        sam: the model that decodes them.
        coords: (P, n, 2) X, Y in pixels of the resized image, anywhere but finite, with `labels`.
        labels: (P, n) of `LABELS`.
        boxes: (P, 4) X0, Y0, X1, Y1.
        masks: (P or 1, 1, 4G, 4G) logits.

    Raises:
        ValueError: if one has another shape or value; the message names it.
    """
    if (coords is None) != (labels is None):
        absent, given = ("point_coords", "point_labels") if coords is None else ("point_labels", "point_coords")
        raise ValueError(f"{given} without {absent}; pass both or neither")
    if coords is not None:
        coords = _checked_coords(coords)
        _check_labels(labels, coords)
    boxes = None if boxes is None else _checked_boxes(boxes)
    masks = None if masks is None else _checked_masks(masks, sam.prompt_encoder.mask_input_size)
    return Prompts(points=None if coords is None else (coords, labels), boxes=boxes, masks=masks)


def _checked_coords(coords: Tensor) -> Tensor:
    if coords.ndim != 3 or coords.shape[2] != 2:
        raise ValueError(f"point_coords of shape {tuple(coords.shape)}: (P, n, 2) is expected, X, Y of each point")
    return _finite(coords, "point_coords")


def _check_labels(labels: Tensor | None, coords: Tensor) -> None:
    assert labels is not None
    if labels.shape != coords.shape[:2]:
        expected = tuple(coords.shape[:2])
        raise ValueError(f"point_labels of shape {tuple(labels.shape)}: {expected} is expected, one for each point")
    wrong = labels[~torch.isin(labels.float(), torch.tensor(LABELS, dtype=torch.float32, device=labels.device))]
    if wrong.numel():
        raise ValueError(f"point_labels has {wrong[0].item():g}: 1 (on the object), 0 (off it) or -1 (padding)")


def _checked_boxes(boxes: Tensor) -> Tensor:
    if boxes.ndim < 2 or boxes.shape[1:].numel() != 4 or boxes.shape[-1] not in (2, 4):
        raise ValueError(f"boxes of shape {tuple(boxes.shape)}: (P, 4) is expected, X0, Y0, X1, Y1 of each")
    return _finite(boxes.reshape(-1, 4), "boxes")


def _checked_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if masks.shape[1:] != (1, *size) or not masks.is_floating_point():
        raise ValueError(
            f"mask_input of shape {tuple(masks.shape)} and {masks.dtype}: (P, 1, {size[0]}, {size[1]}) floats are "
            "expected, logits of an earlier prediction"
        )
    return _finite(masks, "mask_input")


def _finite(values: Tensor, name: str) -> Tensor:
    """`values` in float32, or ValueError."""
    if values.is_complex() or not (values := values.float()).isfinite().all():
        raise ValueError(f"{name} holds NaN, infinity or complex numbers; pass finite ones")
    return values
