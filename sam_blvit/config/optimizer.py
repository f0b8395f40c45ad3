"""The optimiser, and how the work is divided."""

from __future__ import annotations

from dataclasses import dataclass

from sam_blvit.config.checks import check_at_least, check_finite, check_words
from sam_blvit.config.commands import DEVICES

PRECISIONS = ("auto", "fp32", "bf16")
SHARDINGS = ("ddp", "fsdp")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Schedule, learning rates and regularisation."""

    epochs: float = 10.0
    """Length of the schedule, in epochs."""
    schedule_steps: int | None = None
    """Length of the schedule in steps. Replaces epochs."""
    max_steps: int | None = None
    """Stop after this many steps without shortening the schedule. The run can be resumed with a higher number."""
    accumulate: int = 1
    """Batches whose gradients are accumulated for a step."""
    lr: float = 5e-4
    """Peak learning rate of efficiency blocks, routers, alpha, gamma and the outside vector."""
    encoder_lr: float = 6.25e-5
    """Peak learning rate of performance blocks and neck. 0 freezes them."""
    neck_lr: float | None = None
    """Peak learning rate of the neck and the upsampling after it, for models that start with untrained ones. Default:
    encoder_lr."""
    decoder_lr: float = 5e-5
    """Peak learning rate of the mask decoder. 0 freezes it."""
    prompt_lr: float = 0.0
    """Peak learning rate of the prompt encoder. 0 freezes it."""
    frozen_layers: int = 0
    """Number of performance blocks to freeze, counted from the first, together with patch and positional embeddings. In
    a dense model this saves their backward pass."""
    layer_decay: float = 1.0
    """Factor on the learning rate of performance blocks per layer below the last."""
    drop_path: float = 0.1
    """Probability of dropping the last layer's updates of an image. It decreases linearly to 0 at the first layer."""
    weight_decay: float = 0.1
    """Weight decay of matrices, except positional and other embeddings."""
    warmup_steps: int = 1000
    """Steps of linear warm-up, at most a tenth of the schedule."""
    clip_norm: float = 1.0
    """Largest gradient norm. Larger gradients are scaled down to it."""
    ema: float = 0.0
    """Decay per step of a moving average of the weights. If it is not 0, the average is validated and exported."""
    max_bad_steps: int = 10
    """The run stops after this many steps with a gradient that was not finite. Such steps are skipped."""

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
    """Images per batch of each process."""
    precision: str = "auto"
    """Precision of matrix products: fp32, bf16 (autocast; losses stay in fp32) or auto (bf16 if the device has it)."""
    workers: int = 2
    """Data-loading processes per training process. 0 loads data in the training process."""
    device: str = "auto"
    """auto, cpu, cuda or mps. auto uses the first available of cuda, mps and cpu."""

    def __post_init__(self) -> None:
        check_words(self, {"precision": PRECISIONS, "device": DEVICES})
        check_at_least(self, 1, "batch_size")
        check_at_least(self, 0, "workers")


@dataclass(frozen=True, kw_only=True)
class TrainingMachineConfig(MachineConfig):
    """How the work of a training run is divided."""

    sharding: str = "ddp"
    """ddp (every process holds the whole model) or fsdp (FSDP2: each holds a part; for vit_h)."""
    checkpoint_layers: bool = False
    """Activation checkpointing of every encoder layer and decoder round: less memory, but a third more time."""
    compile: bool = False
    """Compile the image encoder with torch.compile."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words(self, {"sharding": SHARDINGS})
