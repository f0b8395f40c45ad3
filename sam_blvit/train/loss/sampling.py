"""Random draws that any number of processes repeats, and places drawn with them.

Every draw has its own generator, seeded by what it is for: no state is carried from one to the next, so neither the
order of images, nor what shares a batch, nor a run resumed half way changes any of them.

Shapes:
    P  masks of a photograph    Q  pixels drawn in each    A  side of the regions, pixels
    H  outputs for a mask    S  side of the decoder's logits, pixels    L  side of a mask, pixels    N, M  places
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
"""Candidates for each place of the loss (PointRend, section 3.2)."""
IMPORTANCE_SHARE = 0.75
"""Share of the places that are the least sure candidates; the others are uniform."""


class Purpose(IntEnum):
    """What a draw is for, so that two draws of one image or mask have nothing in common."""

    PROMPT = 0
    PLAN = 1
    LOSS = 2


@dataclass(frozen=True)
class Draws:
    """Generators for one photograph in one epoch."""

    seed: int
    epoch: int
    image_id: int

    def image(self, round_number: int, purpose: Purpose) -> np.random.Generator:
        """The generator of what all masks of the photograph share."""
        return self._generator(round_number, purpose)

    def masks(self, ann_ids: Sequence[int], round_number: int, purpose: Purpose) -> list[np.random.Generator]:
        """The generator of each mask, whatever masks are drawn beside it."""
        return [self._generator(ann_id, round_number, purpose) for ann_id in ann_ids]

    def _generator(self, *words: int) -> np.random.Generator:
        # as a spawn key: [a, b] and [a, b, 0] would be one seed, and the data draw from (seed, epoch, image id) alone
        return np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch, self.image_id], spawn_key=words))


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """`values` of the CPU on `device`; a GPU need not first catch up with all it was told, as for a plain copy."""
    return values.to(device, non_blocking=device.type == "cuda")


def uniform_pixels(regions: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """The floor(u * count)-th pixel of each region, for uniform `draws` u (P, Q) float64 on the CPU.

    `regions` (P, h, w) bool, on any device, which is asked for no value. Returns column and row of the pixels
    (P, Q, 2), and which regions have a pixel at all (P,); both on the regions' device. An empty region's pixel means
    nothing.
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
    """Centres of `pixels` (..., 2) of a square of `side` pixels, in pixels of the resized image.

    SAM's prompt encoder adds the image's half pixel itself.
    """
    return (pixels + 0.5) * (image_size / side) - 0.5


def loss_places(
    logits: Tensor, *, draws: Draws, ann_ids: Sequence[int], round_number: int, count: int, covered: tuple[float, float]
) -> Tensor:
    """Places to compare each mask at, mostly where its answer is unsure, in PointRend's manner.

    `logits` (P, H, S, S) of all outputs that may answer: where the least sure of them is unsure is of interest, so they
    compete at the same places. `covered`: height and width of the photograph, as shares of the padded square.
    Returns x, y (P, count, 2), as shares of the square.
    """
    unsure = round(IMPORTANCE_SHARE * count)
    wanted = OVERSAMPLING * count + count - unsure
    # one set for the photograph, shifted around it by each mask's own draw: uniform for each, at a 64th of the cost
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
    """`logits` (P, H, S, S) at `places` (P, N, 2): (P, H, 1, N), what bilinear upsampling has at pixels there."""
    return F.grid_sample(logits, 2 * places[:, None] - 1, padding_mode="border", align_corners=False)


def mask_at_places(masks: Tensor, places: Tensor) -> Tensor:
    """Bool `masks` (P, L, L), interpolated bilinearly at `places` (P, N, 2): (P, 1, 1, N), 0 to 1.

    The same as `at_places`, without a copy of the masks in floating point.
    """
    side = masks.shape[-1]
    corner = places * side - 0.5
    low = corner.floor()
    share = corner - low  # (P, N, 2), of the right and lower pixel
    value = places.new_zeros(places.shape[:2])
    for right in (0, 1):
        for lower in (0, 1):
            pixel = low.long() + on_device(torch.tensor([right, lower]), low.device)
            column, row = pixel.clamp(0, side - 1).unbind(-1)
            weight = (share if right else 1 - share)[..., 0] * (share if lower else 1 - share)[..., 1]
            value += weight * masks.flatten(1).gather(1, row * side + column)
    return value[:, None, None]
