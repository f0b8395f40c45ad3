"""What a training run validates with, keeps and prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_blvit.config.checks import check_at_least, check_words

RESUMES = ("auto", "never")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What a run validates with, and when."""

    validate_every: int = 0
    """Steps between validations; 0 validates at the end alone. Wants holdout, val_manifest or val_annotations."""
    val_manifest: Path | None = None
    """List of photographs of `data` to validate with, as tools/make_subset.py writes it."""
    val_annotations: Path | None = None
    """Annotations in LVIS or COCO format to validate with."""
    val_images: Path | None = None
    """Directory of their photographs."""
    val_limit: int = 500
    """Photographs of each kind to validate with, at most."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "val_limit")
        check_at_least(self, 0, "validate_every")
        if self.val_images is not None and self.val_annotations is None:
            raise ValueError(
                f"val_images={self.val_images}: no effect without val_annotations, what is on them; add it"
            )
        if self.val_annotations is not None and self.val_images is None:
            raise ValueError(f"val_annotations={self.val_annotations} wants val_images, where its photographs are")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run is kept, how often it saves and prints, and checks instead of training."""

    output: Path
    """Directory of the run."""
    resume: str = "auto"
    """auto goes on with the newest checkpoint in `output` that loads, if there is one; never starts anew, and refuses
    an output that holds a run."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between lines of log.jsonl."""
    picture_every: int = 0
    """Steps between pictures of masks and routing; 0 draws none."""
    tensorboard: bool = False
    """Also log for TensorBoard (pip install tensorboard)."""
    preflight: bool = False
    """Check data, checkpoint, memory (by real steps at full size) and disk, print steps, hours and GB, and stop."""
    dry_run_data: bool = False
    """Measure how fast data come, and what share of a step waits for them, and stop."""

    def __post_init__(self) -> None:
        check_words(self, {"resume": RESUMES})
        check_at_least(self, 1, "checkpoint_every", "log_every")
        check_at_least(self, 0, "picture_every")

    @property
    def only_looks(self) -> bool:
        """Whether something is measured instead of training."""
        return self.preflight or self.dry_run_data
