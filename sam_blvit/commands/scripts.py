"""What the files in `tools/` and `eval/` run: each command imports PyTorch when it is called, help does without."""

from __future__ import annotations

from sam_blvit.config import (
    CacheConfig,
    CalibrationConfig,
    CascadeConfig,
    EvaluationConfig,
    FinetuneConfig,
    ReportConfig,
    SubsetConfig,
)


def finetune(config: FinetuneConfig) -> None:
    """`tools/finetune.py`."""
    from sam_blvit.commands.finetune import finetune as action

    action(config)


def cache_teacher(config: CacheConfig) -> None:
    """`tools/cache_teacher.py`."""
    from sam_blvit.train.teacher.cache import cache_teacher as action

    action(config)


def make_subset(config: SubsetConfig) -> None:
    """`tools/make_subset.py`."""
    from sam_blvit.data.draw import draw_subset as action

    action(config)


def evaluate_lvis(config: EvaluationConfig) -> None:
    """`eval/run_lvis.py`."""
    from sam_blvit.evaluate.run import evaluate_lvis as action

    action(config)


def evaluate_coco(config: EvaluationConfig) -> None:
    """`eval/run_coco.py`."""
    from sam_blvit.evaluate.run import evaluate_coco as action

    action(config)


def calibrate(config: CalibrationConfig) -> None:
    """`eval/calibrate.py`."""
    from sam_blvit.evaluate.calibrate import calibrate as action

    action(config)


def report(config: ReportConfig) -> None:
    """`eval/report.py`."""
    from sam_blvit.evaluate.report.page import report as action

    action(config)


def run_cascade(config: CascadeConfig) -> None:
    """`eval/run_cascade.py`."""
    from sam_blvit.cascade.command import measure_cascade as action

    action(config)
