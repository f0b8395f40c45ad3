"""What came of the study: a result for each row, and the page of tables that a person reads."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sam_blvit.evaluate.metrics.statistics import RESAMPLES, Rows, compare
from sam_blvit.evaluate.metrics.summary import SUMMARY, markdown
from sam_blvit.evaluate.report.read_runs import NOTHING, Run, instances_of, read_json, text
from sam_blvit.system.files import file_sha256
from studies.evidence.rows import BASELINE, DIAL, ROWS, TABLES
from studies.evidence.study import DEVICES, OfSeed, Study

PROMPTS = {"1pt": "1-point", "3pt": "3-point", "box": "box"}
NOT_RUN = "not run"
M = 1e6
PROMPT_SEEDS = 1000
"""More than there are: with it a seed of training and one of prompts make one number."""
ON_GPU = "python -m studies.evidence --data DATA --output runs/gpu --size gpu --parallel 4"
Times = Mapping[tuple[str, str, int], float | None]
"""Milliseconds of the encoder by model, device and side."""


def results(study: Study) -> dict[str, dict[str, Any]]:
    """What was measured of every row by its name, plain JSON values: means over seeds, null for what was not run."""
    baseline = _evaluations(study, BASELINE, study.miou)
    times = {
        (row["cell"]["model"], row["cell"]["device"], row["cell"]["side"]): row["encoder"] and row["encoder"]["median"]
        for group in timed(study)
        for row in group["rows"]
    }
    return {name: _result(study, name, baseline, times) for name in ROWS}


def timed(study: Study) -> list[dict[str, Any]]:
    """What the benchmark wrote, a group for each device and side."""
    task = study.benchmark()
    groups: list[dict[str, Any]] = read_json(task.directory / "benchmark.json")["groups"] if task.finished else []
    return groups


def _result(study: Study, name: str, baseline: Sequence[Run], times: Times) -> dict[str, Any]:
    runs = _evaluations(study, name, study.miou)
    first = runs[0] if runs else None
    model = study.timed(name) or ""
    spent = {device: {str(side): times.get((model, device, side)) for side in study.size.sides} for device in DEVICES}
    return {
        "row": name,
        "what": ROWS[name].what,
        "seeds": [run.number for run in runs],
        "miou": {prompt: _mean([run.miou[prompt] for run in runs]) for prompt in PROMPTS},
        "difference": None if name == BASELINE else _differences(runs, baseline),
        "ap": _mean([run.quantity("ap.AP") for run in _evaluations(study, name, study.ap)]),
        "keep_ratio": first and first.quantity("keep_ratio"),
        "encoder_gmacs": {how: first and first.quantity(f"macs.encoder_{how}") for how in ("paper", "full")},
        "parameters": first and first.quantity("parameters"),
        "encoder_ms": spent,
        "dial": _curve(study, name),
    }


def _evaluations(study: Study, name: str, task: OfSeed) -> list[Run]:
    """What `task` measured of row `name`, numbered by the seed of training."""
    return [_read(seed, task(name, seed).directory) for seed in study.seeds_of(name, task)]


def _read(seed: int, directory: Path) -> Run:
    return Run(number=seed, name=directory.name, directory=directory, summary=read_json(directory / SUMMARY))


def _differences(runs: Sequence[Run], baseline: Sequence[Run]) -> dict[str, Any] | None:
    """Mean and interval of `runs` minus `baseline` by prompt, on the objects of both; None unless both have the same
    seeds of training."""
    if not runs or [run.number for run in runs] != [run.number for run in baseline]:
        return None
    intervals = compare(_instances(runs), _instances(baseline)).differences
    return {prompt: asdict(interval) for prompt, interval in intervals.items()} or None


def _instances(runs: Sequence[Run]) -> Rows:
    """The objects of `runs` in one table, in which a seed is that of training and that of prompts."""
    tables = [instances_of(run.directory) for run in runs]
    seeds = [PROMPT_SEEDS * run.number + table["seed"] for run, table in zip(runs, tables, strict=True)]
    joined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    return {**joined, "seed": np.concatenate(seeds)}


def _curve(study: Study, name: str) -> list[dict[str, Any]]:
    """mIoU along the dial, means over seeds."""
    places = [study.dial(name, seed).directory for seed in study.seeds_of(name, study.dial)]
    points = []
    for ratio in DIAL if places else ():
        runs = [_read(0, place / f"keep-{ratio:.15g}") for place in places]
        miou = {prompt: _mean([run.miou[prompt] for run in runs]) for prompt in PROMPTS}
        points.append({"keep_ratio": ratio, "miou": miou, "encoder_gmacs": runs[0].quantity("macs.encoder_full")})
    return points


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def page(study: Study, found: Mapping[str, dict[str, Any]]) -> str:
    """evidence.md."""
    parts = ["# Evidence", _caption(study, found)]
    for title, names in TABLES.items():
        lines = [_cells(found[name]) for name in names]
        parts += [f"## {title}", markdown(list(lines[0]), [list(line.values()) for line in lines])]
    if curves := [line for row in found.values() for line in _dial_cells(row)]:
        parts += ["## The dial", markdown(list(curves[0]), [list(line.values()) for line in curves])]
    commands = "\n".join(shlex.join(task.words) for task in study.finished())
    parts += ["## Commands", f"In the root of the repository:\n\n```\n{commands}\n```"]
    return "\n\n".join(parts) + "\n"


def _cells(found: Mapping[str, Any]) -> dict[str, str]:
    """A line of a table by column."""
    cells = _head(found)
    cells |= {told: _number(found["miou"][prompt]) for prompt, told in PROMPTS.items()}
    cells |= {f"{told} - {BASELINE}": _interval(found, prompt) for prompt, told in PROMPTS.items()}
    gmacs, parameters = found["encoder_gmacs"], found["parameters"]
    cells |= {"AP": _number(found["ap"]), "GMACs, paper's": _number(gmacs["paper"], ".2f")}
    cells |= {"GMACs, all": _number(gmacs["full"], ".2f"), "M parameters": _number(parameters and parameters / M)}
    for device, told in DEVICES.items():
        cells |= {f"ms, {told}, {side} px": _number(ms) for side, ms in found["encoder_ms"][device].items()}
    return cells if found["seeds"] else {**dict.fromkeys(cells, NOTHING), **_head(found)}


def _head(found: Mapping[str, Any]) -> dict[str, str]:
    seeds = ", ".join(map(str, found["seeds"]))
    return {"row": f"`{found['row']}`", "": found["what"], "seeds": seeds or NOT_RUN}


def _number(value: float | None, form: str = ".1f") -> str:
    return NOT_RUN if value is None else text(value, form)


def _interval(found: Mapping[str, Any], prompt: str) -> str:
    if found["row"] == BASELINE:
        return NOTHING
    if found["difference"] is None:
        return NOT_RUN
    of = found["difference"][prompt]
    return f"{of['mean']:+.2f} ({of['low']:+.2f} to {of['high']:+.2f})"


def _dial_cells(found: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "row": f"`{found['row']}`",
            "keep ratio": f"{point['keep_ratio']:g}",
            **{told: _number(point["miou"][prompt]) for prompt, told in PROMPTS.items()},
            "GMACs, all": _number(point["encoder_gmacs"], ".2f"),
        }
        for point in found["dial"]
    ]


def _caption(study: Study, found: Mapping[str, dict[str, Any]]) -> str:
    """What the numbers of the tables are."""
    config, size = study.config, study.size
    teacher = "trained here" if config.teacher is None else f"{config.teacher.name} {file_sha256(config.teacher)[:8]}"
    side, batch = size.settings["image_size"], size.settings["batch_size"]
    seen = "as they are" if size.cached else "cropped and mirrored"
    seeds = sorted({seed for row in found.values() for seed in row["seeds"]})
    machines = dict.fromkeys(map(_machine, timed(study)))
    return " ".join(
        [
            f"Size `{config.size}`: {side} px, {study.steps} steps of {batch} photographs, {seen}, for every row.",
            f"All start from one dense teacher ({teacher}) but `scratch`; distilled rows learn from its embedding",
            f"alone for the first {size.alone:.0%} of the steps. Seeds of training: {_listed(seeds)}; of prompts:",
            f"{_listed(size.prompt_seeds)}. mIoU, of the best of the decoder's three masks by predicted IoU, and AP",
            "with annotated boxes, of its single mask, as eval/run_coco.py scores it: in percent, models in float32,",
            f"means over seeds. Differences to `{BASELINE}`, where a row has its seeds of training, with the 95 %",
            f"interval of {RESAMPLES} paired resamples of photographs, which says nothing of how trainings differ.",
            "GMACs and milliseconds of the encoder for one square image: GMACs in the paper's convention and with",
            "every product counted; milliseconds in bfloat16, batch 1, median, all rows of a side in turn in one",
            "process.",
            f"Machine: {'; '.join(machines) or NOT_RUN}.",
            *([] if config.size == "gpu" else [f"On a GPU: `{ON_GPU}`."]),
        ]
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or NOT_RUN


def _machine(group: Mapping[str, Any]) -> str:
    of = group["machine"]
    processor = f"{of['processor']}, {of['threads']} threads, torch {of['torch']}"
    return f"{of['gpu']} ({processor})" if "gpu" in of else processor
