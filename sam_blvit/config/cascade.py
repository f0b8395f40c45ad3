"""What eval/run_cascade.py takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_blvit.config.commands import DEVICES, check_seed

CASCADE_CHOICES = {
    "confidence": ("max", "margin", "entropy", "saved"),
    "scores_are": ("auto", "logits", "probabilities"),
    "minimise": ("macs", "milliseconds"),
}
"""Settings of a cascade, and the words they take."""


@dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """Two or more models, or saved scores of them, and how thresholds between them are chosen."""

    scores: tuple[Path, ...] = ()
    """Files of saved scores, cheapest model first: .npz with scores (samples, classes), names, macs for one sample, and
    optionally milliseconds for one sample, load_milliseconds of the model and confidence (samples)."""
    models: tuple[str, ...] = ()
    """Models to score instead, cheapest first: timm:NAME, or module:function, which returns a pair of a torch module
    and its input transform."""
    images: Path | None = None
    """Directory of the photographs that models are scored on: CLASS/PHOTOGRAPH as in ImageNet, or any with labels."""
    labels: Path | None = None
    """CSV table with columns name (or file) and label, a class counted from 0. Default with images: their labels.csv,
    else their folders, numbered by name."""
    output: Path
    """Directory for summary.json, curve.csv, samples.csv and cascade.svg, and for scores/ of models."""
    perturb: tuple[str, ...] = ()
    """Also test on corrupted copies: jpeg<quality>, blur<radius>, shift<pixels> and dark. Saved scores of copies are
    beside the clean ones: little.npz, little.jpeg10.npz."""
    timed: int = 50
    """Photographs that a model's milliseconds are the median of, one at a time. 0: not timed."""
    batch_size: int = 32
    """Photographs that a model scores at once."""
    device: str = "auto"
    """Device that models run on: auto, cpu, cuda or mps."""
    confidence: str = "max"
    """max (largest probability), margin (to the second largest), entropy (1 - entropy / its maximum) or saved (the
    files' own)."""
    scores_are: str = "auto"
    """logits or probabilities. auto: probabilities if all are from 0 to 1 and each row sums to 1."""
    fit_share: float = 0.5
    """Share of the samples that thresholds are chosen on, drawn by seed. The others test the choice."""
    seed: int = 0
    """Seed of the split and of the resamples."""
    minimise: str = "macs"
    """Cost that thresholds make small: macs or milliseconds."""
    tolerance: float = 0.0
    """Accuracy, from 0 to 1, that may be lost against the last model on the fitted samples."""
    budget: float | None = None
    """Mean cost of a sample that may be spent: the most accurate thresholds within it are chosen."""
    weight: float = 1.0
    """Weight of a later model's probabilities for a sample passed on to it, the rest is the earlier model's. 1: the
    later model alone."""
    resamples: int = 1000
    """Resamples that the intervals come from."""

    def __post_init__(self) -> None:
        for name, words in CASCADE_CHOICES.items():
            if (value := getattr(self, name)) not in words:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(words)}")
        self._check_models()
        if not 0 < self.fit_share < 1:
            raise ValueError(f"fit_share={self.fit_share:g} is not between 0 and 1; 0.5 is the usual one")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight={self.weight:g} is not between 0 and 1")
        if not 0 <= self.tolerance <= 1:
            raise ValueError(f"tolerance={self.tolerance:g} is not between 0 and 1; 0.01 is one percent of the samples")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"budget={self.budget:g} is not a positive number")
        if self.resamples < 1:
            raise ValueError(f"resamples={self.resamples} is not a positive number")
        check_seed(self.seed)

    def _check_models(self) -> None:
        if self.scores and self.models:
            raise ValueError("scores and models: choose one of the two")
        if len(self.scores or self.models) < 2:
            what = "models" if self.models else "files of scores"
            raise ValueError(
                f"{len(self.scores or self.models)} {what}: a cascade needs at least 2, cheapest model first"
            )
        if bool(self.models) != (self.images is not None):
            raise ValueError("models and images: one needs the other, saved scores need neither")
        if self.scores and self.labels is None:
            raise ValueError("labels: saved scores need a table of labels")
        if self.device not in DEVICES:
            raise ValueError(f"device={self.device!r} is not one of {', '.join(DEVICES)}")
        if self.timed < 0 or self.batch_size < 1:
            raise ValueError(f"timed={self.timed}, batch_size={self.batch_size}: at least 0 and 1 are expected")
