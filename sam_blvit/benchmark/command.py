"""`sam-blvit benchmark`: milliseconds and memory of models beside each other, as Markdown, JSON and charts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sam_blvit import __version__
from sam_blvit.benchmark.cells import Group, Row, plan
from sam_blvit.benchmark.children import run_child
from sam_blvit.benchmark.memory import GIB, available
from sam_blvit.benchmark.plot import macs_chart, scale_chart
from sam_blvit.benchmark.table import header, markdown, results
from sam_blvit.benchmark.worker import Job
from sam_blvit.checkpoint.load import weight_files
from sam_blvit.config import BenchmarkConfig, WeightsConfig
from sam_blvit.system.files import check_inputs_stay, output_directory, write_atomically, write_json
from sam_blvit.system.revision import git_revision

SHARE_OF_AVAILABLE = 0.9
SCALES = ("side", "batch", "threads", "aspect")
"""What has a chart of its own where it varies."""


def benchmark(models: Sequence[str], config: BenchmarkConfig) -> str:
    """Measure `models` in every way that `config` asks for, and write benchmark.md, benchmark.json and SVG charts, anew
    after each group.

    Returns the Markdown. ValueError, one line, for bad input.
    """
    names = ("benchmark.json", "benchmark.md", "macs.svg", *(f"{axis}.svg" for axis in SCALES))
    inputs = (file for model in models for file in weight_files(WeightsConfig(model=model)))
    check_inputs_stay((config.output / name for name in names), inputs)
    groups, measured = plan(models, config), []
    output = output_directory(config.output)
    about = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "sam_blvit": f"{__version__}, git {git_revision() or 'none'}",
        "rounds": config.rounds,
    }
    steps = sum(len(group.rows) for group in groups) * (config.rounds + 1)
    with tqdm(total=steps, desc="benchmark", unit="run", disable=None) as bar:
        for group in groups:
            bar.set_postfix_str(group.shape)
            measure(group, config, bar)
            measured.append(group)
            _write_all(output, about, measured)
    return markdown(about, measured)


def measure(group: Group, config: BenchmarkConfig, bar: tqdm[Any]) -> None:
    """Fill the rows of `group`. Each is first measured alone, which gives its first call and its memory, and says
    whether it fits; then those that do are timed together."""
    there = available()
    most = None if there is None else round(SHARE_OF_AVAILABLE * there)
    if config.memory_limit is not None:
        most = round(config.memory_limit * GIB)
    for row in group.rows:
        job = Job([row.cell], rounds=0, cold=True)
        row.problem = run_child(job, partial(hear, group, [row], bar), limit=most) or row.problem
    rows = [row for row in group.rows if row.problem is None]
    if rows:
        job = Job([row.cell for row in rows], rounds=config.rounds, cold=False)
        ended = run_child(job, partial(hear, group, rows, bar), limit=most)
        for row in rows:
            if ended is not None and row.problem is None and len(row.encoder_ms) < config.rounds:
                row.problem = f"{ended}, with the others of its shape"


def hear(group: Group, rows: Sequence[Row], bar: tqdm[Any], event: dict[str, Any]) -> None:
    """Put what a process says about `rows` of `group` where it belongs."""
    if "cell" in event:
        rows[event.pop("cell")].take(event)
        bar.update("first_seconds" in event or "encoder_ms" in event)
    elif "machine" in event:
        group.machine = event["machine"]
    else:
        group.rates.setdefault(event["dtype"], []).append(event["macs_per_second"])


def _write_all(output: Path, about: dict[str, Any], groups: Sequence[Group]) -> None:
    write_json(output / "benchmark.json", {**about, "groups": [_as_json(group) for group in groups]})
    caption = header(about, groups)
    texts = {"benchmark.md": markdown(about, groups), "macs.svg": macs_chart(groups, caption)}
    for axis in SCALES:
        if len({getattr(row.cell, axis) for group in groups for row in group.rows} - {None}) > 1:
            texts[f"{axis}.svg"] = scale_chart(groups, axis, caption)
    for name, text in texts.items():
        write_atomically(output / name, partial(_write, text=text))


def _as_json(group: Group) -> dict[str, Any]:
    """`group` with its raw times and what they come to."""
    rows = [{**dataclasses.asdict(row), **result} for row, result in zip(group.rows, results(group), strict=True)]
    return {"shape": group.shape, "machine": group.machine, "rates": group.rates, "rows": rows}


def _write(to: str, text: str) -> None:
    Path(to).write_text(text)
