"""`eval/run_cascade.py`: thresholds chosen on one part of the samples and tested on the other, from saved scores."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_blvit.cascade.chart import cascade_chart
from sam_blvit.cascade.confidence import CONFIDENCES
from sam_blvit.cascade.rule import Answers, Stage, average_cost, run_cascade
from sam_blvit.cascade.saved import SavedScores, read_labels, read_scores
from sam_blvit.cascade.sweep import Bootstrap, Goal, Outcomes, Sweep, bootstrap, choose, interval, random_gate, sweep
from sam_blvit.config.cascade import CascadeConfig
from sam_blvit.files import check_inputs_stay, output_directory, write_atomically, write_json

SUMMARY, CURVE, SAMPLES, CHART = "summary.json", "curve.csv", "samples.csv", "cascade.svg"
FEW = 1000
"""Fitted samples below which a threshold is mostly chance; the paper's smallest set has 10,000."""
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


def run_saved(config: CascadeConfig) -> None:
    """Choose thresholds, test them, and write what came of it. ValueError, one line, for files that do not fit."""
    outputs = [config.output / name for name in (SUMMARY, CURVE, SAMPLES, CHART)]
    check_inputs_stay(outputs, [*config.scores, config.labels])
    cascade = read_cascade(config)
    costs = cascade.costs(config.minimise)
    if costs is None:
        raise ValueError(f"minimise={config.minimise}: not every file of scores has {config.minimise}")
    goal = Goal(costs, tolerance=config.tolerance, budget=config.budget)
    parts = {name: cascade.outcomes.part(cascade.split[name]) for name in SPLITS}
    sweeps = {name: sweep(part) for name, part in parts.items()}
    point = choose(sweeps["fit"], goal)
    thresholds = sweeps["fit"].thresholds(point)
    answers = run_cascade(
        cascade.stages(),
        thresholds,
        samples=len(cascade.labels),
        weight=config.weight,
    )
    resampled = bootstrap(parts["fit"], parts["test"], goal, resamples=config.resamples, seed=config.seed)
    if len(cascade.split["fit"]) < FEW:
        low, high = interval(resampled.accuracy["test"])
        warnings.warn(
            f"thresholds are chosen on {len(cascade.split['fit'])} samples, fewer than {FEW}: accuracy on others may "
            f"be anything from {low:.4f} to {high:.4f}",
            stacklevel=2,
        )
    summary = {
        "settings": _settings(config),
        **{name: _describe(cascade, name, answers, thresholds, resampled) for name in SPLITS},
    }
    output_directory(config.output)
    write_json(config.output / SUMMARY, summary)
    _write_table(config.output / CURVE, _curve(cascade, sweeps))
    _write_table(config.output / SAMPLES, _samples(cascade, answers))
    names = [model.source for model in cascade.models]
    chart = cascade_chart(sweeps, cascade.outcomes, point=point, costs=costs, names=names, cost=config.minimise)
    write_atomically(config.output / CHART, lambda to: Path(to).write_text(chart, encoding="utf-8"))
    _show(summary, config)


def read_cascade(config: CascadeConfig) -> Cascade:
    """The files that `config` names, as one cascade."""
    models = [read_scores(path, scores_are=config.scores_are) for path in config.scores]
    models = [model.in_order(models[0].names) for model in models]
    classes = {model.probabilities.shape[1] for model in models}
    if len(classes) > 1:
        raise ValueError(f"the models have {sorted(classes)} classes; all must have the same")
    labels = read_labels(config.labels, models[0].names, classes=classes.pop())
    return Cascade(models, labels, _outcomes(models, labels, config), _split(models[0].names, config))


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


def _split(names: Sequence[str], config: CascadeConfig) -> dict[str, NDArray[np.int64]]:
    """Drawn from the sorted names, so that the order of a file does not matter."""
    order = np.argsort(np.array(names))[np.random.default_rng(config.seed).permutation(len(names))]
    fitted = round(config.fit_share * len(names))
    if not 0 < fitted < len(names):
        raise ValueError(f"fit_share={config.fit_share:g} of {len(names)} samples leaves none to fit or none to test")
    return {"fit": np.sort(order[:fitted]), "test": np.sort(order[fitted:])}


