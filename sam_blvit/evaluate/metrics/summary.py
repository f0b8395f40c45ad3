"""Rows of measured objects, their means, and the tables a person reads.

Every mean can be made anew from instances.csv (or .parquet), which has one line an object and seed.
"""

from __future__ import annotations

import csv
import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROMPTS = ("box", "1pt", "3pt")
SMALL, LARGE = 32**2, 96**2
"""COCO's limits of small and large objects, pixels of annotated area."""
SUMMARY = "summary.json"
TABLES = ("instances.csv", "instances.parquet")
IDS = ("seed", "ann_id", "image_id", "category_id", "npix")
"""Columns of whole numbers."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One object: true and predicted IoU and Boundary IoU of the scored mask for each prompt, percent."""

    seed: int
    ann_id: int
    image_id: int
    category_id: int
    area: float
    npix: int
    """Pixels of the true mask."""
    iou_1pt: float
    iou_3pt: float
    iou_box: float
    piou_1pt: float
    piou_3pt: float
    piou_box: float
    biou_1pt: float
    biou_3pt: float
    biou_box: float
    iou_1pt_oracle: float | None = None
    iou_3pt_oracle: float | None = None
    iou_box_oracle: float | None = None


def summarised(rows: Sequence[Row], average: str = "instance") -> dict[str, Any]:
    """Means of `rows` in percent, and how the mean that is the headline, over `average`, spreads over the seeds."""
    means = {
        "miou": mean_ious(rows),
        "boundary": {"instance": _means(rows, "biou_{}")},
        "seeds": _by_seed(rows, average),
    }
    if rows[0].iou_box_oracle is not None:
        means["oracle"] = {"instance": _means(rows, "iou_{}_oracle")}
    return means


def mean_ious(rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """Means of `rows` in percent by kind of mean and prompt; None where there is nothing to average.

    `instance` is the headline. `image` and `category` average the means of each; small, medium and large are
    instance means.
    """
    sizes = {
        "small": [row for row in rows if row.area < SMALL],
        "medium": [row for row in rows if SMALL <= row.area < LARGE],
        "large": [row for row in rows if row.area >= LARGE],
    }
    return {
        "instance": _means(rows),
        "image": _mean_of_means(rows, lambda row: row.image_id),
        "category": _mean_of_means(rows, lambda row: row.category_id),
        **{size: _means(of_size) for size, of_size in sizes.items()},
    }


def miou_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The headline of each of `summaries` as a Markdown table, mIoU in percent, and its spread over several seeds."""
    head = ["model", "keep ratio", "protocol", "perturbation", "instances", *PROMPTS]
    moved = any(summary["primary_kept"] for summary in summaries)
    lines = []
    for summary in summaries:
        protocol = summary["protocol"]
        miou, spread = summary["miou"][protocol["average"]], summary["seeds"]["std"]
        cells = [f"{miou[p]:.1f}" + (f" ± {spread[p]:.1f}" if spread else "") for p in PROMPTS]
        kept = f"{summary['primary_kept']['mean']:.1f}" if summary["primary_kept"] else ""
        keep_ratio = "" if summary["keep_ratio"] is None else f"{summary['keep_ratio']:g}"
        named = [summary["model"], keep_ratio, summary["protocol_label"], summary["perturbation"]]
        lines.append([*named, str(summary["counts"]["instances"]), *cells, *([kept] if moved else [])])
    return markdown([*head, *(["primary tokens kept"] if moved else [])], lines)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def write_rows(rows: Sequence[Row], path: str, table: str) -> None:
    """One line for each of `rows`, under the names of their fields, as csv or parquet."""
    names = [field.name for field in dataclasses.fields(Row)]
    names = [name for name in names if getattr(rows[0], name) is not None]
    if table == "parquet":
        pyarrow = import_parquet()
        columns = pyarrow.table({name: [getattr(row, name) for row in rows] for name in names})
        pyarrow.parquet.write_table(columns, path)
        return
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in rows)


def read_rows(directory: Path) -> dict[str, NDArray[Any]]:
    """The columns of a run's table of instances by name; ValueError, one line, if there is none to be read."""
    path = next((directory / name for name in TABLES if (directory / name).is_file()), None)
    if path is None:
        raise ValueError(f"run {directory} holds neither {' nor '.join(TABLES)}; measure it again")
    if path.suffix == ".parquet":
        columns = import_parquet().parquet.read_table(path).to_pydict()
    else:
        with open(path, newline="") as file:
            lines = list(csv.reader(file))
        head = lines.pop(0) if lines else []
        if ragged := [line for line in lines if len(line) != len(head)]:
            raise ValueError(f"{path}: a line of {len(ragged[0])} values under {len(head)} names; measure it again")
        columns = dict(zip(head, zip(*lines, strict=True), strict=True)) if lines else {}
    missing = [field.name for field in dataclasses.fields(Row) if field.default is dataclasses.MISSING]
    if missing := [name for name in missing if name not in columns]:
        raise ValueError(f"{path}: no column {', '.join(missing)}; measure it again")
    try:
        return {name: np.array(column, dtype=np.int64 if name in IDS else float) for name, column in columns.items()}
    except ValueError as error:
        raise ValueError(f"{path} holds what is no number ({error})") from error


def import_parquet() -> Any:
    """pyarrow, which only tables in Parquet need; ValueError says how to install it."""
    try:
        import_module("pyarrow.parquet")
        return import_module("pyarrow")
    except ImportError as error:
        raise ValueError("table=parquet needs pyarrow; pip install pyarrow, or take table=csv") from error


def _by_seed(rows: Sequence[Row], average: str) -> dict[str, Any]:
    """Means over `average` of each seed, and their standard deviation where there are several."""
    seeds = list(dict.fromkeys(row.seed for row in rows))
    means = [mean_ious([row for row in rows if row.seed == seed])[average] for seed in seeds]
    values = {prompt: [mean[prompt] for mean in means] for prompt in PROMPTS}
    spread = {prompt: statistics.stdev(values[prompt]) for prompt in PROMPTS} if len(seeds) > 1 else None  # type: ignore[type-var]
    return {"seeds": seeds, average: values, "std": spread}


def _means(rows: Sequence[Row], column: str = "iou_{}") -> dict[str, float | None]:
    return {p: float(np.mean([getattr(row, column.format(p)) for row in rows])) if rows else None for p in PROMPTS}


def _mean_of_means(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> dict[str, float | None]:
    groups: dict[Hashable, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    means = [_means(group) for group in groups.values()]
    return {prompt: float(np.mean([mean[prompt] for mean in means])) if means else None for prompt in PROMPTS}
