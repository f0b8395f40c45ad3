"""Which photographs and masks are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_blvit.config.checks import check_at_least, check_words
from sam_blvit.config.commands import check_seed

UNITS = ("tar", "image")


@dataclass(frozen=True, kw_only=True)
class TrainingDataConfig:
    """Which photographs and masks."""

    data: Path
    """Directory of SA-1B: .tar files; sa_<id>.jpg and sa_<id>.json side by side; or images/ and annotations/ (or
    masks/), perhaps each with train/ and val/. With `annotations`: the directory of the photographs."""
    annotations: Path | None = None
    """Annotations of your own data in COCO's instance format."""
    manifest: Path | None = None
    """List of the photographs to use, as tools/make_subset.py writes it. Default: all of `data`."""
    exclude: Path | None = None
    """Text file of image ids to leave out."""
    holdout: int = 0
    """Photographs drawn by `seed` and kept out of training, to validate with."""
    seed: int = 0
    """Seed of weights, order, masks and prompts."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_at_least(self, 0, "holdout")
        if self.annotations is not None and self.manifest is not None:
            raise ValueError(
                f"manifest={self.manifest} lists photographs in SA-1B's layout; leave it out beside annotations, and "
                "name what is not to be used with exclude"
            )


@dataclass(frozen=True, kw_only=True)
class SubsetConfig:
    """A part of SA-1B, drawn by seed."""

    data: Path
    """Directory of SA-1B: .tar files; sa_<id>.jpg and sa_<id>.json side by side; or images/ and annotations/."""
    output: Path
    """Directory for train.tsv, validation.tsv and subset.json."""
    unit: str = "tar"
    """What is drawn: whole tar files (EdgeSAM's way, quick to copy) or images."""
    fraction: float = 0.02
    """Share of the tars, or of the images, to train on; 0.02 of SA-1B's 1,000 tars are 20."""
    validation: int = 1000
    """Images to validate with, from what is not trained on: with unit tar from one further tar."""
    seed: int = 0
    """Seed of the draw."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_words(self, {"unit": UNITS})
        check_at_least(self, 0, "validation")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction} is outside (0, 1]; the paper's is 0.02")
