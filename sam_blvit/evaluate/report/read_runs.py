"""Evaluation runs as they lie on disk: a run is a directory with a summary.json, and a table of instances beside it.

Whatever a run lacks is said with the name of its file, and never taken for zero.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam_blvit.evaluate.metrics.statistics import Rows, duplicate
from sam_blvit.evaluate.metrics.summary import PROMPTS, SUMMARY, read_rows
from sam_blvit.system.files import parse_json

NOTHING = "-"
"""A cell without a value."""
COLUMNS_USED = ("seed", "ann_id", "image_id", "area", "npix", *(f"{k}_{p}" for p in PROMPTS for k in ("iou", "piou")))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One measurement."""

    number: int
    """What stands for it on charts, from 1."""
    name: str
    """Its directory, as far as it differs from the others'."""
    directory: Path
    summary: Any
    """What summary.json holds."""

    def value(self, path: str) -> Any:
        """What the summary has under `path`, nested names joined by dots; None if that or what it is in is null."""
        value = self.summary
        for name in path.split("."):
            if not isinstance(value, dict) or name not in value:
                raise ValueError(f"{self.directory / SUMMARY} lacks {path}; measure that run again, or leave it out")
            if (value := value[name]) is None:
                break
        return value

    def quantity(self, path: str) -> float | None:
        """The number under `path`, or None."""
        if isinstance(value := self.value(path), float | int | None):
            return value
        raise ValueError(f"{self.directory / SUMMARY}: {path}={value!r} is no number; measure that run again")

    def text(self, path: str, form: str = "") -> str:
        """What is under `path`, for people; with a `form` it has to be a number."""
        return text(self.quantity(path) if form else self.value(path), form)

    def file(self, path: str) -> str:
        """Name and first digits of the hash of the file that `path` identifies, or the word that is there instead."""
        if isinstance(word := self.value(path), str):
            return word
        return f"{self.text(f'{path}.file')} {self.text(f'{path}.sha256')[:8]}"

    @property
    def task(self) -> str:
        """miou or ap."""
        if (task := self.value("task")) not in ("miou", "ap"):
            raise ValueError(f"{self.directory / SUMMARY}: task={task!r} is not one of miou, ap")
        return str(task)

    @property
    def miou(self) -> dict[str, float | None]:
        """The headline by prompt: the mean that the run's protocol asks for, percent."""
        average = self.value("protocol.average")
        return {prompt: self.quantity(f"miou.{average}.{prompt}") for prompt in PROMPTS}

    @property
    def conditions(self) -> dict[str, str]:
        """What must agree for numbers to compare."""
        asked = {"annotations": self.text("annotations.sha256")[:8], "subset": self.text("subset")}
        if self.task == "ap":
            asked["boxes"] = self.file("boxes")
            return asked | {name: self.text(name) for name in ("judge", "select", "refine")}
        asked |= {"seeds": self.text("seeds.seeds"), "crowds measured": self.text("include_crowd")}
        rules = {
            name: str(value) for name, value in self.value("protocol").items() if name not in ("subset", "overridden")
        }
        return asked | {f"protocol {name}": value for name, value in rules.items()}

    @property
    def identity(self) -> dict[str, str]:
        """All that tells this run from others."""
        paths = ("task", "model", "checkpoint.sha256", "image_size", "keep_ratio", "perturbation")
        return self.conditions | {path: self.text(path) for path in paths}


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """Every run in or below `directories`, in their order, each once. ValueError, one line."""
    found: dict[Path, None] = {}
    for directory in directories:
        if not directory.is_dir():
            raise ValueError(f"{directory} is not a directory; name the output of eval/run_lvis.py")
        below = sorted(path.parent for path in directory.resolve().rglob(SUMMARY) if _is_run(path))
        if not below:
            warnings.warn(f"{directory} is left out: no run's {SUMMARY} in or below it", stacklevel=2)
        found |= dict.fromkeys(below)
    if not found:
        raise ValueError("no directory that is named holds a run; name the output of eval/run_lvis.py")
    root = Path(os.path.commonpath(found))
    root = root.parent if root in found else root
    return [
        Run(number=number, name=str(path.relative_to(root)), directory=path, summary=read_json(path / SUMMARY))
        for number, path in enumerate(found, start=1)
    ]


def _is_run(path: Path) -> bool:
    """Whether a summary is of a run that the page shows; a calibration's own are not."""
    summary = read_json(path)
    return not (isinstance(summary, dict) and summary.get("task") == "calibration")


def instances_of(directory: Path) -> Rows:
    """The columns in use of a run's table of instances. ValueError if a number is missing or an object there twice."""
    rows = read_rows(directory)
    for name in COLUMNS_USED:
        if (bad := ~np.isfinite(rows[name])).any():
            ann_id, value = rows["ann_id"][bad][0], rows[name][bad][0]
            raise ValueError(f"run {directory}: object {ann_id} has {name}={value}; measure it again")
    if twice := duplicate(rows):
        raise ValueError(f"run {directory}: object {twice[1]} is there twice for seed {twice[0]}; measure it again")
    return {name: rows[name] for name in COLUMNS_USED}


def read_json(path: Path) -> Any:
    """What a file of a run holds; ValueError, one line, if it is no JSON."""
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); measure that run again, or leave it out") from error


def text(value: Any, form: str) -> str:
    """`value` for people: a number in `form`, a list with commas, a dash for None."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return NOTHING if value is None else format(value, form)
