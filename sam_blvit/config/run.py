"""Validation, output and logging of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_blvit.config.checks import check_at_least, check_words

RESUMES = ("auto", "never")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Validation data and schedule."""

    validate_every: int = 0
    """Steps between validations. 0 validates only at the end. Requires holdout, val_manifest or val_annotations."""
    val_manifest: Path | None = None
    """List of the photographs of `data` for validation, written by tools/make_subset.py."""
    val_annotations: Path | None = None
    """Annotations for validation, in LVIS or COCO format."""
    val_images: Path | None = None
    """Directory of the photographs of val_annotations."""
    val_limit: int = 500
    """Largest number of validation photographs of each kind."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "val_limit")
        check_at_least(self, 0, "validate_every")
        if self.val_images is not None and self.val_annotations is None:
            raise ValueError(f"val_images={self.val_images}: no effect without val_annotations; add it")
        if self.val_annotations is not None and self.val_images is None:
            raise ValueError(f"val_annotations={self.val_annotations} needs its photographs; add val_images")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Output of a run, intervals of saving and logging, and checks to run instead of training."""

    output: Path
    """Directory of the run."""
    resume: str = "auto"
    """auto resumes from the newest checkpoint in `output` that loads, if there is one. never starts from scratch, and
    fails if `output` contains a run."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between log lines in log.jsonl."""
    picture_every: int = 0
    """Steps between pictures of masks and routing. 0: no pictures."""
    tensorboard: bool = False
    """Also log for TensorBoard (pip install tensorboard)."""
    preflight: bool = False
    """Check data, checkpoint, memory (by real steps at full size) and disk space, print steps, hours and GiB, and
    exit."""
    dry_run_data: bool = False
    """Measure the speed of data loading and the share of a step spent waiting for data, and exit."""

    def __post_init__(self) -> None:
        check_words(self, {"resume": RESUMES})
        check_at_least(self, 1, "checkpoint_every", "log_every")
        check_at_least(self, 0, "picture_every")

    @property
    def only_looks(self) -> bool:
        """Whether the run only measures, without training."""
        return self.preflight or self.dry_run_data
