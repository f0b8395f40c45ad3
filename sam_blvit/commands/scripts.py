"""Commands whose settings are one config dataclass: subcommands of `sam-blvit`, and the files in `tools/` and `eval/`.

Each command imports PyTorch when it is called, so help does without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    """Distil a SAM into a big.LITTLE one, or adapt or train one, on SA-1B or on your own photographs.

    Start from a recipe of the package (--recipe accelerate) or from your own SETTINGS.yaml as the first word. Flags
    override both.
    """
    from sam_blvit.commands.finetune import finetune as action

    action(config)


def cache_teacher(config: CacheConfig) -> None:
    """Compute a teacher's image embeddings once, for finetune --teacher-cache; resumes when started again."""
    from sam_blvit.train.teacher.cache import cache_teacher as action

    action(config)


def make_subset(config: SubsetConfig) -> None:
    """Draw a part of SA-1B, by default the paper's 2 %: writes train.tsv and validation.tsv, which finetune reads."""
    from sam_blvit.data.draw import draw_subset as action

    action(config)


def evaluate_lvis(config: EvaluationConfig) -> None:
    """Measure point and box mIoU on LVIS or COCO instances, or the LVIS AP of masks prompted by boxes."""
    from sam_blvit.evaluate.run import evaluate_lvis as action

    action(config)


def evaluate_coco(config: EvaluationConfig) -> None:
    """Measure the COCO AP of masks prompted by a detector's boxes or the annotated ones, or point and box mIoU."""
    from sam_blvit.evaluate.run import evaluate_coco as action

    action(config)


def calibrate(config: CalibrationConfig) -> None:
    """Find the protocol that reproduces the paper's six numbers of the original SAMs, and write it to a file."""
    from sam_blvit.evaluate.calibrate import calibrate as action

    action(config)


def report(config: ReportConfig) -> None:
    """Join evaluation runs into one table on screen and one self-contained page, report.html."""
    from sam_blvit.evaluate.report.page import report as action

    action(config)


def run_cascade(config: CascadeConfig) -> None:
    """Choose thresholds of a Little-Big cascade of classifiers, and test them on held-out samples."""
    from sam_blvit.cascade.command import measure_cascade as action

    action(config)


COMMANDS: dict[str, Callable[[Any], None]] = {
    "finetune": finetune,
    "cache-teacher": cache_teacher,
    "subset": make_subset,
    "evaluate-lvis": evaluate_lvis,
    "evaluate-coco": evaluate_coco,
    "calibrate": calibrate,
    "report": report,
    "cascade": run_cascade,
}
"""The commands by their names as subcommands of `sam-blvit`."""
