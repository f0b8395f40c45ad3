"""Means of rows, by hand."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from sam_blvit.evaluate.summary import Row, mean_ious, summary_table, write_csv


def row(ann_id: int, iou: float, *, image_id: int = 1, category_id: int = 1, area: float = 50.0) -> Row:
    return Row(
        ann_id=ann_id,
        image_id=image_id,
        category_id=category_id,
        area=area,
        npix=50,
        iou_box=iou,
        iou_1pt=iou / 2,
        iou_3pt=iou / 4,
        piou_box=1.0,
        piou_1pt=2.0,
        piou_3pt=3.0,
    )


ROWS = [
    row(1, 10.0, image_id=1, category_id=1, area=1023.9),
    row(2, 20.0, image_id=1, category_id=2, area=1024.0),
    row(3, 60.0, image_id=2, category_id=2, area=9216.0),
]


def test_instance_image_and_category_means_differ() -> None:
    means = mean_ious(ROWS)
    assert means["instance"] == {"box": 30.0, "1pt": 15.0, "3pt": 7.5}
    assert means["image"]["box"] == pytest.approx((15 + 60) / 2)
    assert means["category"]["box"] == pytest.approx((10 + 40) / 2)
    assert means["category"]["3pt"] == pytest.approx((10 + 40) / 8)


def test_sizes_are_cocos_by_annotated_area() -> None:
    means = mean_ious(ROWS)
    assert [means[size]["box"] for size in ("small", "medium", "large")] == [10.0, 20.0, 60.0]


def test_a_size_without_objects_has_no_mean() -> None:
    assert mean_ious(ROWS[:1])["large"] == {"box": None, "1pt": None, "3pt": None}


def test_the_table_shows_the_headline() -> None:
    summary = {
        "model": "blvit_tiny",
        "keep_ratio": 0.25,
        "protocol": {"name": "blvit"},
        "counts": {"instances": 3},
        "miou": mean_ious(ROWS),
    }
    assert summary_table(summary).splitlines() == [
        "| model | keep ratio | protocol | instances | box | 1pt | 3pt |",
        "|---|---|---|---|---|---|---|",
        "| blvit_tiny | 0.25 | blvit | 3 | 30.0 | 15.0 | 7.5 |",
    ]


def test_rows_come_back_from_the_file_exactly(tmp_path: Path) -> None:
    rows = [row(1, 100 / 3), row(2, 2 / 7)]
    write_csv(rows, str(tmp_path / "rows.csv"))
    with open(tmp_path / "rows.csv", newline="") as file:
        header, *lines = csv.reader(file)
    assert ",".join(header) == (
        "ann_id,image_id,category_id,area,npix,iou_1pt,iou_3pt,iou_box,piou_1pt,piou_3pt,piou_box"
    )
    for line, expected in zip(lines, rows, strict=True):
        assert [float(value) for value in line] == list(dataclasses.astuple(expected))
