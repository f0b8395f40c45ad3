"""The two models of a training run: the student, and the teacher whose image embeddings it is to match."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_blvit.config.checks import check_at_least, check_words
from sam_blvit.config.model import ModelConfig, check_keep_ratio
from sam_blvit.config.models import model_config
from sam_blvit.config.options import parse_options

SAME = "same"
"""As a teacher's name: the dense model of the size of the registry's student, whatever options make of that."""
STUDENT_CHOICES = {"warm_start": ("none", "layerwise"), "freeze": ("none", "performance")}
"""Settings of a student, and the words they take."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The teacher."""

    teacher: Path | None = None
    """The SAM whose image embeddings are to be matched: a checkpoint, or any exported encoder (.onnx). It sees each
    photograph at its own input size. Default: none, the mask loss alone."""
    teacher_model: str = SAME
    """Registry name of the teacher; same: the dense model of the size of `model`. No effect on an exported one."""
    teacher_decoder: Path | None = None
    """The exported decoder (.onnx) of an exported teacher. Default: the file beside it with "decoder" for "encoder"."""

    def required(self) -> Path:
        """The teacher's file, where nothing can be done without one.

        Raises:
            ValueError: if the teacher is not given.
        """
        if self.teacher is None:
            raise ValueError("teacher is not given: name the checkpoint of the SAM whose embeddings are to be kept")
        return self.teacher


@dataclass(frozen=True, kw_only=True)
class KeptTeacherConfig(TeacherConfig):
    """The teacher, or the embeddings that were kept of it."""

    teacher_cache: Path | None = None
    """Directory that tools/cache_teacher.py wrote with this teacher. Default: the teacher runs beside the student."""
    mirrored_cache: Path | None = None
    """Directory that tools/cache_teacher.py --mirrored wrote, needed beside teacher_cache when flip is set."""


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """The student, as far as its teacher depends on it."""

    model: str = "blvit_s_t"
    """Registry name of the model to train."""
    image_size: int | None = None
    """Longest side of the input, pixels. Default: the model's own."""


@dataclass(frozen=True, kw_only=True)
class StudentConfig(InputConfig):
    """The model to train, and what it starts from."""

    checkpoint: Path | None = None
    """Weights to start from: ours or a plain SAM .pth. Default: the teacher's; without a teacher, fresh ones."""
    base: Path | None = None
    """The SAM that `checkpoint` was trained for, if that is an adapter."""
    window: int | None = None
    """Side of a window, tokens; 14 pads as SAM does, and makes keep ratio 1 SAM itself. Default: the model's own."""
    options: tuple[str, ...] = ()
    """Fields of the model to replace, NAME=VALUE each, as in primary_keys=pooled or dim=128; recorded in the
    checkpoint."""
    freeze: str = "none"
    """performance: train efficiency blocks, routers, alpha and gamma alone. The SAM inside stays what it was, bit for
    bit, and an adapter is saved instead of a whole model."""
    warm_start: str = "none"
    """layerwise: before anything else, each efficiency block is regressed onto its performance block's update."""
    warm_start_images: int = 64
    """Photographs that the layerwise warm start looks at."""
    warm_start_steps: int = 200
    """Steps of the layerwise warm start for each efficiency block."""
    keep_ratios: tuple[float, ...] = (0.0, 0.125, 0.25, 0.5, 1.0)
    """Keep ratios to draw from, one a step; naming one twice doubles its share. Default: the preset's."""

    def __post_init__(self) -> None:
        check_words(self, STUDENT_CHOICES)
        check_at_least(self, 1, "window", "warm_start_images", "warm_start_steps")
        if not self.keep_ratios:
            raise ValueError("keep_ratios is empty; the paper's is 0.25")
        for ratio in self.keep_ratios:
            check_keep_ratio(ratio)
        if self.base is not None and self.checkpoint is None:
            raise ValueError(f"base={self.base}: no effect without an adapter above it; name that with checkpoint")
        self._check_model(self.model_config)

    @property
    def overrides(self) -> dict[str, object]:
        """Fields of the model that this run replaces."""
        given = {"window": self.window, "image_size": self.image_size}
        return {name: value for name, value in given.items() if value is not None} | parse_options(self.options)

    @property
    def model_config(self) -> ModelConfig:
        """The model with the fields replaced that this run replaces."""
        return model_config(self.model, **self.overrides)

    @property
    def adapted(self) -> list[str]:
        """Settings that start from a trained SAM."""
        return [name for name in STUDENT_CHOICES if getattr(self, name) != "none"]

    def _check_model(self, model: ModelConfig) -> None:
        if self.warm_start != "none" and model.routed and not model.little_layers:
            raise ValueError(
                f"warm_start={self.warm_start}: no effect, the model has no efficiency blocks; leave it out"
            )
        if self.window is not None and self.window > model.grid:
            raise ValueError(
                f"window={self.window} is more than the {model.grid} tokens along a side of {self.model} "
                f"at image_size={model.image_size}; name a smaller window or a larger image_size"
            )
