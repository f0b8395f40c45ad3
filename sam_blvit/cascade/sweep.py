"""Every threshold at once: accuracy and cost of a cascade, the choice of thresholds, and its uncertainty.

One pass over the samples counts them by the thresholds that they pass; cumulative sums of the counts then give every
combination of thresholds, so that 50,000 samples and 51 thresholds take some milliseconds.

Shapes:
    n  samples    K  stages    T  thresholds tried    (T, ...)  one axis for each stage but the last
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam_blvit.cascade.rule import checked_confidence

GRID = np.round(np.arange(51) * 0.02, 2)
"""The paper's thresholds: 0 to 1 in steps of 0.02."""
MOST_POINTS = 10_000_000
"""Combinations of thresholds that are tried at most."""
RESAMPLES = 1000
INTERVAL = (2.5, 97.5)
"""Percentiles that bound 95 % of the resamples."""
EPSILON = 1e-9
"""Accuracies closer than this are equal; they are sums in different orders."""


@dataclass(frozen=True)
class Outcomes:
    """What each stage makes of each sample, all that a sweep needs."""

    correct: NDArray[np.bool_]
    """(K, n) whether the stage's answer is right."""
    confidence: NDArray[np.float64]
    """(K - 1, n) of each stage but the last."""

    def __post_init__(self) -> None:
        stages, samples = self.correct.shape
        if self.confidence.shape != (stages - 1, samples):
            raise ValueError(
                f"confidence of shape {self.confidence.shape}: {(stages - 1, samples)} is expected, for each stage "
                "but the last"
            )
        if not samples:
            raise ValueError("there are no samples to choose thresholds on")
        for stage, confidence in enumerate(self.confidence):
            checked_confidence(confidence, stage)

    def part(self, index: NDArray[np.int64]) -> Outcomes:
        """The samples of `index` alone."""
        return Outcomes(self.correct[:, index], self.confidence[:, index])


@dataclass(frozen=True)
class Sweep:
    """A cascade at every combination of thresholds."""

    grid: NDArray[np.float64]
    """(T,) ascending."""
    accuracy: NDArray[np.float64]
    """(T, ...) from 0 to 1."""
    passed_on: NDArray[np.float64]
    """(K - 1, T, ...) share of all samples that each stage passes on."""

    def cost(self, costs: Sequence[float]) -> NDArray[np.float64]:
        """Mean cost (T, ...) of a sample, given its cost in each of the K stages (equation 5)."""
        return np.asarray(costs[0] + np.tensordot(np.asarray(costs[1:], dtype=np.float64), self.passed_on, axes=1))

    def thresholds(self, point: Sequence[int]) -> list[float]:
        """The thresholds at `point`, an index into `accuracy`."""
        return [float(self.grid[index]) for index in point]


@dataclass(frozen=True)
class Goal:
    """What thresholds are chosen for."""

    costs: tuple[float, ...]
    """Cost of a sample in each stage, the one that is made small."""
    tolerance: float = 0.0
    """Accuracy that may be lost against the last stage, 0 to 1."""
    budget: float | None = None
    """Mean cost that may be spent; then the most accurate thresholds within it are chosen, whatever the tolerance."""


def sweep(outcomes: Outcomes, *, grid: NDArray[np.float64] = GRID) -> Sweep:
    """Accuracy and shares passed on at every combination of thresholds in `grid` (T,), ascending from 0 to 1."""
    gates = len(outcomes.confidence)
    if grid[0] != 0 or grid[-1] != 1 or (np.diff(grid) <= 0).any():
        raise ValueError("grid must ascend from 0 to 1, the two pure models")
    if len(grid) ** gates > MOST_POINTS:
        raise ValueError(f"{len(grid)} thresholds for {gates} stages are too many combinations; use a coarser grid")
    cells = _cells(outcomes.confidence, grid)
    return _sweep(cells, outcomes.correct, np.ones(cells.shape, dtype=np.int64), grid, gates)


