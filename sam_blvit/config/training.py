"""Options of tools/finetune.py and tools/cache_teacher.py: their parts, and checks across parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sam_blvit.config.checks import check_at_least, check_words
from sam_blvit.config.data import TrainingDataConfig
from sam_blvit.config.distillation import InputConfig, KeptTeacherConfig, StudentConfig, TeacherConfig
from sam_blvit.config.objective import LossConfig, PromptConfig
from sam_blvit.config.optimizer import MachineConfig, OptimizerConfig, TrainingMachineConfig
from sam_blvit.config.parts import settings_of
from sam_blvit.config.run import RunConfig, ValidationConfig

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"batch_size": 1, "encoder_lr": 5e-4, "decoder_lr": 5e-4, "drop_path": 0.0, "keep_ratios": (0.25,)},
}
"""Interpretations of the paper's one line on optimisation, for 8 GPUs, as differences from the defaults. `paper` is
literal: a global batch of 8 and one learning rate. `default` has 8 images per GPU and lower rates for pretrained
parts."""
OF_TEACHER = (
    "teacher_cache",
    "mirrored_cache",
    "teacher_model",
    "teacher_decoder",
    "distillation_layers",
    "distillation_mse",
    "kd_only_steps",
)
"""Settings that have no effect without a teacher."""


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Options of tools/cache_teacher.py, which writes a teacher's embeddings once for many runs."""

    data: TrainingDataConfig
    teacher: TeacherConfig
    student: InputConfig = field(default_factory=InputConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
    output: Path
    """Directory of the shards. Complete shards are kept if the command is started again."""
    mirrored: bool = False
    """Embed each photograph mirrored, for mirrored_cache. Needs its own output directory."""
    shard_images: int = 500
    """Images per shard. An image takes 2 MiB at 1024 px."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "shard_images")
        self.teacher.required()


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One training run: distillation from a teacher SAM plus the mask loss, or only the mask loss."""

    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    """Flat settings of each preset."""
    preset: str = "default"
    """default or paper. paper changes these defaults: batch_size 1, encoder_lr and decoder_lr 5e-4, drop_path 0,
    keep_ratios 0.25. Settings that are given explicitly take precedence."""
    data: TrainingDataConfig
    teacher: KeptTeacherConfig = field(default_factory=KeptTeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    machine: TrainingMachineConfig = field(default_factory=TrainingMachineConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    run: RunConfig

    def __post_init__(self) -> None:
        check_words(self, {"preset": tuple(PRESETS)})
        self._check_validation()
        self._check_teacher()
        self._check_student()

    @property
    def masks_per_image(self) -> int:
        """The largest number of masks drawn per image."""
        return self.prompts.masks_per_image or max(16, 64 // self.machine.batch_size)

    @property
    def validates(self) -> bool:
        """Whether validation data are given."""
        named = (self.validation.val_manifest, self.validation.val_annotations)
        return bool(self.data.holdout) or any(path is not None for path in named)

    def _check_validation(self) -> None:
        data, validation = self.data, self.validation
        if data.annotations is not None and validation.val_manifest is not None:
            raise ValueError(
                f"val_manifest={validation.val_manifest} lists photographs of SA-1B; with annotations, use holdout"
            )
        if data.holdout and validation.val_manifest is not None:
            raise ValueError(f"holdout={data.holdout} and val_manifest={validation.val_manifest}: choose one of them")
        if validation.validate_every and not self.validates:
            raise ValueError(
                f"validate_every={validation.validate_every}: no validation data; add holdout, val_manifest or "
                "val_annotations"
            )

    def _check_teacher(self) -> None:
        teacher, layers = self.teacher, self.losses.distillation_layers
        given = settings_of(teacher) | settings_of(self.losses)
        usual = settings_of(KeptTeacherConfig()) | settings_of(LossConfig())
        idle = [name for name in OF_TEACHER if given[name] != usual[name]]
        if teacher.teacher is None and idle:
            raise ValueError(f"{', '.join(idle)}: no effect without a teacher; name its checkpoint with teacher")
        if teacher.teacher is not None and teacher.teacher.suffix == ".onnx" and layers:
            raise ValueError("an exported teacher has only final embeddings; leave out distillation_layers")
        if teacher.teacher_cache is not None and self.prompts.smallest_crop < 1:
            raise ValueError("teacher_cache holds embeddings of whole photographs; leave out smallest_crop")
        if teacher.teacher_cache is not None and self.prompts.flip and teacher.mirrored_cache is None:
            raise ValueError(
                "flip: teacher_cache holds embeddings of unmirrored photographs; write another cache with --mirrored "
                "and name it with mirrored_cache, or leave out flip"
            )
        if teacher.mirrored_cache is not None and (teacher.teacher_cache is None or not self.prompts.flip):
            raise ValueError("mirrored_cache: no effect without teacher_cache and flip; name both, or leave it out")
        if teacher.teacher_cache is not None and layers:
            raise ValueError("teacher_cache holds only final embeddings; leave out distillation_layers")

    def _check_student(self) -> None:
        student, listwise = self.student, self.losses.listwise_weight
        model = student.model_config
        if listwise and self.machine.sharding == "fsdp":
            raise ValueError(
                f"listwise_weight={listwise} needs whole layers, which sharding=fsdp divides among processes; "
                "use sharding=ddp"
            )
        if not model.routed and (idle := [*student.adapted, *(["listwise_weight"] if listwise else [])]):
            raise ValueError(
                f"{', '.join(idle)}: no effect, {student.model} is dense; name a big.LITTLE model with model"
            )
        if listwise and not model.router_learns:
            raise ValueError(f"listwise_weight={listwise}: no effect with router={model.router}")
        if self.optimizer.frozen_layers > model.layers:
            raise ValueError(f"frozen_layers={self.optimizer.frozen_layers}: {student.model} has {model.layers} layers")
        if student.adapted and self.teacher.teacher is None and student.checkpoint is None:
            raise ValueError(
                f"{', '.join(student.adapted)}: needs a trained SAM to start from; name teacher or checkpoint"
            )
