"""The training data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_blvit.config.checks import check_at_least, check_words
from sam_blvit.config.commands import check_seed

UNITS = ("tar", "image")


@dataclass(frozen=True, kw_only=True)
class TrainingDataConfig:
    """The photographs and masks of a run."""

    data: Path
    """Directory of SA-1B: .tar files; sa_<id>.jpg and sa_<id>.json side by side; or images/ and annotations/ (or
    masks/), optionally each with train/ and val/. With `annotations`: the directory of the photographs."""
    annotations: Path | None = None
    """Annotations of your own data, in COCO's instance format."""
    manifest: Path | None = None
    """List of the photographs to use, written by tools/make_subset.py. Default: all photographs in `data`."""
    exclude: Path | None = None
    """Text file of image ids to leave out."""
    holdout: int = 0
    """Number of photographs to hold out for validation, drawn by `seed`."""
    seed: int = 0
    """Seed of weights, order, masks and prompts."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_at_least(self, 0, "holdout")
        if self.annotations is not None and self.manifest is not None:
            raise ValueError(
                f"manifest={self.manifest} lists photographs in SA-1B's layout; with annotations, leave it out and "
                "name the photographs to skip with exclude"
            )


@dataclass(frozen=True, kw_only=True)
class SubsetConfig:
    """A random subset of SA-1B."""

    data: Path
    """Directory of SA-1B: .tar files; sa_<id>.jpg and sa_<id>.json side by side; or images/ and annotations/."""
    output: Path
    """Directory for train.tsv, validation.tsv and subset.json."""
    unit: str = "tar"
    """What is drawn: tar (whole tar files as in EdgeSAM, fast to copy) or image."""
    fraction: float = 0.02
    """Share of the tar files, or of the images, to train on. 0.02 of SA-1B's 1,000 tar files is 20."""
    validation: int = 1000
    """Number of validation images. They are not trained on. With unit=tar they come from one further tar file."""
    seed: int = 0
    """Seed of the draw."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_words(self, {"unit": UNITS})
        check_at_least(self, 0, "validation")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction} is outside (0, 1]; the paper's is 0.02")
