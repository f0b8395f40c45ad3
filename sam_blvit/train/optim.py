"""Optimiser and schedule: AdamW, linear warm-up, cosine decay to one hundredth."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from sam_blvit.checkpoint.load import is_big_little
from sam_blvit.config import FinetuneConfig
from sam_blvit.model.sam import Sam

LAST_SHARE = 0.01
"""Final learning rate, as a share of the peak."""
WARMUP_SHARE = 0.1
"""Largest share of the schedule used for warm-up."""
NECK = ("image_encoder.neck.", "image_encoder.laterals.", "image_encoder.enlarge.")
UNDECAYED = (
    "pos_embed",
    "rel_pos",
    "no_mask_embed",
    "not_a_point_embed",
    "point_embeddings",
    "iou_token",
    "mask_tokens",
)
"""Parts of the names of matrices without weight decay: positions and embeddings."""


def freeze(sam: Sam, config: FinetuneConfig) -> None:
    """Freeze the parameters of `sam` that `config` does not train. Call this before wrapping in DDP or FSDP2."""
    for name, parameter in sam.named_parameters():
        parameter.requires_grad_(_learning_rate(name, config, sam.config.layers) > 0)


def optimizer_for(sam: Sam, config: FinetuneConfig) -> torch.optim.AdamW:
    """Build AdamW over the unfrozen parameters of `sam`, grouped by learning rate and weight decay."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in sam.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.dim() > 1 and not any(part in name for part in UNDECAYED)
            rate = _learning_rate(name, config, sam.config.layers)
            groups.setdefault((rate, config.optimizer.weight_decay if decayed else 0.0), []).append(parameter)
    if not groups:
        raise ValueError("every learning rate is 0: nothing to train; raise one of them")
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    _begin_moments(optimizer)
    return optimizer


def _begin_moments(optimizer: torch.optim.AdamW) -> None:
    """Create the moments of every parameter before the first step.

    Checkpoints then also contain those of parameters that are unused at first, as the decoder is in `kd_only_steps`.
    """
    for group in optimizer.param_groups:
        for value in group["params"]:
            optimizer.state[value] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(value),
                "exp_avg_sq": torch.zeros_like(value),
            }


def _learning_rate(name: str, config: FinetuneConfig, layers: int) -> float:
    optimizer = config.optimizer
    if is_big_little(name):
        return optimizer.lr
    if config.student.freeze != "none" or (
        optimizer.frozen_layers and _depth(name, layers + 1) <= optimizer.frozen_layers
    ):
        return 0.0
    rates = {
        "image_encoder": optimizer.encoder_lr,
        "mask_decoder": optimizer.decoder_lr,
        "prompt_encoder": optimizer.prompt_lr,
    }
    rate = rates[name.split(".")[0]]
    if optimizer.neck_lr is not None and name.startswith(NECK):
        rate = optimizer.neck_lr
    return rate * optimizer.layer_decay ** (layers - _depth(name, layers))


def _depth(name: str, layers: int) -> int:
    """Return the layer of parameter `name`, from 1. Patches and positions: 0. The neck and later: `layers`."""
    if block := re.match(r"image_encoder\.blocks\.(\d+)\.", name):
        return int(block.group(1)) + 1
    return 0 if name.startswith(("image_encoder.patch_embed", "image_encoder.pos_embed")) else layers


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set the learning rate of every group to `share` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share


def schedule(position: float, *, length: float, warmup: float, stride: float = 1) -> float:
    """Return the share of the peak learning rate. All arguments are in steps, or all in samples.

    Args:
        position: Position in the schedule, from 0.
        length: Length of the schedule.
        warmup: Length of the warm-up; at most a tenth of `length` is used.
        stride: Distance between the positions of two steps.
    """
    warmup = min(warmup, WARMUP_SHARE * length)
    if position + stride <= warmup:
        return (position + stride) / warmup
    progress = min(1.0, max(0.0, position - warmup) / max(1, length - warmup))
    return LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))


class MovingAverage:
    """Exponential moving average of the trained parameters of a model."""

    def __init__(self, sam: Sam, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in sam.named_parameters() if value.requires_grad
        }

    @torch.no_grad()
    def update(self, sam: Sam) -> None:
        """Update the average with the current parameters."""
        parameters = dict(sam.named_parameters())
        for name, average in self.values.items():
            average.lerp_(parameters[name], 1 - self.decay)
