"""All settings as dataclasses: models, and the options of each command. Needs only the standard library, so that the
config of a checkpoint can be read anywhere."""

from sam_blvit.config.benchmark import ASPECTS, BENCHMARK_CHOICES, BenchmarkConfig
from sam_blvit.config.cascade import CascadeConfig
from sam_blvit.config.commands import (
    DEVICES,
    EverythingConfig,
    FlopsConfig,
    ImportConfig,
    SegmentConfig,
    WeightsConfig,
    check_seed,
)
from sam_blvit.config.data import SubsetConfig, TrainingDataConfig
from sam_blvit.config.distillation import SAME, InputConfig, KeptTeacherConfig, StudentConfig, TeacherConfig
from sam_blvit.config.evaluation import EVALUATION_CHOICES, CalibrationConfig, EvaluationConfig, ReportConfig
from sam_blvit.config.model import (
    COMPUTE_DTYPES,
    EMBEDDING_CHANNELS,
    PATCH_SIZE,
    SAM_WINDOW,
    THRESHOLDS,
    ModelConfig,
    check_keep_ratio,
)
from sam_blvit.config.models import MODELS, model_config, override
from sam_blvit.config.objective import LossConfig, PromptConfig
from sam_blvit.config.optimizer import MachineConfig, OptimizerConfig, TrainingMachineConfig
from sam_blvit.config.options import parse_options
from sam_blvit.config.parts import compose, kinds_of, parts_of, preset_of, settings_of
from sam_blvit.config.run import RunConfig, ValidationConfig
from sam_blvit.config.training import PRESETS, CacheConfig, FinetuneConfig

__all__ = [
    "ASPECTS",
    "BENCHMARK_CHOICES",
    "COMPUTE_DTYPES",
    "DEVICES",
    "EMBEDDING_CHANNELS",
    "EVALUATION_CHOICES",
    "MODELS",
    "PATCH_SIZE",
    "PRESETS",
    "SAME",
    "SAM_WINDOW",
    "THRESHOLDS",
    "BenchmarkConfig",
    "CacheConfig",
    "CalibrationConfig",
    "CascadeConfig",
    "EvaluationConfig",
    "EverythingConfig",
    "FinetuneConfig",
    "FlopsConfig",
    "ImportConfig",
    "InputConfig",
    "KeptTeacherConfig",
    "LossConfig",
    "MachineConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PromptConfig",
    "ReportConfig",
    "RunConfig",
    "SegmentConfig",
    "StudentConfig",
    "SubsetConfig",
    "TeacherConfig",
    "TrainingDataConfig",
    "TrainingMachineConfig",
    "ValidationConfig",
    "WeightsConfig",
    "check_keep_ratio",
    "check_seed",
    "compose",
    "kinds_of",
    "model_config",
    "override",
    "parse_options",
    "parts_of",
    "preset_of",
    "settings_of",
]