def _look_up(
    probabilities: NDArray[np.float64], confidence: NDArray[np.float64], samples: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return probabilities[samples], confidence[samples]


def _describe(
    cascade: Cascade, split: str, answers: Answers, thresholds: Sequence[float], resampled: Bootstrap
) -> dict[str, Any]:
    """What the chosen thresholds give on the samples of `split`, beside the pure models and a random gate."""
    index = cascade.split[split]
    part = cascade.outcomes.part(index)
    passed_on = [float((answers.stage[index] > stage).mean()) for stage in range(len(thresholds))]
    costs = cascade.all_costs
    return {
        "samples": len(index),
        "accuracy": float((answers.predictions[index] == cascade.labels[index]).mean()),
        **{kind: average_cost(of_kind, passed_on) for kind, of_kind in costs.items()},
        "passed_on": passed_on,
        "thresholds": list(thresholds),
        "intervals": {
            "accuracy": interval(resampled.accuracy[split]),
            **{kind: interval(_mean_costs(of_kind, resampled.passed_on[split])) for kind, of_kind in costs.items()},
            "thresholds": [interval(of_gate) for of_gate in resampled.thresholds.T],
        },
        "random_gate": {"accuracy": random_gate(part, passed_on)},
        "models": [
            {
                "name": model.source,
                "accuracy": float((model.probabilities[index].argmax(axis=1) == cascade.labels[index]).mean()),
                **{kind: of_kind[stage] for kind, of_kind in costs.items()},
            }
            for stage, model in enumerate(cascade.models)
        ],
    }


def _mean_costs(costs: Sequence[float], passed_on: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equation 5 for each row of `passed_on` (R, K - 1)."""
    return np.asarray(costs[0] + passed_on @ np.asarray(costs[1:]))


def _settings(config: CascadeConfig) -> dict[str, Any]:
    paths = {"scores": [str(path) for path in config.scores], "labels": str(config.labels)}
    names = ("confidence", "scores_are", "fit_share", "seed", "minimise", "tolerance", "budget", "weight", "resamples")
    return {**paths, **{name: getattr(config, name) for name in names}}


def _curve(cascade: Cascade, sweeps: dict[str, Sweep]) -> list[dict[str, Any]]:
    """A row for each combination of thresholds and each split."""
    gates = range(len(cascade.models) - 1)
    rows = []
    for split, swept in sweeps.items():
        costs = {kind: swept.cost(of_kind) for kind, of_kind in cascade.all_costs.items()}
        for point in np.ndindex(swept.accuracy.shape):
            row: dict[str, Any] = {"split": split}
            row |= {f"threshold_{gate}": value for gate, value in enumerate(swept.thresholds(point))}
            row |= {f"passed_on_{gate}": float(swept.passed_on[gate][point]) for gate in gates}
            row |= {"accuracy": float(swept.accuracy[point])}
            rows.append(row | {kind: float(of_kind[point]) for kind, of_kind in costs.items()})
    return rows


def _samples(cascade: Cascade, answers: Answers) -> list[dict[str, Any]]:
    """A row for each sample, in the order of the first file of scores."""
    fitted = set(cascade.split["fit"].tolist())
    predictions = answers.predictions
    return [
        {
            "name": name,
            "split": "fit" if number in fitted else "test",
            "stage": int(answers.stage[number]),
            "prediction": int(predictions[number]),
            "label": int(cascade.labels[number]),
        }
        for number, name in enumerate(cascade.models[0].names)
    ]


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    def write(to: str) -> None:
        with open(to, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)

    write_atomically(path, write)


def _show(summary: dict[str, Any], config: CascadeConfig) -> None:
    test = summary["test"]
    cost = config.minimise
    lines = [
        ("cascade", test["accuracy"], test[cost]),
        ("random gate", test["random_gate"]["accuracy"], test[cost]),
        *((model["name"], model["accuracy"], model[cost]) for model in test["models"]),
    ]
    print(f"{test['samples']} test samples, thresholds {', '.join(f'{value:g}' for value in test['thresholds'])}")
    for name, accuracy, spent in lines:
        print(f"{name:24} accuracy {accuracy:.4f}, {cost} {spent:.6g}")
    low, high = test["intervals"]["accuracy"]
    print(f"accuracy of the cascade, 95 %: {low:.4f} to {high:.4f}", config.output / SUMMARY, sep="\n")
