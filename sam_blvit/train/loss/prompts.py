"""Simulated prompts for training: boxes and points drawn from the true masks, then points in errors of the output.

Shapes:
    P  masks of an image with the same kind of prompt    T  tokens of a prompt: points, corners and "not a point"
    h, w  size of the photograph in pixels of a mask
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sam_blvit.data.samples import Sample
from sam_blvit.train.loss.sampling import Draws, Purpose, on_device, pixel_centres, uniform_pixels
from sam_blvit.train.loss.terms import Heads, TargetMasks

NOT_A_POINT, OFF, ON, FIRST_CORNER, LAST_CORNER = -1, 0, 1, 2, 3
"""Labels of the tokens of a prompt, as in SAM's prompt encoder."""
BOX_SHARE = 0.5
BOX_NOISE = 0.1
"""Standard deviation of a box coordinate, as a share of the box's side."""
MOST_BOX_NOISE = 20 / 1024
"""Largest shift of a box coordinate, as a share of the image's longest side."""
MOST_POINTS = 10
SAM_CORRECTIONS = 8
"""Rounds with a new point in SAM's own training (SAM, appendix A)."""


@dataclass(frozen=True)
class Style:
    """How first prompts are drawn. Half of the masks always get a box."""

    one_point: float
    """Share of the masks that get a single point. The others get as many points as were drawn for the image."""
    fewest_points: int
    noisy_boxes: bool


STYLES = {
    "mixed": Style(one_point=0.25, fewest_points=2, noisy_boxes=True),
    "sam11": Style(one_point=0.5, fewest_points=2, noisy_boxes=True),
    "evs": Style(one_point=0.0, fewest_points=1, noisy_boxes=False),
}
"""mixed: this package's default. sam11: SAM's own (SAM, appendix A). evs: EfficientViT-SAM's."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of the same kind, with the same number of tokens, for P masks of an image.

    There are no padding tokens: they would make the decoder's attention differ from prediction. Points without a box
    are followed by one "not a point" token, as in SAM.
    """

    masks: Tensor
    """(P,) indices of the masks in their sample, on the CPU."""
    ann_ids: tuple[int, ...]
    """P annotation ids of the masks."""
    coords: Tensor
    """(P, T, 2) x, y in pixels of the resized image."""
    labels: Tensor
    """(P, T): -1 not a point, 0 outside the object, 1 on it, 2 and 3 upper left and lower right corner of a box."""
    heads: Heads
    """The decoder outputs that are trained."""


def draw_prompts(sample: Sample, style: str, *, image_size: int, draws: Draws) -> list[PromptBatch]:
    """Draw the first prompt of each mask of `sample`. All points lie on the object.

    A single point trains the best of the decoder's three masks, several points its single mask, and a box both, since
    zero-shot AP scores the single mask of a box.

    Args:
        sample: A photograph with masks.
        style: One of STYLES.
        image_size: Longest side of the encoder's input, pixels.
        draws: Random generators of the photograph.

    Returns:
        Up to three batches: boxes, single points and several points, on the device of the sample's masks.
    """
    shares = STYLES[style]
    generators = draws.masks(sample.ann_ids, 0, Purpose.PROMPT)
    kind = np.array([rng.random() for rng in generators])
    noise = torch.from_numpy(np.stack([rng.standard_normal(4) for rng in generators]) * shares.noisy_boxes)
    places = torch.from_numpy(np.stack([rng.random(MOST_POINTS) for rng in generators]))
    several = int(draws.image(0, Purpose.PROMPT).integers(shares.fewest_points, MOST_POINTS + 1))
    boxed, single = kind < BOX_SHARE, kind < BOX_SHARE + shares.one_point
    prompts = []
    for count, chosen in ((0, boxed), (1, single & ~boxed), (several, ~single)):
        if chosen.any():
            masks = torch.from_numpy(np.flatnonzero(chosen))
            if count:
                tokens = _points(sample, masks, places[masks, :count], image_size)
            else:
                tokens = _corners(sample, masks, noise[masks], image_size)
            heads = (Heads.BOTH, Heads.MULTI, Heads.SINGLE)[min(count, 2)]
            ann_ids = tuple(sample.ann_ids[i] for i in masks)
            prompts.append(PromptBatch(masks, ann_ids, *tokens, heads))
    return prompts


def add_error_points(
    prompts: PromptBatch, answer: Tensor, truth: TargetMasks, *, image_size: int, draws: Tensor
) -> PromptBatch:
    """Add a point to each prompt, drawn uniformly from the errors of the output.

    Masks without an error get a "not a point" token instead. This is done even if no mask has an error, because
    checking would make the CPU wait for the GPU.

    Args:
        prompts: The P prompts so far.
        answer: (P, h, w) bool, the predicted masks.
        truth: The true masks.
        image_size: Longest side of the encoder's input, pixels.
        draws: (P, 1), as in `uniform_pixels`.
    """
    target = truth.covered
    pixels, wrong = uniform_pixels(answer ^ target, draws)
    column, row = pixels[:, 0].unbind(-1)
    missed = target[torch.arange(len(target), device=target.device), row, column]
    label = torch.where(wrong, torch.where(missed, ON, OFF), NOT_A_POINT)
    coords = torch.cat([prompts.coords, pixel_centres(pixels, truth.masks.shape[-1], image_size)], dim=1)
    return replace(prompts, coords=coords, labels=torch.cat([prompts.labels, label[:, None]], dim=1))


def plan_rounds(style: str, correction_rounds: int, draws: Draws) -> list[bool]:
    """Return for each round after the first whether it adds a point. The others only feed the last mask back.

    mixed: `correction_rounds` rounds with a point, then one without. sam11: eight rounds with a point as in SAM, one
    without at a random place among them, and one without at the end. evs: no further rounds.
    """
    if style == "evs":
        return []
    if style == "mixed":
        return [True] * correction_rounds + [False]
    before = int(draws.image(0, Purpose.PLAN).integers(1, SAM_CORRECTIONS))
    return [True] * before + [False] + [True] * (SAM_CORRECTIONS - before) + [False]


def noisy_boxes(boxes: Tensor, noise: Tensor, *, size: tuple[int, int], image_size: int) -> Tensor:
    """Move `boxes` (P, 4) by standard normal `noise` (P, 4), scaled and capped as in SAM, within `size` (h, w)."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    most = MOST_BOX_NOISE * image_size
    moved = boxes + (noise * BOX_NOISE * sides).clamp(-most, most)
    height, width = size
    corners = moved.clamp(min=0).minimum(moved.new_tensor([width, height, width, height])).view(-1, 2, 2)
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)  # noise of five deviations may swap corners


def _corners(sample: Sample, masks: Tensor, noise: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
    device = sample.masks.device
    height, width = sample.image.shape[-2:]
    boxes = noisy_boxes(sample.boxes.cpu()[masks], noise.float(), size=(height, width), image_size=image_size)
    labels = on_device(torch.tensor([FIRST_CORNER, LAST_CORNER]), device).expand(len(masks), 2)
    return on_device(boxes.view(-1, 2, 2), device), labels


def _points(sample: Sample, masks: Tensor, places: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
    pixels, _ = uniform_pixels(sample.masks[on_device(masks, sample.masks.device)], places)  # no mask is empty
    coords = pixel_centres(pixels, sample.masks.shape[-1], image_size)
    coords = torch.cat([coords, torch.zeros_like(coords[:, :1])], dim=1)
    labels = torch.full(coords.shape[:2], ON, device=coords.device)
    labels[:, -1] = NOT_A_POINT
    return coords, labels
