"""Every setting as data: models, and what each command takes. Standard library only, so a checkpoint's config reads
anywhere."""

from sam_blvit.config.benchmark import ASPECTS, BENCHMARK_CHOICES, BenchmarkConfig
from sam_blvit.config.commands import (
    DEVICES,
    EverythingConfig,
    FlopsConfig,
    ImportConfig,
    SegmentConfig,
    WeightsConfig,
    check_seed,
)
from sam_blvit.config.evaluation import EVALUATION_CHOICES, CalibrationConfig, EvaluationConfig, ReportConfig
from sam_blvit.config.model import (
    COMPUTE_DTYPES,
    EMBEDDING_CHANNELS,
    MODELS,
    PATCH_SIZE,
    SAM_WINDOW,
    THRESHOLDS,
    ModelConfig,
    check_keep_ratio,
    model_config,
    override,
)
from sam_blvit.config.options import parse_options
from sam_blvit.config.training import (
    PRESETS,
    SAME,
    CacheConfig,
    FinetuneConfig,
    SubsetConfig,
    TeacherConfig,
    TrainingDataConfig,
)

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
    "EvaluationConfig",
    "EverythingConfig",
    "FinetuneConfig",
    "FlopsConfig",
    "ImportConfig",
    "ModelConfig",
    "ReportConfig",
    "SegmentConfig",
    "SubsetConfig",
    "TeacherConfig",
    "TrainingDataConfig",
    "WeightsConfig",
    "check_keep_ratio",
    "check_seed",
    "model_config",
    "override",
    "parse_options",
]
