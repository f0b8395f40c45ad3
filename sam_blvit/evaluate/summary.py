"""Rows of measured objects, their means, and the table a person reads.

Every mean can be made anew from instances.csv, which has one line an object.
"""

from __future__ import annotations

import csv
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PROMPTS = ("box", "1pt", "3pt")
SMALL, LARGE = 32**2, 96**2
"""COCO's limits of small and large objects, pixels of annotated area."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One object: true and predicted IoU of the scored mask for each prompt, percent."""

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


def summary_table(summary: Mapping[str, Any]) -> str:
    """The headline of `summary` as a Markdown table, mIoU in percent."""
    miou = summary["miou"]["instance"]
    return "\n".join(
        [
            f"| model | keep ratio | protocol | instances | {' | '.join(PROMPTS)} |",
            f"|---|---|---|---|{'---|' * len(PROMPTS)}",
            f"| {summary['model']} | {summary['keep_ratio']:g} | {summary['protocol']['name']} "
            f"| {summary['counts']['instances']} | {' | '.join(f'{miou[prompt]:.1f}' for prompt in PROMPTS)} |",
        ]
    )


def write_csv(rows: Sequence[Row], path: str) -> None:
    """One line for each of `rows`, under the names of their fields."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def _means(rows: Sequence[Row]) -> dict[str, float | None]:
    return {p: float(np.mean([getattr(row, f"iou_{p}") for row in rows])) if rows else None for p in PROMPTS}


def _mean_of_means(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> dict[str, float | None]:
    groups: dict[Hashable, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    means = [_means(group) for group in groups.values()]
    return {prompt: float(np.mean([mean[prompt] for mean in means])) if means else None for prompt in PROMPTS}
