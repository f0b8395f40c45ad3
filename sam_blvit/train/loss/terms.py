"""SAM's mask loss and the distillation loss (paper, section 3.3), computed in fp32 even under autocast.

Shapes:
    P  prompted masks of an image    H  trained outputs of the decoder: 1, 3 or all 4
    S  side of the decoder's logits, pixels    L  side of a mask, pixels    h, w  size of the photograph in these pixels
    N  points per mask    B  images    C  channels    G  tokens along a side
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sam_blvit.model.windows import WindowLayout
from sam_blvit.train.loss.sampling import at_places, mask_at_places

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2
"""Must be even: `focal_and_dice` does not take the absolute value of the error."""
FOCAL_WEIGHT = 20.0
EPS = 1e-6
LOW_QUANTILE = 0.05


class Heads(Enum):
    """Which of the decoder's four outputs are trained on a prompt, in groups called teams.

    The mask loss of a team is that of its best output, and the loss is the mean over teams. The answer to the prompt is
    the output of the first team with the highest predicted IoU.
    """

    SINGLE = (range(0, 1),)
    MULTI = (range(1, 4),)
    BOTH = (range(0, 1), range(1, 4))

    @property
    def outputs(self) -> slice:
        """The trained outputs, as a slice of the decoder's four."""
        return slice(self.value[0].start, self.value[-1].stop)

    @property
    def teams(self) -> list[slice]:
        """Each team, as a slice of `outputs`."""
        first = self.value[0].start
        return [slice(team.start - first, team.stop - first) for team in self.value]


@dataclass(frozen=True)
class TargetMasks:
    """True masks of P prompts."""

    masks: Tensor
    """(P, L, L) bool, on the padded square."""
    valid: tuple[int, int]
    """Height and width of the photograph, in pixels of `masks`."""

    @property
    def covered(self) -> Tensor:
        """(P, h, w): the part of `masks` on the photograph."""
        return self.masks[:, : self.valid[0], : self.valid[1]]

    def at(self, side: int) -> TargetMasks:
        """Resize to masks of `side` pixels, by their value at the centre of each pixel."""
        small = F.interpolate(self.masks[:, None].view(torch.uint8), (side, side), mode="nearest-exact")[:, 0]
        height, width = (max(1, round(length * side / self.masks.shape[-1])) for length in self.valid)
        return TargetMasks(small.view(torch.bool), (height, width))


class OutputScores(NamedTuple):
    """Each output compared with the true mask."""

    focal: Tensor
    """(P, H)."""
    dice: Tensor
    """(P, H)."""
    iou: Tensor
    """(P, H), without gradient."""
    masks: Tensor
    """(P, H, h, w) bool, the thresholded outputs on the photograph."""
    areas: TargetMasks
    """The true masks at the resolution of `masks`."""


@dataclass(frozen=True)
class MaskLoss:
    """Loss of each mask and its terms, (P,)."""

    total: Tensor
    focal: Tensor
    dice: Tensor
    iou: Tensor
    answer_iou: Tensor
    """IoU of the answer, 0 to 1, without gradient."""


@dataclass(frozen=True)
class Distillation:
    """Distance of a student's tokens from a teacher's: sums to be divided by counts over all processes, and values to
    log."""

    cosine: Tensor
    """Sum over valid tokens of 1 - cosine, each 0 to 2."""
    mse: Tensor
    """Sum over valid tokens of the mean squared difference of their channels."""
    tokens: Tensor
    """Number of valid tokens."""
    mean_cosine: Tensor
    low_cosine: Tensor
    """5th percentile of the cosine."""
    norm_ratio: Tensor
    """Mean ratio of the student's norm to the teacher's."""


def distillation_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Distillation:
    """Compare the embeddings of student and teacher token by token.

    The paper's formula is the cosine itself, but minimising that would drive features apart, and its text describes the
    opposite: this is 1 - cosine. All tokens have equal weight; a cosine of flattened embeddings would be dominated by
    tokens of large norm.

    Args:
        student: (B, C, G, G)
        teacher: (B, C, G, G), without gradient.
        valid: (B, G, G), not 0 for tokens that count.
    """
    with torch.autocast(student.device.type, enabled=False):
        inside = valid.bool()
        ours, theirs = (x.float().movedim(1, -1)[inside] for x in (student, teacher.detach()))  # (tokens, C)
        cosine = F.cosine_similarity(ours, theirs, dim=-1, eps=EPS)
        mse = (ours - theirs).square().mean(dim=-1)
        with torch.no_grad():
            ratio = ours.norm(dim=-1) / theirs.norm(dim=-1).clamp(min=EPS)
    return Distillation(
        cosine=(1 - cosine).sum(),
        mse=mse.sum(),
        tokens=inside.sum(),
        mean_cosine=cosine.detach().mean(),
        low_cosine=cosine.detach().quantile(LOW_QUANTILE),
        norm_ratio=ratio.mean(),
    )


