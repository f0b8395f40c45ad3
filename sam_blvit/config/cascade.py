"""Options of eval/run_cascade.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_blvit.config.commands import DEVICES, check_seed

CASCADE_CHOICES = {
    "confidence": ("max", "margin", "entropy", "saved"),
    "scores_are": ("auto", "logits", "probabilities"),
    "minimise": ("macs", "milliseconds"),
}
"""Settings of a cascade, and the words allowed in each."""


@dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """Two or more models or their saved scores, and how to choose the thresholds between them."""

    scores: tuple[Path, ...] = ()
    """Files of saved scores, cheapest model first. Each is an .npz with scores (samples, classes), names, macs per
    sample, and optionally milliseconds per sample, load_milliseconds of the model, and confidence (samples)."""
    models: tuple[str, ...] = ()
    """Models to run instead of reading saved scores, cheapest first: timm:NAME, or module:function, where the function
    returns a torch module and its input transform."""
    images: Path | None = None
    """Directory of the photographs to run the models on: CLASS/PHOTOGRAPH as in ImageNet, or any layout with labels."""
    labels: Path | None = None
    """CSV table with columns name (or file) and label, a class number from 0. Default with images: labels.csv in their
    directory, else the names of their folders, numbered in order."""
    output: Path
    """Directory for summary.json, curve.csv, samples.csv, cascade.svg, and scores/ if models are run."""
    perturb: tuple[str, ...] = ()
    """Also test on corrupted copies: jpeg<quality>, blur<radius>, shift<pixels> and dark. Saved scores of copies are
    read from files next to the clean ones: little.npz, little.jpeg10.npz."""
    timed: int = 50
    """Photographs to time each model on, one at a time. The median is reported. 0: no timing."""
    batch_size: int = 32
    """Photographs per batch."""
    device: str = "auto"
    """auto, cpu, cuda or mps. auto uses the first available of cuda, mps and cpu."""
    confidence: str = "max"
    """Measure of confidence: max (largest probability), margin (difference from the second largest), entropy (1 -
    entropy / its maximum) or saved (stored in the files)."""
    scores_are: str = "auto"
    """logits or probabilities. auto: probabilities if all values are from 0 to 1 and each row sums to 1."""
    fit_share: float = 0.5
    """Share of the samples used to choose the thresholds, drawn by seed. The others are the test set."""
    seed: int = 0
    """Seed of the split and of the bootstrap."""
    minimise: str = "macs"
    """Cost to minimise: macs or milliseconds."""
    tolerance: float = 0.0
    """Largest loss of accuracy against the last model, from 0 to 1, on the samples that thresholds are chosen on."""
    budget: float | None = None
    """Largest mean cost per sample. If given, the most accurate thresholds within it are chosen."""
    weight: float = 1.0
    """Weight of the later model's probabilities for a sample that is passed on to it. The earlier model's have the
    remaining weight. 1: only the later model counts."""
    resamples: int = 1000
    """Bootstrap resamples for the confidence intervals."""

    def __post_init__(self) -> None:
        for name, words in CASCADE_CHOICES.items():
            if (value := getattr(self, name)) not in words:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(words)}")
        self._check_models()
        if not 0 < self.fit_share < 1:
            raise ValueError(f"fit_share={self.fit_share:g} is not between 0 and 1; 0.5 is usual")
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