def _cells(confidence: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n,) which cell of the (T + 1, ...) histogram a sample falls in: by how many thresholds each stage is sure."""
    cell = np.zeros(confidence.shape[1], dtype=np.int64)
    below_one = grid[grid < 1]  # at 1 no stage is sure: see rule.is_sure
    for of_stage in confidence:
        cell = cell * (len(grid) + 1) + np.searchsorted(below_one, of_stage, side="right")
    return cell


def _sweep(
    cells: NDArray[np.int64],
    correct: NDArray[np.bool_],
    counts: NDArray[np.int64],
    grid: NDArray[np.float64],
    gates: int,
) -> Sweep:
    shape = (len(grid) + 1,) * gates
    right = np.zeros((len(grid),) * gates)
    passed_on = np.zeros((gates, *right.shape))
    for stage, of_stage in enumerate(correct):
        right += _answered(_histogram(cells, counts * of_stage, shape), stage)
    everything = _histogram(cells, counts, shape)
    for stage in range(gates):
        passed_on[stage] = _reaching(everything, stage + 1)
    total = counts.sum()
    return Sweep(grid=grid, accuracy=right / total, passed_on=passed_on / total)


def _histogram(cells: NDArray[np.int64], weights: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    counted = np.bincount(cells, weights=weights, minlength=int(np.prod(shape, dtype=np.int64)))
    return counted.astype(np.float64).reshape(shape)


def _reaching(histogram: NDArray[np.float64], stage: int) -> NDArray[np.float64]:
    """(T, ...) how many of the samples reach `stage` at each combination of thresholds: none before was sure."""
    gates = histogram.ndim
    reaching = histogram.sum(axis=tuple(range(stage, gates)), keepdims=True)
    for axis in range(stage):
        reaching = reaching.cumsum(axis=axis).take(range(histogram.shape[axis] - 1), axis=axis)
    return np.broadcast_to(reaching, (histogram.shape[0] - 1,) * gates) if gates else reaching


def _answered(histogram: NDArray[np.float64], stage: int) -> NDArray[np.float64]:
    """(T, ...) how many of the samples `stage` answers: they reach it and not the next."""
    answered = _reaching(histogram, stage)
    return answered if stage == histogram.ndim else answered - _reaching(histogram, stage + 1)


def choose(swept: Sweep, goal: Goal) -> tuple[int, ...]:
    """The point of `swept` that serves `goal`: the cheapest that loses nothing, or the most accurate within a budget.

    Of two equally cheap the more accurate wins, of two equally accurate the cheaper, then the lower thresholds.

    Raises:
        ValueError: If no point is within the budget.
    """
    cost = swept.cost(goal.costs)
    if goal.budget is None:
        last = swept.accuracy[(-1,) * swept.accuracy.ndim]  # every sample passed on: the last stage alone
        allowed = swept.accuracy >= last - goal.tolerance - EPSILON
        keys = (-swept.accuracy, cost)
    else:
        allowed = cost <= goal.budget * (1 + EPSILON)
        keys = (cost, -swept.accuracy)
    points = np.flatnonzero(allowed)
    if not len(points):
        raise ValueError(f"budget={goal.budget:g} is below {cost.min():g}, the mean cost of the cheapest cascade")
    minor, major = (np.round(key.reshape(-1)[points], 12) for key in keys)
    best = points[np.lexsort((points, minor, major))[0]]
    return tuple(int(index) for index in np.unravel_index(best, swept.accuracy.shape))


@dataclass(frozen=True)
class Bootstrap:
    """Chosen thresholds and what they give, for each of R resamples of the fitted and of the tested samples."""

    thresholds: NDArray[np.float64]
    """(R, K - 1)."""
    accuracy: dict[str, NDArray[np.float64]]
    """(R,) by split, `fit` and `test`."""
    passed_on: dict[str, NDArray[np.float64]]
    """(R, K - 1) by split."""


def bootstrap(
    fit: Outcomes,
    test: Outcomes,
    goal: Goal,
    *,
    grid: NDArray[np.float64] = GRID,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Bootstrap:
    """Choose thresholds again on each resample of `fit`, and read them off that resample and one of `test`."""
    rng = np.random.default_rng(seed)
    gates = len(fit.confidence)
    cells = {"fit": _cells(fit.confidence, grid), "test": _cells(test.confidence, grid)}
    thresholds = np.empty((resamples, gates))
    accuracy = {split: np.empty(resamples) for split in cells}
    passed_on = {split: np.empty((resamples, gates)) for split in cells}
    for number in range(resamples):
        point: tuple[int, ...] | None = None
        for split, outcomes in (("fit", fit), ("test", test)):
            samples = outcomes.correct.shape[1]
            counts = np.bincount(rng.integers(samples, size=samples), minlength=samples)
            swept = _sweep(cells[split], outcomes.correct, counts, grid, gates)
            if point is None:
                point = choose(swept, goal)
                thresholds[number] = swept.thresholds(point)
            accuracy[split][number] = swept.accuracy[point]
            passed_on[split][number] = [of_gate[point] for of_gate in swept.passed_on]
    return Bootstrap(thresholds, accuracy, passed_on)


def interval(values: NDArray[np.float64]) -> list[float]:
    """Bounds of the middle 95 % of `values` (R,)."""
    return [float(bound) for bound in np.percentile(values, INTERVAL)]


def random_gate(outcomes: Outcomes, passed_on: Sequence[float]) -> float:
    """Expected accuracy of a gate that passes on the same shares of samples, drawn at random."""
    shares = np.diff([0.0, *(1 - share for share in passed_on), 1.0])
    return float(np.dot(shares, outcomes.correct.mean(axis=1)))


def cost_shift(fitted: NDArray[np.float64], met: NDArray[np.float64]) -> tuple[float, float]:
    """Whether new samples cost more than those that thresholds were fitted on, a sign that their distribution shifted.

    Args:
        fitted: (n,) cost of each sample of the fit set.
        met: (m,) cost of each new sample.

    Returns:
        The difference of the means, and its z score (Welch's). Scores above about 2 are unlikely without a shift.
    """
    difference = met.mean() - fitted.mean()
    error = np.sqrt(met.var() / len(met) + fitted.var() / len(fitted))
    if not error:
        return float(difference), float(np.copysign(np.inf, difference)) if difference else 0.0
    return float(difference), float(difference / error)
