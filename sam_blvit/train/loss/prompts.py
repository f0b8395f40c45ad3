"""Prompts simulated in training: boxes and points drawn from the truth, then points where an answer was wrong.

Shapes:
    P  masks of an image that have one kind of prompt    T  tokens of a prompt: points, corners, and one that is neither
    h, w  pixels of a mask that the photograph covers
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
"""Labels of a prompt's tokens; SAM's prompt encoder knows them by these numbers."""
BOX_SHARE = 0.5
BOX_NOISE = 0.1
"""Standard deviation of a box coordinate, as a share of the box's side."""
MOST_BOX_NOISE = 20 / 1024
"""Largest shift of a box coordinate, as a share of the image's longest side."""
MOST_POINTS = 10
SAM_CORRECTIONS = 8
"""Rounds with a new point of SAM's own training (SAM, appendix A)."""


@dataclass(frozen=True)
class Style:
    """How masks are asked for at first; half of them always by a box."""

    one_point: float
    """Share of the masks asked for by a single point; the rest of them by as many points as drawn for the image."""
    fewest_points: int
    noisy_boxes: bool


STYLES = {
    "mixed": Style(one_point=0.25, fewest_points=2, noisy_boxes=True),
    "sam11": Style(one_point=0.5, fewest_points=2, noisy_boxes=True),
    "evs": Style(one_point=0.0, fewest_points=1, noisy_boxes=False),
}
"""mixed: ours. sam11: SAM's own (SAM, appendix A). evs: EfficientViT-SAM's."""


@dataclass(frozen=True)
class PromptBatch:
    """One kind of prompt for some masks of an image; all have as many tokens.

    Padding tokens would shift the decoder's attention away from what it sees in prediction. SAM itself adds one token
    that is no point to points without a box, so these have it, too.
    """

    masks: Tensor
    """(P,) places of the masks in their sample, on the CPU."""
    ann_ids: tuple[int, ...]
    """P annotation ids of them."""
    coords: Tensor
    """(P, T, 2) x, y in pixels of the resized image."""
    labels: Tensor
    """(P, T): -1 no point, 0 off the object, 1 on it, 2 and 3 the upper left and lower right corner of a box."""
    heads: Heads
    """Which outputs answer."""


def draw_prompts(sample: Sample, style: str, *, image_size: int, draws: Draws) -> list[PromptBatch]:
    """The first prompt of each mask of `sample` in a `style` of STYLES: boxes, one point, several, those there are.

    One point is answered by the best of three masks, several by the single one, and a box by both, since zero-shot AP
    scores a box's single mask. All points lie on the object. On the device of the sample's masks.
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
    """`prompts` with one more point each, uniform where `answer` (P, h, w) bool is wrong.

    `draws` (P, 1), as in `uniform_pixels`. A mask without an error gets a token that is no point, and so do all where
    none has one: to find that out the CPU would have to wait for the answers.
    """
    target = truth.covered
    pixels, wrong = uniform_pixels(answer ^ target, draws)
    column, row = pixels[:, 0].unbind(-1)
    missed = target[torch.arange(len(target), device=target.device), row, column]
    label = torch.where(wrong, torch.where(missed, ON, OFF), NOT_A_POINT)
    coords = torch.cat([prompts.coords, pixel_centres(pixels, truth.masks.shape[-1], image_size)], dim=1)
    return replace(prompts, coords=coords, labels=torch.cat([prompts.labels, label[:, None]], dim=1))


def plan_rounds(style: str, correction_rounds: int, draws: Draws) -> list[bool]:
    """For each round after the first, whether it adds a point; those that do not only feed the last mask back.

    mixed: `correction_rounds` that do and one that does not. sam11: SAM's eight that do, one among them that does not,
    one at the end. evs: none.
    """
    if style == "evs":
        return []
    if style == "mixed":
        return [True] * correction_rounds + [False]
    before = int(draws.image(0, Purpose.PLAN).integers(1, SAM_CORRECTIONS))
    return [True] * before + [False] + [True] * (SAM_CORRECTIONS - before) + [False]


def noisy_boxes(boxes: Tensor, noise: Tensor, *, size: tuple[int, int], image_size: int) -> Tensor:
    """`boxes` (P, 4) moved by standard normal `noise` (P, 4), scaled and capped as SAM's, inside `size` (h, w)."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    most = MOST_BOX_NOISE * image_size
    moved = boxes + (noise * BOX_NOISE * sides).clamp(-most, most)
    height, width = size
    corners = moved.clamp(min=0).minimum(moved.new_tensor([width, height, width, height])).view(-1, 2, 2)
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)  # five deviations turn a box inside out


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
