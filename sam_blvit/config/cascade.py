"""What eval/run_cascade.py takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_blvit.config.commands import check_seed

CASCADE_CHOICES = {
    "confidence": ("max", "margin", "entropy", "saved"),
    "scores_are": ("auto", "logits", "probabilities"),
    "minimise": ("macs", "milliseconds"),
}
"""Settings of a cascade, and the words they take."""


@dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """Saved scores of two or more models, and how thresholds between them are chosen."""

    scores: tuple[Path, ...]
    """Files of saved scores, cheapest model first: .npz with scores (samples, classes), names, macs for one sample, and
    optionally milliseconds for one sample and confidence (samples)."""
    labels: Path
    """CSV table with columns name (or file) and label, a class counted from 0."""
    output: Path
    """Directory for summary.json, curve.csv, samples.csv and cascade.svg."""
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
        if len(self.scores) < 2:
            raise ValueError(f"{len(self.scores)} files of scores: a cascade needs at least 2, cheapest model first")
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
