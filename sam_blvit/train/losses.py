"""The training loss: SAM's mask loss plus feature distillation (paper, section 3.3).

Shapes:
    P  prompted masks of an image    H  masks predicted for a prompt (4: one for clear prompts, three for unclear)
    L  side of a mask at the resolution of the loss, pixels    G  tokens along a side    B  images
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
FOCAL_WEIGHT = 20.0


@dataclass(frozen=True)
class MaskLoss:
    """Loss of each prompted mask and its parts, (P,)."""

    total: Tensor
    focal: Tensor
    dice: Tensor
    iou: Tensor


def distillation_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid tokens of 1 - cosine(student, teacher), 0 to 2.

    `student`, `teacher` (B, 256, G, G) image embeddings; `valid` (B, G, G), 1 where the photograph is.
    The paper writes the cosine itself, which minimised would drive features apart; its text says closer.
    """
    cosine = F.cosine_similarity(student.float(), teacher.float().detach(), dim=1, eps=1e-6)  # (B, G, G)
    return ((1 - cosine) * valid).sum() / valid.sum()


def mask_loss(
    logits: Tensor, predicted_iou: Tensor, target: Tensor, *, valid: Tensor, single: Tensor, multi: Tensor
) -> MaskLoss:
    """20 focal + dice + squared error of the predicted IoU, for the head a prompt is answered by.

    `logits` (P, 4, L, L), `predicted_iou` (P, 4), `target` (P, L, L) bool, `valid` (L, L) bool.
    `single` (P,): weight of the first head, for clear prompts; `multi` (P,): weight of the best of the other three.
    The three heads compete by 20 focal + dice, and only the winner's mask is trained (SAM, appendix A). The IoU of all
    three is: SAM trains the winner's alone, but then a head that seldom wins may predict what it likes, and whoever
    keeps the mask of highest predicted IoU gets that head's (SAM 2 trains all, too).
    """
    logits, predicted_iou = logits.float(), predicted_iou.float()
    wanted = target[:, None].expand_as(logits).float()
    focal = focal_loss(logits, wanted, valid)
    dice = dice_loss(logits, wanted, valid)
    error = (predicted_iou - mask_iou(logits > 0, target[:, None], valid)) ** 2
    mask_term = FOCAL_WEIGHT * focal + dice
    best = 1 + mask_term[:, 1:].argmin(dim=1, keepdim=True)

    def answered(term: Tensor) -> Tensor:
        return single * term[:, 0] + multi * term.gather(1, best)[:, 0]

    iou = single * error[:, 0] + multi * error[:, 1:].mean(dim=1)
    return MaskLoss(total=answered(mask_term) + iou, focal=answered(focal), dice=answered(dice), iou=iou)


def focal_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Focal loss (alpha .25, gamma 2) of `logits` (P, H, L, L), mean over `valid` (L, L) pixels: (P, H)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    wrong = (logits.sigmoid() - target).abs()  # 1 - p of the true class
    weight = FOCAL_ALPHA * target + (1 - FOCAL_ALPHA) * (1 - target)
    return (weight * wrong**FOCAL_GAMMA * cross_entropy * valid).sum(dim=(-2, -1)) / valid.sum()


def dice_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1 - Dice of `logits` (P, H, L, L) inside `valid` (L, L): (P, H)."""
    probability = logits.sigmoid() * valid
    overlap = (probability * target).sum(dim=(-2, -1))
    return 1 - (2 * overlap + 1) / (probability.sum(dim=(-2, -1)) + (target * valid).sum(dim=(-2, -1)) + 1)


@torch.no_grad()
def mask_iou(masks: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """IoU of bool `masks` (P, H, L, L) with bool `target` (P, 1, L, L) inside `valid` (L, L): (P, H)."""
    masks, target = masks & valid, target & valid
    union = (masks | target).sum(dim=(-2, -1)).clamp(min=1)
    return (masks & target).sum(dim=(-2, -1)) / union
