"""The models of a training run: the student, and the teacher whose image embeddings it learns to match."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_blvit.config.checks import check_at_least, check_words
from sam_blvit.config.model import ModelConfig, check_keep_ratio
from sam_blvit.config.models import model_config
from sam_blvit.config.options import parse_options

SAME = "same"
"""Value of `teacher_model`: the dense registry model of the same size as `model`, before `options` are applied."""
STUDENT_CHOICES = {"warm_start": ("none", "layerwise"), "freeze": ("none", "performance")}
"""Settings of a student, and the words allowed in each."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The teacher."""

    teacher: Path | None = None
    """The SAM whose image embeddings the student learns to match: a checkpoint or any exported encoder (.onnx). It sees
    each photograph at its own input size. Default: no teacher, only the mask loss."""
    teacher_model: str = SAME
    """Registry name of the teacher, or same: the dense model of the same size as `model`. No effect if the teacher is
    exported."""
    teacher_decoder: Path | None = None
    """The exported decoder (.onnx) of an exported teacher. Default: the file of the same name with "decoder" instead of
    "encoder"."""

    def required(self) -> Path:
        """Return the teacher's file.

        Raises:
            ValueError: if the teacher is not given.
        """
        if self.teacher is None:
            raise ValueError("teacher is not given: name the checkpoint of the SAM whose embeddings are to be cached")
        return self.teacher


@dataclass(frozen=True, kw_only=True)
class KeptTeacherConfig(TeacherConfig):
    """The teacher, or its cached embeddings."""

    teacher_cache: Path | None = None
    """Directory that tools/cache_teacher.py wrote with this teacher. Default: the teacher runs during training."""
    mirrored_cache: Path | None = None
    """Directory that tools/cache_teacher.py --mirrored wrote. Required if both teacher_cache and flip are set."""


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """The settings of the student that its teacher depends on."""

    model: str = "blvit_s_t"
    """Registry name of the model to train."""
    image_size: int | None = None
    """Longest side of the input, pixels. Default: the model's own."""


@dataclass(frozen=True, kw_only=True)
class StudentConfig(InputConfig):
    """The model to train, and its initial weights."""

    checkpoint: Path | None = None
    """Initial weights: a checkpoint of this package or a plain SAM .pth. Default: the teacher's weights; without a
    teacher, random ones."""
    base: Path | None = None
    """The SAM that the adapter was trained for, if `checkpoint` is an adapter."""
    window: int | None = None
    """Side of a window, tokens. 14 pads as SAM does, and keep ratio 1 is then SAM itself. Default: the model's own."""
    options: tuple[str, ...] = ()
    """Fields of the model to replace, each NAME=VALUE, as in primary_keys=pooled or dim=128. They are stored in the
    checkpoint."""
    freeze: str = "none"
    """none, or performance: train only efficiency blocks, routers, alpha and gamma. SAM's weights stay bit for bit the
    same, and an adapter is saved instead of a whole model."""
    warm_start: str = "none"
    """none, or layerwise: before training, fit each efficiency block to the updates of its performance block."""
    warm_start_images: int = 64
    """Photographs used by the layerwise warm start."""
    warm_start_steps: int = 200
    """Steps of the layerwise warm start per efficiency block."""
    keep_ratios: tuple[float, ...] = (0.0, 0.125, 0.25, 0.5, 1.0)
    """Keep ratios to draw from, one per step. A ratio named twice is drawn twice as often."""

    def __post_init__(self) -> None:
        check_words(self, STUDENT_CHOICES)
        check_at_least(self, 1, "window", "warm_start_images", "warm_start_steps")
        if not self.keep_ratios:
            raise ValueError("keep_ratios is empty; the paper's is 0.25")
        for ratio in self.keep_ratios:
            check_keep_ratio(ratio)
        if self.base is not None and self.checkpoint is None:
            raise ValueError(f"base={self.base}: no effect without an adapter; name the adapter with checkpoint")
        self._check_model(self.model_config)

    @property
    def overrides(self) -> dict[str, object]:
        """The fields of the registry model that this run replaces, by name."""
        given = {"window": self.window, "image_size": self.image_size}
        return {name: value for name, value in given.items() if value is not None} | parse_options(self.options)

    @property
    def model_config(self) -> ModelConfig:
        """The config of the model to train."""
        return model_config(self.model, **self.overrides)

    @property
    def adapted(self) -> list[str]:
        """Names of the given settings that require a trained SAM to start from."""
        return [name for name in STUDENT_CHOICES if getattr(self, name) != "none"]

    def _check_model(self, model: ModelConfig) -> None:
        if self.warm_start != "none" and model.routed and not model.little_layers:
            raise ValueError(
                f"warm_start={self.warm_start}: no effect, the model has no efficiency blocks; leave it out"
            )
        if self.window is not None and self.window > model.grid:
            raise ValueError(
                f"window={self.window} exceeds the {model.grid} tokens along a side of {self.model} "
                f"at image_size={model.image_size}; choose a smaller window or a larger image_size"
            )
