"""What is trained, how fast, and the schedule: AdamW, linear warm-up, cosine to one hundredth."""

from __future__ import annotations

import math
from typing import Any

import torch

from sam_blvit.checkpoint import is_big_little
from sam_blvit.config import FinetuneConfig
from sam_blvit.model.sam import Sam

LAST_SHARE = 0.01
"""Learning rate at the end, as a share of its peak."""
UNDECAYED = ("pos_embed", "rel_pos", "no_mask_embed", "not_a_point_embed", "point_embeddings", "token")
"""Parts of names of matrices that take no weight decay: positions and embeddings."""


def parameter_groups(sam: Sam, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Parameters of `sam` by learning rate and weight decay; those of rate 0 are frozen and in no group."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in sam.named_parameters():
        rate = _learning_rate(name, config)
        parameter.requires_grad_(rate > 0)
        if rate > 0:
            decayed = parameter.dim() > 1 and not any(part in name for part in UNDECAYED)
            groups.setdefault((rate, config.weight_decay if decayed else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _learning_rate(name: str, config: FinetuneConfig) -> float:
    if is_big_little(name):
        return config.lr
    part = name.split(".")[0]
    return {
        "image_encoder": config.encoder_lr,
        "mask_decoder": config.decoder_lr,
        "prompt_encoder": config.prompt_lr,
    }[part]


def schedule(step: int, config: FinetuneConfig) -> float:
    """Share of the peak learning rate at `step`, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))
