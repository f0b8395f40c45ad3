"""Cascades of saved scores over many splits: mean and spread of accuracy and cost, as Markdown tables.

$ python -m studies.cascade_seeds runs/lite/scores/lite_lite{0,1,2}.npz --labels labels.csv \\
    --perturb jpeg10 blur3 dark shift32

Every pair of the models, and all of them in a row. Files are those of eval/run_cascade.py, cheapest model first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sam_blvit.cascade.joined import Cascade, read_cascade, split_samples
from sam_blvit.cascade.rule import average_cost, run_cascade
from sam_blvit.cascade.saved import perturbed_file
from sam_blvit.cascade.sweep import Goal, choose, cost_shift, random_gate, sweep
from sam_blvit.cli import run
from sam_blvit.config.cascade import CascadeConfig
from sam_blvit.evaluate.metrics.summary import markdown

G = 1e9


@dataclass(frozen=True, kw_only=True)
class SeedsConfig:
    """Saved scores, and the splits that thresholds are fitted and tested on."""

    positional: ClassVar[str] = "scores"
    scores: tuple[Path, ...]
    """Files of saved scores, cheapest model first."""
    labels: Path
    """CSV table with columns name (or file) and label."""
    seeds: int = 10
    """Splits, of seeds 0, 1, 2 and so on."""
    fit_shares: tuple[float, ...] = (0.1, 0.25, 0.5)
    """Shares of the samples that thresholds are fitted on. The first tables have the last share."""
    tolerances: tuple[float, ...] = (0.0, 0.01)
    """Accuracies that may be lost on the fitted samples."""
    perturb: tuple[str, ...] = ()
    """Corrupted copies that there are scores of."""


@dataclass(frozen=True)
class Split:
    """A cascade whose thresholds were fitted on one split, and what it gives on the other."""

    cascade: Cascade
    thresholds: list[float]

    def stages(self, cascade: Cascade, split: str) -> tuple[NDArray[np.int64], float]:
        """The stage that answers each sample of `split`, of `cascade` at these thresholds, and the accuracy."""
        answers = run_cascade(cascade.stages(), self.thresholds, samples=len(cascade.labels))
        index = cascade.split[split]
        return answers.stage[index], float((answers.predictions[index] == cascade.labels[index]).mean())

    def measured(self) -> dict[str, float]:
        """Numbers of the test samples, in percent, G and milliseconds."""
        stage, accuracy = self.stages(self.cascade, "test")
        test = self.cascade.outcomes.part(self.cascade.split["test"])
        passed_on = [float((stage > gate).mean()) for gate in range(len(self.thresholds))]
        of_models = test.correct.mean(axis=1)
        costs = self.cascade.all_costs
        macs = average_cost(costs["macs"], passed_on)
        numbers = {
            "accuracy": 100 * accuracy,
            "big": 100 * float(of_models[-1]),
            "change": 100 * (accuracy - float(of_models[-1])),
            "gate": 100 * random_gate(test, passed_on),
            "mix": 100 * float(np.interp(macs, costs["macs"], of_models)),
            "macs": macs / G,
            "saved": 100 * (1 - macs / costs["macs"][-1]),
            "passed": 100 * passed_on[-1],
        }
        if "milliseconds" in costs:
            numbers["milliseconds"] = average_cost(costs["milliseconds"], passed_on)
            loads = [model.load_milliseconds or 0 for model in self.cascade.models]
            numbers["loaded"] = numbers["milliseconds"] + sum(loads) / len(stage)
        return numbers


def splits(cascade: Cascade, config: SeedsConfig, *, share: float, tolerance: float) -> Iterator[Split]:
    """`cascade` with its thresholds fitted on each of the splits."""
    for seed in range(config.seeds):
        names = cascade.models[0].names
        of_seed = replace(cascade, split=split_samples(names, fit_share=share, seed=seed))
        swept = sweep(of_seed.outcomes.part(of_seed.split["fit"]))
        point = choose(swept, Goal(of_seed.all_costs["macs"], tolerance=tolerance))
        yield Split(of_seed, swept.thresholds(point))


def spread(rows: Sequence[Mapping[str, float]], name: str, *, digits: int = 1, sign: str = "") -> str:
    """Mean and standard deviation over the seeds; what a quiet machine must measure, if it is not there."""
    if any(name not in row for row in rows):
        return "(ms)"
    values = [row[name] for row in rows]
    return f"{np.mean(values):{sign}.{digits}f} ± {np.std(values):.{digits}f}"


def cascades(config: SeedsConfig) -> list[tuple[Path, ...]]:
    """Every pair, and all models if there are more than two."""
    return [*combinations(config.scores, 2), *([config.scores] if len(config.scores) > 2 else [])]


def read(paths: Sequence[Path], config: SeedsConfig, names: Sequence[str] = ()) -> Cascade:
    """The files as a cascade of the samples `names`; its split counts for nothing."""
    return read_cascade(CascadeConfig(scores=tuple(paths), labels=config.labels, output=Path()), names)


def title(paths: Sequence[Path]) -> str:
    """The models' names without their module."""
    return " + ".join(path.stem.rpartition("_")[2] for path in paths)


