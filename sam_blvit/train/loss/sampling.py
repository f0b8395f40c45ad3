"""Random draws that do not depend on the number of processes, and points sampled with them.

Every draw has its own generator, seeded by its purpose. No state is carried from one draw to the next, so the order of
images, the composition of batches, and resuming a run do not change any of them.

Shapes:
    P  masks of a photograph    Q  pixels drawn in each    h, w  size of the regions, pixels
    H  outputs for a mask    S  side of the decoder's logits, pixels    L  side of a mask, pixels    N  points
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

OVERSAMPLING = 3
"""Candidates per sampled point (PointRend, section 3.2)."""
IMPORTANCE_SHARE = 0.75
"""Share of the points that are the most uncertain candidates. The others are uniform."""


class Purpose(IntEnum):
    """Purpose of a draw. Draws of one image or mask for different purposes are independent."""

    PROMPT = 0
    PLAN = 1
    LOSS = 2


@dataclass(frozen=True)
class Draws:
    """Random generators for one photograph in one epoch."""

    seed: int
    epoch: int
    image_id: int

    def image(self, round_number: int, purpose: Purpose) -> np.random.Generator:
        """Return the generator of draws that all masks of the photograph share."""
        return self._generator(round_number, purpose)

    def masks(self, ann_ids: Sequence[int], round_number: int, purpose: Purpose) -> list[np.random.Generator]:
        """Return a generator per mask. It does not depend on which other masks were drawn."""
        return [self._generator(ann_id, round_number, purpose) for ann_id in ann_ids]

    def _generator(self, *words: int) -> np.random.Generator:
        # a spawn key, because [a, b] and [a, b, 0] are the same seed, and the data use (seed, epoch, image id)
        return np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch, self.image_id], spawn_key=words))


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy `values` from the CPU to `device`. On a GPU the copy does not wait for the work queued before it."""
    return values.to(device, non_blocking=device.type == "cuda")


def uniform_pixels(regions: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Draw Q pixels uniformly from each region: the floor(u * count)-th pixel for each uniform draw u.

    Args:
        regions: (P, h, w) bool, on any device. The CPU does not wait for their values.
        draws: (P, Q) float64 in [0, 1), on the CPU.

    Returns:
        Column and row of the pixels (P, Q, 2), and whether each region has a pixel at all (P,), both on the device of
        `regions`. Pixels of an empty region are meaningless.
    """
    counts = regions.sum(dim=-1, dtype=torch.int32)  # (P, h)
    upto = counts.cumsum(dim=-1)
    draws = on_device(draws.float() if regions.device.type == "mps" else draws, regions.device)  # mps has no float64
    place = (draws * upto[:, -1:]).long().minimum(upto[:, -1:] - 1)  # (P, Q); a float32 u may be rounded up to 1
    row = torch.searchsorted(upto, place, right=True).clamp(max=regions.shape[1] - 1)
    within = place - (upto - counts).gather(1, row)
    lines = regions[torch.arange(len(regions), device=regions.device)[:, None], row]  # (P, Q, w)
    column = torch.searchsorted(lines.cumsum(dim=-1), within[..., None], right=True).clamp(max=regions.shape[2] - 1)
    return torch.cat([column, row[..., None]], dim=-1), upto[:, -1] > 0


def pixel_centres(pixels: Tensor, side: int, image_size: int) -> Tensor:
    """Return the centres of `pixels` (..., 2) of a square of `side` pixels, in pixels of the resized image.

    Half a pixel of the image is subtracted, since SAM's prompt encoder adds it.
    """
    return (pixels + 0.5) * (image_size / side) - 0.5


def loss_places(
    logits: Tensor, *, draws: Draws, ann_ids: Sequence[int], round_number: int, count: int, covered: tuple[float, float]
) -> Tensor:
    """Sample the points at which each mask is compared, mostly where the output is uncertain, as in PointRend.

    Args:
        logits: (P, H, S, S) of all outputs that are trained. All are compared at the same points, chosen by the least
            certain output at each candidate.
        draws: Random generators of the photograph.
        ann_ids: P annotation ids.
        round_number: Number of the round, from 0.
        count: Points per mask.
        covered: Height and width of the photograph, as shares of the padded square.

    Returns:
        (P, count, 2) x, y as shares of the square.
    """
    unsure = round(IMPORTANCE_SHARE * count)
    wanted = OVERSAMPLING * count + count - unsure
    # one set per photograph, shifted cyclically by a draw per mask: uniform for each, at a 64th of the cost
    common = torch.from_numpy(draws.image(round_number, Purpose.LOSS).random((wanted, 2), dtype=np.float32))
    shifts = np.stack([rng.random(2, dtype=np.float32) for rng in draws.masks(ann_ids, round_number, Purpose.LOSS)])
    device = logits.device
    places = (on_device(common, device) + on_device(torch.from_numpy(shifts), device)[:, None]) % 1  # (P, wanted, 2)
    places = places * on_device(torch.tensor(covered[::-1]), device)
    candidates, others = places.split([OVERSAMPLING * count, count - unsure], dim=1)
    with torch.no_grad():
        sureness = at_places(logits, candidates).abs().amin(dim=(1, 2))  # (P, 3 count)
    chosen = sureness.topk(unsure, dim=1, largest=False).indices
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), others], dim=1)


def at_places(logits: Tensor, places: Tensor) -> Tensor:
    """Interpolate `logits` (P, H, S, S) bilinearly at `places` (P, N, 2): (P, H, 1, N)."""
    return F.grid_sample(logits, 2 * places[:, None] - 1, padding_mode="border", align_corners=False)


def mask_at_places(masks: Tensor, places: Tensor) -> Tensor:
    """Interpolate bool `masks` (P, L, L) bilinearly at `places` (P, N, 2): (P, 1, 1, N), 0 to 1.

    Equal to `at_places`, without a floating-point copy of the masks.
    """
    side = masks.shape[-1]
    corner = places * side - 0.5
    low = corner.floor()
    share = corner - low  # (P, N, 2), weights of the right and lower pixel
    value = places.new_zeros(places.shape[:2])
    for right in (0, 1):
        for lower in (0, 1):
            pixel = low.long() + on_device(torch.tensor([right, lower]), low.device)
            column, row = pixel.clamp(0, side - 1).unbind(-1)
            weight = (share if right else 1 - share)[..., 0] * (share if lower else 1 - share)[..., 1]
            value += weight * masks.flatten(1).gather(1, row * side + column)
    return value[:, None, None]
