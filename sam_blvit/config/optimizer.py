"""How the optimiser steps, and on what machine."""

from __future__ import annotations

from dataclasses import dataclass

from sam_blvit.config.checks import check_at_least, check_finite, check_words
from sam_blvit.config.commands import DEVICES

PRECISIONS = ("auto", "fp32", "bf16")
SHARDINGS = ("ddp", "fsdp")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Length of the schedule, learning rates and regularisation."""

    epochs: float = 10.0
    """Times that every photograph is seen: the schedule's length."""
    schedule_steps: int | None = None
    """The schedule's length in steps, instead of epochs."""
    max_steps: int | None = None
    """Steps after which the run stops, wherever its schedule stands; started again with more it goes on."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    lr: float = 5e-4
    """Peak learning rate of efficiency blocks, routers, alpha, gamma and the outside vector. Default: the preset's."""
    encoder_lr: float = 6.25e-5
    """Peak learning rate of performance blocks and neck; 0 freezes them. Default: the preset's."""
    neck_lr: float | None = None
    """Peak learning rate of neck and enlargement, where they start untrained. Default: encoder_lr."""
    decoder_lr: float = 5e-5
    """Peak learning rate of the mask decoder; 0 freezes it. Default: the preset's."""
    prompt_lr: float = 0.0
    """Peak learning rate of the prompt encoder; 0 freezes it."""
    frozen_layers: int = 0
    """Performance blocks from the first on that stay as they are, with patches and positions: a dense model saves their
    backward pass."""
    layer_decay: float = 1.0
    """Factor on the rate of performance blocks for each layer below the last."""
    drop_path: float = 0.1
    """Chance that the last layer's update of an image is dropped, falling to 0 at the first. Default: the preset's."""
    weight_decay: float = 0.1
    """Weight decay of matrices other than positions and embeddings."""
    warmup_steps: int = 1000
    """Steps of linear warm-up; at most a tenth of the schedule."""
    clip_norm: float = 1.0
    """Gradient norm above which gradients are scaled down."""
    ema: float = 0.0
    """Decay a step of a moving average of the weights, which is what is validated and saved; 0 keeps none."""
    max_bad_steps: int = 10
    """Steps skipped for a gradient that is no number after which the run ends."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "max_steps", "schedule_steps", "accumulate", "max_bad_steps")
        check_at_least(self, 0, "lr", "encoder_lr", "neck_lr", "decoder_lr", "prompt_lr", "weight_decay")
        check_at_least(self, 0, "warmup_steps", "frozen_layers")
        if not self.epochs > 0:
            raise ValueError(f"epochs={self.epochs} is not a positive number; the paper's is 10")
        if self.clip_norm <= 0:
            raise ValueError(f"clip_norm={self.clip_norm} is not a positive number")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} is outside (0, 1]")
        for name in ("drop_path", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is outside [0, 1)")
        check_finite(self)


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """How the work is divided."""

    batch_size: int = 8
    """Images a process takes at once. Default: the preset's."""
    precision: str = "auto"
    """Of matrix products: fp32, bf16 (autocast; losses stay in fp32), or auto: bf16 where the processor has it."""
    workers: int = 2
    """Processes that read data, for each process that computes; 0 reads where it computes."""
    device: str = "auto"
    """auto, cpu, cuda or mps. auto takes the first of cuda, mps, cpu that there is."""

    def __post_init__(self) -> None:
        check_words(self, {"precision": PRECISIONS, "device": DEVICES})
        check_at_least(self, 1, "batch_size")
        check_at_least(self, 0, "workers")


@dataclass(frozen=True, kw_only=True)
class TrainingMachineConfig(MachineConfig):
    """How the work of a training run is divided."""

    sharding: str = "ddp"
    """ddp (every process holds the model) or fsdp (FSDP2: each holds a part; for vit_h)."""
    checkpoint_layers: bool = False
    """Activation checkpointing of every encoder layer and decoder round: less memory, a third more time."""
    compile: bool = False
    """torch.compile the image encoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words(self, {"sharding": SHARDINGS})