def compare(logits: Tensor, truth: TargetMasks, *, places: Tensor | None = None) -> OutputScores:
    """Compare outputs with the true masks, at all pixels or at sampled points.

    Without `places`, logits are upsampled to side L. With `places`, focal and dice loss are computed at these points,
    nothing is upsampled, and the IoU is computed at side S: points lie where outputs are uncertain, and an IoU over
    them would be far too low. Large intermediate results are recomputed in the backward pass; only `logits` are kept.

    Args:
        logits: (P, H, S, S)
        truth: The true masks.
        places: (P, N, 2) x, y as shares of the square.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return checkpoint(_compare, logits.float(), truth, places, use_reentrant=False, preserve_rng_state=False)


def _compare(logits: Tensor, truth: TargetMasks, places: Tensor | None) -> OutputScores:
    if places is None:
        areas, side = truth, truth.masks.shape[-1]
        wide = F.interpolate(logits, (side, side), mode="bilinear")[..., : truth.valid[0], : truth.valid[1]]
        losses, masks = focal_and_dice(wide, truth.covered[:, None].float()), wide > 0
    else:
        areas = truth.at(logits.shape[-1])
        losses = focal_and_dice(at_places(logits, places), mask_at_places(truth.masks, places))
        masks = logits[..., : areas.valid[0], : areas.valid[1]] > 0
    return OutputScores(*losses, mask_iou(masks, areas.covered[:, None]), masks, areas)


def mask_loss(compared: OutputScores, predicted_iou: Tensor, heads: Heads) -> MaskLoss:
    """20 focal + dice + squared error of the predicted IoU.

    The outputs of a team compete by 20 focal + dice, and only the winner's mask is trained (SAM, appendix A). The
    predicted IoU of all outputs is trained, as in SAM 2. SAM trains only the winner's. An output that seldom wins could
    then predict arbitrary values, and would be chosen wherever the mask of highest predicted IoU is.

    Args:
        compared: The outputs compared with the true masks.
        predicted_iou: (P, H)
        heads: Which outputs are trained.
    """
    error = (predicted_iou.float() - compared.iou) ** 2
    mask_term = FOCAL_WEIGHT * compared.focal + compared.dice

    def shared(term: Tensor, winner: bool) -> Tensor:
        values = []
        for team in heads.teams:
            best = mask_term[:, team].argmin(dim=1, keepdim=True)
            values.append(term[:, team].gather(1, best)[:, 0] if winner else term[:, team].mean(dim=1))
        return torch.stack(values).mean(dim=0)

    focal, dice, iou = shared(compared.focal, True), shared(compared.dice, True), shared(error, False)
    answer_iou = compared.iou.gather(1, answer_of(predicted_iou, heads)[:, None])[:, 0]
    return MaskLoss(total=FOCAL_WEIGHT * focal + dice + iou, focal=focal, dice=dice, iou=iou, answer_iou=answer_iou)


def answer_of(predicted_iou: Tensor, heads: Heads) -> Tensor:
    """Return the index of each answer (P,): the output of the first team with the highest `predicted_iou` (P, H)."""
    return predicted_iou[:, heads.teams[0]].argmax(dim=1)


def listwise_loss(logits: Tensor, benefits: Tensor, valid: Tensor, layout: WindowLayout) -> Tensor:
    """Kullback-Leibler divergence between a router's scores and the benefits of tokens, within each window.

    The target of a token is its share of the squared benefits of its window. The loss is ListNet's top-one loss (Cao et
    al. 2007) minus a constant. Windows are weighted by their number of tokens on the photograph, and summed.

    Args:
        logits: (B, N) of the router, window-major.
        benefits: (B, N), how much each token gains from the performance block.
        valid: (B, G, G), 1 where a token lies on the photograph.
        layout: The windows.
    """
    height, width = layout.grid
    shown = layout.in_slots(layout.by_window(valid[:, :height, :width, None])[..., 0], empty=0).sum(-1)  # (B, M)
    gain = layout.in_slots(benefits.float().square(), empty=0)
    share = gain / gain.sum(-1, keepdim=True).clamp_min(torch.finfo(gain.dtype).tiny)
    preferred = layout.in_slots(logits.float(), empty=-torch.inf).log_softmax(-1)
    apart = torch.where(share > 0, share * (share.clamp_min(torch.finfo(share.dtype).tiny).log() - preferred), 0)
    return (apart.sum(-1) * shown).sum()


def focal_and_dice(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Compute focal loss (alpha 0.25, gamma 2; mean over pixels) and 1 - Dice together: they share the largest tensors.

    Args:
        logits: (P, H, h, w)
        target: (P, 1, h, w), 0 to 1.

    Returns:
        Focal loss and dice loss, (P, H) each.
    """
    probability = logits.sigmoid()
    wanted = target.expand_as(logits)  # no copy
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    weight = (1 - FOCAL_ALPHA) + (2 * FOCAL_ALPHA - 1) * target  # alpha on the object, 1 - alpha off it
    focal = (weight * (probability - wanted) ** FOCAL_GAMMA * cross_entropy).mean(dim=(-2, -1))
    overlap = (probability * wanted).sum(dim=(-2, -1))
    sizes = probability.sum(dim=(-2, -1)) + target.sum(dim=(-2, -1))
    return focal, 1 - (2 * overlap + 1) / (sizes + 1)


@torch.no_grad()
def mask_iou(masks: Tensor, target: Tensor) -> Tensor:
    """Compute the IoU (P, H) of bool `masks` (P, H, h, w) with bool `target` (P, 1, h, w)."""
    overlap, ours, theirs = (x.sum(dim=(-2, -1), dtype=torch.int32) for x in (masks & target, masks, target))
    union = ours + theirs - overlap
    return overlap / union.clamp(min=1)
