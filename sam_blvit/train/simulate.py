"""Prompts simulated in training: a noisy box, one point, or several points, drawn for each mask on its own.

Shapes:
    n  masks of an image    L  side of a mask, pixels    Q  most points of a prompt
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sam_blvit.data.sa1b import Sample

BOX_SHARE = 0.5
ONE_POINT_SHARE = 0.25
MOST_POINTS = 10
BOX_NOISE = 0.1
"""Standard deviation of a box coordinate, as a share of the box's side."""
MOST_BOX_NOISE = 20 / 1024
"""Largest shift of a box coordinate, as a share of the image's longest side."""
NOT_A_POINT = -1


@dataclass(frozen=True)
class Prompts:
    """One kind of prompt for some masks of an image."""

    masks: Tensor
    """(P,) which masks are asked for."""
    boxes: Tensor | None
    """(P, 4) in pixels of the resized image."""
    points: tuple[Tensor, Tensor] | None
    """Coordinates (P, Q, 2) in pixels of the resized image and labels (P, Q); -1 pads ragged prompts."""
    single: Tensor
    """(P,) weight of the head for clear prompts."""
    multi: Tensor
    """(P,) weight of the best of the three heads for unclear prompts."""


def draw_prompts(sample: Sample, image_size: int, generator: torch.Generator) -> list[Prompts]:
    """A prompt for each mask of `sample`: half boxes, a quarter single points, a quarter 2 to 10 points.

    One point is answered by the best of three masks, several by the single one, and a box by both, since
    zero-shot AP scores a box's single mask. At most two kinds come back: boxes and points.
    """
    kind = torch.rand(len(sample.masks), generator=generator)
    boxed, pointed = (kind < BOX_SHARE).nonzero()[:, 0], (kind >= BOX_SHARE).nonzero()[:, 0]
    prompts = []
    if len(boxed):
        half = torch.full((len(boxed),), 0.5)
        boxes = noisy_boxes(sample.boxes[boxed], sample.image.shape[-2:], image_size, generator)
        prompts.append(Prompts(masks=boxed, boxes=boxes, points=None, single=half, multi=half))
    if len(pointed):
        several = kind[pointed] >= BOX_SHARE + ONE_POINT_SHARE
        drawn = torch.randint(2, MOST_POINTS + 1, (len(pointed),), generator=generator)
        counts = torch.where(several, drawn, 1)
        points = uniform_points(sample.masks[pointed], counts, image_size, generator)
        prompts.append(
            Prompts(masks=pointed, boxes=None, points=points, single=several.float(), multi=(~several).float())
        )
    return prompts


def noisy_boxes(boxes: Tensor, size: torch.Size, image_size: int, generator: torch.Generator) -> Tensor:
    """`boxes` (n, 4) with Gaussian noise of a tenth of a side on each coordinate, capped as SAM's, inside `size`."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    noise = torch.randn(boxes.shape, generator=generator) * BOX_NOISE * sides
    most = MOST_BOX_NOISE * image_size
    shifted = boxes + noise.clamp(-most, most)
    height, width = size
    limit = torch.tensor([width, height, width, height], dtype=boxes.dtype)
    return shifted.clamp(min=0).minimum(limit)


def uniform_points(masks: Tensor, counts: Tensor, image_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`counts` (n,) points drawn uniformly in each of `masks` (n, L, L), with replacement, all positive.

    Returns coordinates (n, Q, 2) in pixels of the resized image and labels (n, Q), padded with -1.
    """
    side = masks.shape[-1]
    most = int(counts.max())
    place = torch.multinomial(masks.flatten(1).float(), most, replacement=True, generator=generator)  # (n, Q)
    # centre of the mask's pixel, in the image's pixels; SAM's prompt encoder adds the image's half pixel itself
    xy = (torch.stack([place % side, place // side], dim=-1) + 0.5) * (image_size / side) - 0.5
    labels = torch.where(torch.arange(most) < counts[:, None], 1, NOT_A_POINT)
    return xy, labels
