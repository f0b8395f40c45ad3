"""What is trained, how fast, and the schedule: AdamW, linear warm-up, cosine to one hundredth."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from sam_blvit.checkpoint.load import is_big_little
from sam_blvit.config import FinetuneConfig
from sam_blvit.model.sam import Sam

LAST_SHARE = 0.01
"""Learning rate at the end, as a share of its peak."""
WARMUP_SHARE = 0.1
"""Most of the schedule that warm-up takes."""
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
"""Parts of names of matrices that take no weight decay: positions and embeddings."""


def freeze(sam: Sam, config: FinetuneConfig) -> None:
    """Freeze the parameters of `sam` that `config` does not train. To be done before DDP or FSDP2 looks at them."""
    for name, parameter in sam.named_parameters():
        parameter.requires_grad_(_learning_rate(name, config, sam.config.layers) > 0)


def optimizer_for(sam: Sam, config: FinetuneConfig) -> torch.optim.AdamW:
    """AdamW over the parameters of `sam` that are not frozen, by learning rate and weight decay."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in sam.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.dim() > 1 and not any(part in name for part in UNDECAYED)
            rate = _learning_rate(name, config, sam.config.layers)
            groups.setdefault((rate, config.optimizer.weight_decay if decayed else 0.0), []).append(parameter)
    if not groups:
        raise ValueError("every learning rate is 0: there is nothing to train")
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
    """Give every parameter its moments before the first step: so a checkpoint has those of parameters that are idle at
    first, as the decoder's are in `kd_only_steps`."""
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
    """Layers up to and with the one that parameter `name` belongs to: 0 for patches and positions, all for the neck
    and what follows."""
    if block := re.match(r"image_encoder\.blocks\.(\d+)\.", name):
        return int(block.group(1)) + 1
    return 0 if name.startswith(("image_encoder.patch_embed", "image_encoder.pos_embed")) else layers


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Every group's learning rate, as a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share


def schedule(position: float, *, length: float, warmup: float, stride: float = 1) -> float:
    """Share of the peak learning rate at `position` of `length`, counted from 0, in steps or in samples.

    `stride`: from one step's position to the next's. Warm-up takes `warmup`, at most a tenth of `length`.
    """
    warmup = min(warmup, WARMUP_SHARE * length)
    if position + stride <= warmup:
        return (position + stride) / warmup
    progress = min(1.0, max(0.0, position - warmup) / max(1, length - warmup))
    return LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))


class MovingAverage:
    """Exponential moving average of the trained parameters of `sam`, by name."""

    def __init__(self, sam: Sam, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in sam.named_parameters() if value.requires_grad
        }

    @torch.no_grad()
    def update(self, sam: Sam) -> None:
        """Take the parameters as they are now into the average."""
        parameters = dict(sam.named_parameters())
        for name, average in self.values.items():
            average.lerp_(parameters[name], 1 - self.decay)
