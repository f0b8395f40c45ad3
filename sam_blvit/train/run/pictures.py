"""Pictures of a step: true masks, the student's masks, and the primary tokens of its routers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sam_blvit.data.samples import Sample
from sam_blvit.draw.pictures import OBJECTS, captioned, draw_objects, draw_page, routing_map, routing_panels, scaled
from sam_blvit.model.decoder import decode
from sam_blvit.model.measuring import measuring
from sam_blvit.model.sam import Sam
from sam_blvit.system.files import write_atomically

SIDE = 400
"""Longest side of a panel, pixels."""


def draw_step(
    sam: Sam, samples: Sequence[Sample], path: Path, *, most: int = 4, keep_ratio: float | None = None
) -> None:
    """Write a PNG with a row for each sample. Does nothing without samples. The state of `sam` is restored.

    A row has the photograph with up to 3 true masks and their boxes; the masks that `sam` predicts from these boxes (of
    three, the one of highest predicted IoU), if the sample has masks; and the primary tokens of each router.

    Args:
        sam: The model.
        samples: Photographs with masks.
        path: The PNG to write.
        most: Largest number of samples to draw.
        keep_ratio: None for the model's own. At 0 and 1 no router runs.
    """
    if not samples:
        return
    with measuring(sam, keep_ratio):
        page = draw_page([_panels(sam, sample) for sample in samples[:most]])
    write_atomically(path, partial(Image.fromarray(page).save, format="PNG"))


def _panels(sam: Sam, sample: Sample) -> list[np.ndarray]:
    height, width = sample.image.shape[-2:]
    photograph = scaled(sample.image.permute(1, 2, 0).cpu().numpy(), SIDE)
    encoding = sam.encode_photograph(sample.image)
    truth = sample.masks[: len(OBJECTS), : sample.valid[0], : sample.valid[1]].cpu().numpy()
    boxes = sample.boxes[: len(OBJECTS)]
    shown = boxes.cpu().numpy() * SIDE / max(height, width)
    drawn = draw_objects(photograph, _fitted(truth, photograph), boxes=shown)
    panels = [captioned(drawn, f"Image {sample.image_id}: {len(sample.masks)} masks")]
    if len(boxes):
        answer, predicted = _answer(sam, encoding.embedding, boxes.to(sam.device), (height, width))
        drawn = draw_objects(photograph, _fitted(answer, photograph), boxes=shown)
        panels.append(captioned(drawn, f"Answer, predicted IoU {predicted:.0%}"))
    maps = {layer: routing_map(routing, encoding.layout) for layer, routing in encoding.routings.items()}
    return panels + routing_panels(photograph, maps, input_size=(height, width))


def _answer(sam: Sam, embedding: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Predict masks (n, h, w) and their mean predicted IoU from `boxes` (n, 4) on an image of `size` (h, w)."""
    logits, predicted = decode(sam, embedding, boxes=boxes, multimask_output=True)
    best = predicted.argmax(dim=1)
    each = torch.arange(len(boxes), device=best.device)
    masks = sam.postprocess_masks(logits[each, best][:, None].float(), size, size)[:, 0] > sam.mask_threshold
    return masks.cpu().numpy(), predicted[each, best].float().mean().item()


def _fitted(masks: np.ndarray, photograph: np.ndarray) -> np.ndarray:
    """Resize `masks` (n, h, w) to the size of `photograph` (H, W, 3)."""
    size = (photograph.shape[1], photograph.shape[0])
    fitted = [cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT) > 0 for mask in masks]
    return np.array(fitted).reshape(-1, *photograph.shape[:2])