def accuracy_table(config: SeedsConfig) -> str:
    """Each cascade beside its last model, a random gate and a random choice of one model at equal MACs."""
    header = ["cascade", "may lose", "accuracy", "big model", "change", "GMACs", "saved", "asked the last"]
    header += ["random gate", "one model at random", "ms", "ms, loaded per pass"]
    rows = []
    for paths in cascades(config):
        cascade = read(paths, config)
        for tolerance in config.tolerances:
            of = [each.measured() for each in splits(cascade, config, share=config.fit_shares[-1], tolerance=tolerance)]
            cells = [spread(of, "accuracy"), spread(of, "big"), spread(of, "change", sign="+")]
            cells += [spread(of, "macs", digits=3), spread(of, "saved"), spread(of, "passed"), spread(of, "gate")]
            cells += [spread(of, "mix"), spread(of, "milliseconds"), spread(of, "loaded")]
            rows.append([title(paths), f"{100 * tolerance:g}", *cells])
    return markdown(header, rows)


def model_table(config: SeedsConfig) -> str:
    """Each model alone."""
    whole = read(config.scores, config)
    rows = []
    for model, correct in zip(whole.models, whole.outcomes.correct, strict=True):
        times = ["(ms)" if value is None else f"{value:.1f}" for value in (model.milliseconds, model.load_milliseconds)]
        name = model.source.rpartition("_")[2]
        rows.append([name, f"{100 * correct.mean():.1f}", f"{model.macs / G:.3f}", *times])
    return markdown(["model", "accuracy, all photographs", "GMACs", "ms", "loading, ms"], rows)


def size_table(config: SeedsConfig) -> str:
    """What a small fitted set costs, at no tolerance."""
    rows = []
    for paths in cascades(config):
        cells, cascade = [], read(paths, config)
        for share in config.fit_shares:
            of = [each.measured() for each in splits(cascade, config, share=share, tolerance=0)]
            worst = min(row["change"] for row in of)
            cells.append(f"{spread(of, 'change', sign='+')}, worst {worst:+.1f}; {spread(of, 'macs', digits=3)} G")
        rows.append([title(paths), *cells])
    return markdown(["cascade", *(f"{share:g} of the samples" for share in config.fit_shares)], rows)


def shift_table(config: SeedsConfig) -> str:
    """Corrupted copies of the test samples at the thresholds of clean ones, at no tolerance."""
    header = ["cascade", "copies", "accuracy", "last model alone", "GMACs", "rise, %", "z"]
    rows = []
    for paths in cascades(config):
        clean = read(paths, config)
        fitted = list(splits(clean, config, share=config.fit_shares[-1], tolerance=0))
        for name in ("clean", *config.perturb):
            copies = read([perturbed_file(path, name) for path in paths], config, clean.models[0].names)
            of = [shifted(split, copies) for split in fitted]
            cells = [spread(of, "accuracy"), spread(of, "big"), spread(of, "macs", digits=3)]
            rows.append([title(paths), name, *cells, spread(of, "rise", sign="+"), spread(of, "z", sign="+")])
    return markdown(header, rows)


def shifted(split: Split, copies: Cascade) -> dict[str, float]:
    """Numbers of the copies of the test samples."""
    costs = np.cumsum(split.cascade.all_costs["macs"]) / G
    copies = replace(copies, split=split.cascade.split)
    stage, accuracy = split.stages(copies, "test")
    fitted = costs[split.stages(split.cascade, "fit")[0]]
    rise, z = cost_shift(fitted, costs[stage])
    last = copies.outcomes.part(copies.split["test"]).correct[-1]
    return {
        "accuracy": 100 * accuracy,
        "big": 100 * float(last.mean()),
        "macs": float(costs[stage].mean()),
        "rise": 100 * rise / float(fitted.mean()),
        "z": z,
    }


def show(config: SeedsConfig) -> None:
    """Print the tables."""
    tables = [model_table(config), accuracy_table(config), size_table(config), shift_table(config)]
    print("\n\n".join(tables))


if __name__ == "__main__":
    run(show)
