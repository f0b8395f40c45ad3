"""Prompts simulated in training: a noisy box, one point, or several points, drawn for each mask on its own.

Shapes:
    P  prompted masks of an image    L  side of a mask, pixels    Q  points of a prompt
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
NEGATIVE_SHARE = 0.2
"""Share of the points after a prompt's first that lie off the object."""


@dataclass(frozen=True)
class Prompts:
    """One kind of prompt for some masks of an image."""

    masks: Tensor
    """(P,) which masks are asked for."""
    boxes: Tensor | None
    """(P, 4) in pixels of the resized image."""
    points: tuple[Tensor, Tensor] | None
    """Coordinates (P, Q, 2) in pixels of the resized image and labels (P, Q), 1 on the object and 0 off it."""
    single: Tensor
    """(P,) weight of the head for clear prompts."""
    multi: Tensor
    """(P,) weight of the best of the three heads for unclear prompts."""


def draw_prompts(sample: Sample, image_size: int, generator: torch.Generator) -> list[Prompts]:
    """A prompt for each mask of `sample`: half boxes, a quarter single points, a quarter 2 to 10 points.

    One point is answered by the best of three masks, several by the single one, and a box by both, since
    zero-shot AP scores a box's single mask. Prompts of one kind come together and have the same number of points:
    padding tokens would shift the decoder's attention away from what it sees in prediction.
    """
    kind = torch.rand(len(sample.masks), generator=generator)
    several = kind >= BOX_SHARE + ONE_POINT_SHARE
    most = int(torch.randint(2, MOST_POINTS + 1, (1,), generator=generator))
    prompts = []
    if len(boxed := (kind < BOX_SHARE).nonzero()[:, 0]):
        half = torch.full((len(boxed),), 0.5)
        boxes = noisy_boxes(sample.boxes[boxed], sample.image.shape[-2:], image_size, generator)
        prompts.append(Prompts(masks=boxed, boxes=boxes, points=None, single=half, multi=half))
    for pointed, count in (((kind >= BOX_SHARE) & ~several, 1), (several, most)):
        if len(chosen := pointed.nonzero()[:, 0]):
            points = draw_points(sample, chosen, count, image_size, generator)
            clear = torch.full((len(chosen),), float(count > 1))
            prompts.append(Prompts(masks=chosen, boxes=None, points=points, single=clear, multi=1 - clear))
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


def draw_points(
    sample: Sample, chosen: Tensor, count: int, image_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`count` points for each of the masks `chosen` (P,): the first on the object, later ones mostly.

    A share of the later ones is drawn off the object, else a SAM from scratch would never meet label 0.
    Returns coordinates (P, count, 2) in pixels of the resized image and labels (P, count), 1 on the object, 0 off it.
    """
    inside = sample.masks[chosen]
    outside = torch.zeros_like(inside)
    outside[:, : sample.valid[0], : sample.valid[1]] = True
    outside &= ~inside  # never empty: no mask covers the photograph
    labels = (torch.rand(len(chosen), count, generator=generator) >= NEGATIVE_SHARE).long()
    labels[:, 0] = 1
    on = uniform_points(inside, count, image_size, generator)
    off = uniform_points(outside, count, image_size, generator)
    return torch.where(labels[..., None] == 1, on, off), labels


def uniform_points(masks: Tensor, count: int, image_size: int, generator: torch.Generator) -> Tensor:
    """`count` points drawn uniformly in each of `masks` (n, L, L), with replacement: (n, count, 2) in pixels of the
    resized image."""
    side = masks.shape[-1]
    place = torch.multinomial(masks.flatten(1).float(), count, replacement=True, generator=generator)
    # centre of the mask's pixel, in the image's pixels; SAM's prompt encoder adds the image's half pixel itself
    return (torch.stack([place % side, place // side], dim=-1) + 0.5) * (image_size / side) - 0.5
