"""What measured objects tell beyond their mean: how far predicted IoU can be trusted, how sure a difference is.

NumPy alone. IoU is in percent; errors and differences are in its points.

Shapes:
    N  objects    P  prompts    I  photographs    R  resamples
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_blvit.evaluate.metrics.summary import PROMPTS

Rows = Mapping[str, NDArray[Any]]
"""Columns (N,) of measured objects by name, as in instances.csv."""
BINS = 10
RESAMPLES = 2000
INTERVAL = (2.5, 97.5)
"""Percentiles that bound 95 % of the resampled means."""


@dataclass(frozen=True)
class Reliability:
    """Predicted against true IoU in equal bins of predicted IoU."""

    predicted: NDArray[np.float64]
    """Mean predicted IoU of each bin; NaN where it is empty."""
    true: NDArray[np.float64]
    """Mean true IoU of each bin; NaN where it is empty."""
    counts: NDArray[np.int64]
    """Objects in each bin."""

    @property
    def error(self) -> float:
        """Expected calibration error: the gap of a bin's two means, averaged over objects."""
        return float(np.nansum(self.counts * np.abs(self.predicted - self.true)) / self.counts.sum())


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A run against a baseline, on the objects that both measured."""

    instances: int
    """Pairs of the same object and seed."""
    photographs: int
    strangers: int
    """Pairs of the same id and seed whose photograph, area or pixels differ: other annotations, left out."""
    differences: Mapping[str, Interval]
    """Run minus baseline by prompt; empty without pairs."""


def reliability(predicted: NDArray[Any], true: NDArray[Any]) -> Reliability:
    """Put objects (N,) of `predicted` and `true` IoU in bins over 0 to 100; the outer bins take what lies beyond."""
    index = np.clip(predicted // (100 / BINS), 0, BINS - 1).astype(np.int64)
    counts = np.bincount(index, minlength=BINS)
    with np.errstate(invalid="ignore"):  # 0 / 0 of an empty bin
        means = [np.bincount(index, weights=values, minlength=BINS) / counts for values in (predicted, true)]
    return Reliability(means[0], means[1], counts)


def compare(rows: Rows, baseline: Rows) -> Comparison:
    """Difference of `rows` to `baseline` on the objects and seeds that both have."""
    seeds = np.union1d(rows["seed"], baseline["seed"])
    _, here, there = np.intersect1d(_keys(rows, seeds), _keys(baseline, seeds), True, return_indices=True)
    same = np.logical_and.reduce([rows[name][here] == baseline[name][there] for name in ("image_id", "area", "npix")])
    here, there = here[same], there[same]
    images = rows["image_id"][here]
    differences = np.stack([rows[f"iou_{p}"][here] - baseline[f"iou_{p}"][there] for p in PROMPTS], axis=1)
    intervals = paired_bootstrap(differences, images) if len(images) else []
    return Comparison(
        instances=len(images),
        photographs=len(np.unique(images)),
        strangers=int((~same).sum()),
        differences=dict(zip(PROMPTS, intervals, strict=False)),
    )


def paired_bootstrap(
    differences: NDArray[Any], images: NDArray[Any], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Interval]:
    """Mean and percentile interval of each column of `differences` (N, P) of objects on photographs `images` (N,).

    Photographs are resampled, not objects: the objects of one photograph are not independent.
    """
    _, index = np.unique(images, return_inverse=True)
    number = index.max() + 1
    columns = [*differences.T, np.ones(len(index))]
    sums = np.stack([np.bincount(index, weights=column) for column in columns], axis=1)  # (I, P + 1)
    rng = np.random.default_rng(seed)
    draws = (np.bincount(rng.integers(number, size=number), minlength=number) for _ in range(resamples))
    totals = np.stack([counts @ sums for counts in draws])  # (R, P + 1)
    low, high = np.percentile(totals[:, :-1] / totals[:, -1:], INTERVAL, axis=0)
    return [Interval(*map(float, bounds)) for bounds in zip(differences.mean(axis=0), low, high, strict=True)]


def duplicate(rows: Rows) -> tuple[int, int] | None:
    """Seed and annotation id that occur twice in `rows`, if any do."""
    keys = _keys(rows, np.unique(rows["seed"]))
    order = np.argsort(keys, kind="stable")
    twice = order[1:][np.diff(keys[order]) == 0]
    return (int(rows["seed"][twice[0]]), int(rows["ann_id"][twice[0]])) if len(twice) else None


def _keys(rows: Rows, seeds: NDArray[Any]) -> NDArray[np.int64]:
    """One number (N,) for each pair of annotation id and one of `seeds`."""
    return rows["ann_id"].astype(np.int64) * len(seeds) + np.searchsorted(seeds, rows["seed"])
