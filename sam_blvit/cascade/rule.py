"""The cascade's rule (paper, equations 4, 5, 7 and 8), for any number of stages and any model.

Shapes:
    n  samples    C  classes    K  stages, cheapest first
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sam_blvit.cascade.confidence import Confidence, max_softmax

Predict = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""A model: maps the indices (m,) of samples to their probabilities (m, C)."""
Stage = Callable[[NDArray[np.int64]], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""A model and how sure it is: maps the indices (m,) of samples to probabilities (m, C) and confidences (m,)."""


@dataclass(frozen=True)
class Answers:
    """What a cascade answered, in the order of the samples."""

    probabilities: NDArray[np.float64]
    """(n, C)."""
    stage: NDArray[np.int64]
    """(n,) index of the stage that answered."""

    @property
    def predictions(self) -> NDArray[np.int64]:
        """(n,) the most probable class; of equals the first."""
        return self.probabilities.argmax(axis=1)

    def passed_on(self, stages: int) -> list[float]:
        """Share of all samples that each of the `stages` but the last passed on."""
        return [float((self.stage > stage).mean()) for stage in range(stages - 1)]


def is_sure(confidence: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """Whether a stage keeps its answers (n,): `confidence` is at least `threshold`.

    A threshold of 1 keeps none, not even at a confidence of exactly 1, so that thresholds 0 and 1 are the pure models.
    """
    return np.asarray(confidence) >= (threshold if threshold < 1 else np.inf)


def run_cascade(
    stages: Sequence[Stage],
    thresholds: Sequence[float],
    *,
    samples: int,
    weight: float = 1.0,
) -> Answers:
    """Answer every sample with the first stage that is sure of it. A stage sees only samples that reach it.

    Args:
        stages: K models with their confidences, cheapest first; see `stage_of`.
        thresholds: K - 1 thresholds, one for each stage but the last.
        samples: n, how many samples there are.
        weight: w of equation 8. A sample that was passed on is answered by (1 - w) of the previous stage's
            probabilities plus w of this stage's. 1 is the plain cascade. Confidence is always the stage's own.

    Raises:
        ValueError: If there are not K - 1 thresholds, or a confidence is not a number.
    """
    check_thresholds(thresholds, stages=len(stages))
    check_weight(weight)
    undecided = np.arange(samples)
    stage = np.zeros(samples, dtype=np.int64)
    answers: NDArray[np.float64] | None = None
    previous: NDArray[np.float64] | None = None
    for index, ask in enumerate(stages):
        own, confidence = ask(undecided)
        joined = own if previous is None else (1 - weight) * previous + weight * own
        answers = np.empty((samples, own.shape[1])) if answers is None else answers
        answers[undecided], stage[undecided] = joined, index
        if index == len(thresholds):
            break
        goes_on = ~is_sure(checked_confidence(confidence, index), thresholds[index])
        undecided, previous = undecided[goes_on], own[goes_on]
        if not len(undecided):
            break
    assert answers is not None
    return Answers(probabilities=answers, stage=stage)


def stage_of(predict: Predict, confidence: Confidence = max_softmax) -> Stage:
    """A stage whose confidence follows from its probabilities alone."""

    def ask(samples: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        probabilities = predict(samples)
        return probabilities, confidence(probabilities)

    return ask


def average_cost(costs: Sequence[float], passed_on: Sequence[float]) -> float:
    """Mean cost of a sample (equation 5): each stage's cost times the share of samples that reach it.

    Args:
        costs: Cost of one sample in each of the K stages, in any unit.
        passed_on: Share of all samples that each stage but the last passes on, K - 1 numbers from 0 to 1.
    """
    if len(passed_on) != len(costs) - 1 or not all(0 <= share <= 1 for share in passed_on):
        raise ValueError(
            f"passed_on={list(passed_on)}: {len(costs) - 1} shares from 0 to 1 are expected for {len(costs)} stages"
        )
    return float(np.dot(costs, [1.0, *passed_on]))


def check_thresholds(thresholds: Sequence[float], *, stages: int) -> None:
    """Raise ValueError unless there is a number for each of the `stages` but the last."""
    if stages < 1 or len(thresholds) != stages - 1:
        raise ValueError(f"{len(thresholds)} thresholds for {stages} stages; give one for each stage but the last")
    if not np.isfinite(np.asarray(thresholds, dtype=np.float64)).all():
        raise ValueError(f"thresholds={list(thresholds)}: all must be finite numbers")


def check_weight(weight: float) -> None:
    """Raise ValueError unless `weight` is a share."""
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight} is not between 0 (the earlier stage) and 1 (the later stage)")


def checked_confidence(confidence: NDArray[np.float64], stage: int) -> NDArray[np.float64]:
    """`confidence` (n,); ValueError if one of them is NaN, which no threshold can judge."""
    if bad := int(np.isnan(confidence).sum()):
        raise ValueError(f"stage {stage}: {bad} of {len(confidence)} confidences are not numbers; check its scores")
    return confidence
