"""`eval/run_cascade.py`: thresholds chosen on one part of the samples and tested on the other, from saved scores.

Models are scored first; everything after that reads their files, as it reads anybody's.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_blvit.cascade.chart import cascade_chart
from sam_blvit.cascade.joined import SPLITS, Cascade, read_cascade
from sam_blvit.cascade.rule import Answers, average_cost, run_cascade
from sam_blvit.cascade.saved import SavedScores, perturbed_file
from sam_blvit.cascade.sweep import (
    Bootstrap,
    Goal,
    Sweep,
    bootstrap,
    choose,
    cost_shift,
    interval,
    random_gate,
    sweep,
)
from sam_blvit.config.cascade import CascadeConfig
from sam_blvit.system.files import check_inputs_stay, output_directory, write_atomically, write_json

SUMMARY, CURVE, SAMPLES, CHART = "summary.json", "curve.csv", "samples.csv", "cascade.svg"
FEW = 1000
"""Fitted samples below which a threshold is mostly chance; the paper's smallest set has 10,000."""


def measure_cascade(config: CascadeConfig) -> None:
    """Score the models, if any are named, then choose thresholds, test them, and write what came of it.

    Raises:
        ValueError: One line, for models, photographs or files that do not fit.
    """
    outputs = [config.output / name for name in (SUMMARY, CURVE, SAMPLES, CHART)]
    check_inputs_stay(outputs, [*config.scores, config.labels])
    if config.models:
        from sam_blvit.cascade.scoring import score_models  # PyTorch only where it is used

        config = score_models(config)
    cascade = read_cascade(config)
    costs = cascade.costs(config.minimise)
    if costs is None:
        raise ValueError(f"minimise={config.minimise}: not every file of scores has {config.minimise}")
    goal = Goal(costs, tolerance=config.tolerance, budget=config.budget)
    parts = {name: cascade.outcomes.part(cascade.split[name]) for name in SPLITS}
    sweeps = {name: sweep(part) for name, part in parts.items()}
    point = choose(sweeps["fit"], goal)
    thresholds = sweeps["fit"].thresholds(point)
    answers = run_cascade(cascade.stages(), thresholds, samples=len(cascade.labels), weight=config.weight)
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
        "shift": _shifts(config, cascade, answers, thresholds=thresholds, costs=costs),
    }
    output_directory(config.output)
    write_json(config.output / SUMMARY, summary)
    _write_table(config.output / CURVE, _curve(cascade, sweeps))
    _write_table(config.output / SAMPLES, _samples(cascade, answers))
    names = [model.source for model in cascade.models]
    chart = cascade_chart(sweeps, parts["test"], point=point, costs=costs, names=names, cost=config.minimise)
    write_atomically(config.output / CHART, lambda to: Path(to).write_text(chart, encoding="utf-8"))
    _show(summary, config)


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
        **_loaded(cascade.models, passed_on, len(index)),
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
                **_loaded([model], [], len(index)),
            }
            for stage, model in enumerate(cascade.models)
        ],
    }


def _loaded(models: Sequence[SavedScores], passed_on: Sequence[float], samples: int) -> dict[str, float]:
    """Mean milliseconds if one model at a time is in memory, loaded once for all `samples` (paper, table 9)."""
    each = [model.milliseconds for model in models if model.milliseconds is not None]
    loads = [model.load_milliseconds for model in models if model.load_milliseconds is not None]
    if len(each) < len(models) or len(loads) < len(models):
        return {}
    needed = sum(load for load, share in zip(loads, [1.0, *passed_on], strict=True) if share > 0)
    return {"milliseconds_loaded_per_pass": average_cost(each, passed_on) + needed / samples}


def _shifts(
    config: CascadeConfig, cascade: Cascade, answers: Answers, *, thresholds: Sequence[float], costs: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Accuracy and cost of clean and of corrupted test samples, at the same thresholds, by perturbation."""
    spent = np.cumsum(costs)  # by a sample, by the stage that answers it
    fitted = spent[answers.stage[cascade.split["fit"]]]
    test = cascade.split["test"]
    shifts = {}
    for name in ("clean", *config.perturb):
        if name != "clean":
            paths = tuple(perturbed_file(path, name) for path in config.scores)
            cascade = read_cascade(replace(config, scores=paths), cascade.models[0].names)
            answers = run_cascade(cascade.stages(), thresholds, samples=len(cascade.labels), weight=config.weight)
        met = spent[answers.stage[test]]
        difference, z = cost_shift(fitted, met)
        shifts[name] = {
            "accuracy": float((answers.predictions[test] == cascade.labels[test]).mean()),
            config.minimise: float(met.mean()),
            "rise": difference,
            "z": z if np.isfinite(z) else None,
            "passed_on": [float((answers.stage[test] > stage).mean()) for stage in range(len(thresholds))],
            "models": [float(right.mean()) for right in cascade.outcomes.part(test).correct],
        }
    return shifts


def _mean_costs(costs: Sequence[float], passed_on: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equation 5 for each row of `passed_on` (R, K - 1)."""
    return np.asarray(costs[0] + passed_on @ np.asarray(costs[1:]))


def _settings(config: CascadeConfig) -> dict[str, Any]:
    paths = {"scores": [str(path) for path in config.scores], "labels": str(config.labels)}
    names = (
        "perturb",
        "confidence",
        "scores_are",
        "fit_share",
        "seed",
        "minimise",
        "tolerance",
        "budget",
        "weight",
        "resamples",
    )
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
    for name, shift in summary["shift"].items():
        z = "-" if shift["z"] is None else f"{shift['z']:+.1f}"
        print(f"{name:24} accuracy {shift['accuracy']:.4f}, {cost} {shift[cost]:.6g}, {shift['rise']:+.4g} (z {z})")
    low, high = test["intervals"]["accuracy"]
    print(f"accuracy of the cascade, 95 %: {low:.4f} to {high:.4f}", config.output / SUMMARY, sep="\n")
