"""Saved scores of several models, joined into one cascade: the same samples, their labels, and the two splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sam_blvit.cascade.confidence import CONFIDENCES
from sam_blvit.cascade.rule import Stage
from sam_blvit.cascade.saved import SavedScores, read_labels, read_scores
from sam_blvit.cascade.sweep import Outcomes
from sam_blvit.config.cascade import CascadeConfig

SPLITS = ("fit", "test")


@dataclass(frozen=True)
class Cascade:
    """Saved scores that belong together: the same samples in the same order, cheapest model first."""

    models: list[SavedScores]
    labels: NDArray[np.int64]
    """(n,)."""
    outcomes: Outcomes
    split: dict[str, NDArray[np.int64]]
    """Indices of the samples of `fit` and of `test`, ascending."""

    def costs(self, kind: str) -> tuple[float, ...] | None:
        """Cost of a sample in each stage, `kind` macs or milliseconds; None if a file does not say."""
        costs = [getattr(model, kind) for model in self.models]
        return None if None in costs else tuple(costs)

    def stages(self) -> list[Stage]:
        """The models as stages; the last needs no confidence."""
        unused = np.zeros(len(self.labels))
        looked_up = zip(self.models, [*self.outcomes.confidence, unused], strict=True)
        return [partial(_look_up, model.probabilities, confidence) for model, confidence in looked_up]

    @property
    def all_costs(self) -> dict[str, tuple[float, ...]]:
        """Costs of every kind that all files have."""
        return {kind: costs for kind in ("macs", "milliseconds") if (costs := self.costs(kind)) is not None}


def read_cascade(config: CascadeConfig, names: Sequence[str] = ()) -> Cascade:
    """The files that `config` names, as one cascade of the samples `names` (none: those of the first file)."""
    models = [read_scores(path, scores_are=config.scores_are) for path in config.scores]
    models = [model.in_order(names or models[0].names) for model in models]
    classes = {model.probabilities.shape[1] for model in models}
    if len(classes) > 1:
        raise ValueError(f"the models have {sorted(classes)} classes; all must have the same")
    assert config.labels is not None, "saved scores have labels"
    labels = read_labels(config.labels, models[0].names, classes=classes.pop())
    return Cascade(
        models,
        labels,
        _outcomes(models, labels, config),
        split_samples(models[0].names, fit_share=config.fit_share, seed=config.seed),
    )


def _outcomes(models: Sequence[SavedScores], labels: NDArray[np.int64], config: CascadeConfig) -> Outcomes:
    correct = [models[0].probabilities.argmax(axis=1) == labels]
    for earlier, later in pairwise(models):
        joined = (1 - config.weight) * earlier.probabilities + config.weight * later.probabilities
        correct.append(joined.argmax(axis=1) == labels)
    confidence = [_confidence(model, config.confidence) for model in models[:-1]]
    return Outcomes(np.stack(correct), np.stack(confidence))


def _confidence(model: SavedScores, name: str) -> NDArray[np.float64]:
    if name != "saved":
        return CONFIDENCES[name](model.probabilities)
    if model.confidence is None:
        raise ValueError(f"{model.source}: no array 'confidence', which confidence=saved needs")
    return model.confidence


def split_samples(names: Sequence[str], *, fit_share: float, seed: int) -> dict[str, NDArray[np.int64]]:
    """Indices of the samples of `fit` and of `test`. Drawn from the sorted names: the order of a file is no matter."""
    order = np.argsort(np.array(names))[np.random.default_rng(seed).permutation(len(names))]
    fitted = round(fit_share * len(names))
    if not 0 < fitted < len(names):
        raise ValueError(f"fit_share={fit_share:g} of {len(names)} samples leaves none to fit or none to test")
    return {"fit": np.sort(order[:fitted]), "test": np.sort(order[fitted:])}


def _look_up(
    probabilities: NDArray[np.float64], confidence: NDArray[np.float64], samples: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return probabilities[samples], confidence[samples]
