"""Means of rows, by hand; the tables that people and programs read."""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam_blvit.evaluate.metrics.summary import (
    PROMPTS,
    Row,
    import_parquet,
    markdown,
    mean_ious,
    miou_table,
    read_rows,
    summarised,
    write_rows,
)

Refused = Callable[..., Any]

COLUMNS = (
    "seed,ann_id,image_id,category_id,area,npix,iou_1pt,iou_3pt,iou_box,piou_1pt,piou_3pt,piou_box,"
    "biou_1pt,biou_3pt,biou_box"
)


def row(ann_id: int, iou: float, **changed: Any) -> Row:
    values = {
        "seed": 0,
        "image_id": 1,
        "category_id": 1,
        "area": 50.0,
        "npix": 50,
        "iou_box": iou,
        "iou_1pt": iou / 2,
        "iou_3pt": iou / 4,
        "piou_box": 1.0,
        "piou_1pt": 2.0,
        "piou_3pt": 3.0,
        "biou_box": iou / 10,
        "biou_1pt": iou / 20,
        "biou_3pt": iou / 40,
    }
    return Row(ann_id=ann_id, **{**values, **changed})


def with_oracle(measured: Row, gain: float) -> Row:
    best = {f"iou_{prompt}_oracle": getattr(measured, f"iou_{prompt}") + gain for prompt in PROMPTS}
    return dataclasses.replace(measured, **best)


ROWS = [
    row(1, 10.0, image_id=1, category_id=1, area=1023.9),
    row(2, 20.0, image_id=1, category_id=2, area=1024.0),
    row(3, 60.0, image_id=2, category_id=2, area=9216.0),
]


# means ---------------------------------------------------------------------------------------------------------------


def test_instance_image_and_category_means_differ() -> None:
    means = mean_ious(ROWS)
    assert means["instance"] == {"box": 30.0, "1pt": 15.0, "3pt": 7.5}
    assert means["image"]["box"] == pytest.approx((15 + 60) / 2)
    assert means["category"]["box"] == pytest.approx((10 + 40) / 2)
    assert means["category"]["3pt"] == pytest.approx((10 + 40) / 8)


def test_sizes_are_cocos_by_annotated_area() -> None:
    means = mean_ious(ROWS)
    assert [means[size]["box"] for size in ("small", "medium", "large")] == [10.0, 20.0, 60.0]


def test_a_large_object_starts_at_96_pixels_squared() -> None:
    means = mean_ious([row(1, 10.0, area=9215.9), row(2, 60.0, area=9216.0)])
    assert [means[size]["box"] for size in ("small", "medium", "large")] == [None, 10.0, 60.0]


def test_a_size_without_objects_has_no_mean() -> None:
    assert mean_ious(ROWS[:1])["large"] == {"box": None, "1pt": None, "3pt": None}


def test_boundary_iou_has_a_mean_of_its_own() -> None:
    assert summarised(ROWS)["boundary"] == {"instance": {"box": 3.0, "1pt": 1.5, "3pt": 0.75}}


def test_a_summary_holds_the_means_of_all_rows() -> None:
    assert summarised(ROWS)["miou"] == mean_ious(ROWS)


def test_an_oracle_has_a_mean_where_it_was_measured() -> None:
    measured = [with_oracle(each, gain) for each, gain in zip(ROWS, (1.0, 2.0, 6.0), strict=True)]
    assert summarised(measured)["oracle"] == {"instance": {"box": 33.0, "1pt": 18.0, "3pt": 10.5}}


def test_an_oracle_that_was_not_measured_has_no_mean() -> None:
    assert "oracle" not in summarised(ROWS)


# seeds ---------------------------------------------------------------------------------------------------------------

OTHER_SEED = [
    dataclasses.replace(row(each.ann_id, iou), seed=7, image_id=each.image_id, category_id=each.category_id)
    for each, iou in zip(ROWS, (16.0, 26.0, 66.0), strict=True)
]
"""The objects of ROWS with IoUs that are 6 higher."""


def test_the_mean_is_over_all_seeds() -> None:
    assert summarised(ROWS + OTHER_SEED)["miou"]["instance"]["box"] == pytest.approx(33.0)


def test_each_seed_has_a_mean_and_several_a_spread() -> None:
    seeds = summarised(ROWS + OTHER_SEED)["seeds"]
    assert seeds["seeds"] == [0, 7]
    assert seeds["instance"]["box"] == pytest.approx([30.0, 36.0])
    assert seeds["instance"]["3pt"] == pytest.approx([7.5, 9.0])
    assert seeds["std"]["box"] == pytest.approx(18**0.5)  # of a sample: (9 + 9) / (2 - 1)
    assert seeds["std"]["1pt"] == pytest.approx(18**0.5 / 2)


def test_seeds_stand_in_the_order_they_were_given() -> None:
    assert summarised(OTHER_SEED + ROWS)["seeds"]["seeds"] == [7, 0]


def test_one_seed_has_no_spread() -> None:
    seeds = summarised(OTHER_SEED)["seeds"]
    assert seeds["seeds"] == [7]
    assert seeds["std"] is None


# tables for people ---------------------------------------------------------------------------------------------------


def summary(rows: list[Row], **changed: Any) -> dict[str, Any]:
    about = {
        "model": "blvit_tiny",
        "keep_ratio": 0.25,
        "protocol": {"name": "blvit", "average": "instance"},
        "protocol_label": "blvit",
        "perturbation": "clean",
        "counts": {"instances": 3},
        "primary_kept": None,
    }
    return {**about, **summarised(rows), **changed}


HEAD = "| model | keep ratio | protocol | perturbation | instances | box | 1pt | 3pt |"


def test_the_table_shows_the_headline() -> None:
    assert miou_table([summary(ROWS)]).splitlines() == [
        HEAD,
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| blvit_tiny | 0.25 | blvit | clean | 3 | 30.0 | 15.0 | 7.5 |",
    ]


def test_the_table_has_a_line_for_each_summary() -> None:
    summaries = [summary(ROWS), summary(OTHER_SEED, keep_ratio=1.0, protocol_label="blvit select=single")]
    assert miou_table(summaries).splitlines()[2:] == [
        "| blvit_tiny | 0.25 | blvit | clean | 3 | 30.0 | 15.0 | 7.5 |",
        "| blvit_tiny | 1 | blvit select=single | clean | 3 | 36.0 | 18.0 | 9.0 |",
    ]


def test_the_table_shows_the_spread_over_seeds() -> None:
    line = miou_table([summary(ROWS + OTHER_SEED)]).splitlines()[-1]
    assert line.endswith("| 3 | 33.0 ± 4.2 | 16.5 ± 2.1 | 8.2 ± 1.1 |")


def test_a_foreign_model_has_no_keep_ratio_in_the_table() -> None:
    line = miou_table([summary(ROWS, model="rival:build", keep_ratio=None)]).splitlines()[-1]
    assert line.startswith("| rival:build |  | blvit |")


def test_the_headline_is_the_mean_that_the_protocol_averages() -> None:
    protocol = {"name": "cal", "average": "category"}
    line = miou_table([summary(ROWS, protocol=protocol, protocol_label="cal")]).splitlines()[-1]
    assert line.endswith("| cal | clean | 3 | 25.0 | 12.5 | 6.2 |")


def test_the_spread_is_that_of_the_mean_it_stands_beside() -> None:
    # over categories both seeds have (10 + 40) / 2; over instances 30 and 22
    other = [row(1, 10.0), row(2, 35.0, category_id=2), row(3, 45.0, category_id=2), row(4, 20.0), row(5, 0.0)]
    rows = [*ROWS, *(dataclasses.replace(each, seed=1) for each in other)]
    assert summarised(rows)["seeds"]["std"]["box"] > 1
    by_category = {"protocol": {"name": "cal", "average": "category"}, **summarised(rows, "category")}
    line = miou_table([summary(rows, **by_category)]).splitlines()[-1]
    assert line.endswith("| 25.0 ± 0.0 | 12.5 ± 0.0 | 6.2 ± 0.0 |")


def test_the_table_shows_the_tokens_that_stayed_primary_where_that_was_measured() -> None:
    moved = summary(ROWS, perturbation="dark", primary_kept={"1": 71.0, "mean": 71.04})
    lines = miou_table([summary(ROWS), moved]).splitlines()
    assert lines[0] == f"{HEAD} primary tokens kept |"
    assert lines[2].endswith("| 7.5 |  |")
    assert lines[3].endswith("| dark | 3 | 30.0 | 15.0 | 7.5 | 71.0 |")


def test_a_markdown_table_has_a_rule_under_its_head() -> None:
    assert markdown(["a", "b"], [["1", "2"], ["3", ""]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 |  |"


# tables for programs -------------------------------------------------------------------------------------------------

EXACT = [row(1, 100 / 3, area=0.1 + 0.2), row(2**40, 2 / 7, seed=3, image_id=10**9), row(3, 5e-324)]


def assert_columns(columns: dict[str, Any], rows: list[Row]) -> None:
    names = [field.name for field in dataclasses.fields(Row)]
    assert list(columns) == [name for name in names if getattr(rows[0], name) is not None]
    for name, values in columns.items():
        assert values.tolist() == [getattr(each, name) for each in rows]
        assert values.dtype == (np.int64 if type(getattr(rows[0], name)) is int else np.float64)


def test_rows_come_back_from_csv_exactly(tmp_path: Path) -> None:
    write_rows(EXACT, str(tmp_path / "instances.csv"), "csv")
    assert_columns(read_rows(tmp_path), EXACT)


def test_oracle_columns_come_back_where_they_were_measured(tmp_path: Path) -> None:
    rows = [with_oracle(each, 1 / 3) for each in EXACT]
    write_rows(rows, str(tmp_path / "instances.csv"), "csv")
    assert_columns(read_rows(tmp_path), rows)


def test_columns_are_named_by_what_they_hold(tmp_path: Path) -> None:
    write_rows(EXACT, str(tmp_path / "instances.csv"), "csv")
    with (tmp_path / "instances.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert ",".join(header) == COLUMNS
    assert len(lines) == len(EXACT)


def test_oracle_columns_follow_the_others(tmp_path: Path) -> None:
    write_rows([with_oracle(ROWS[0], 1.0)], str(tmp_path / "instances.csv"), "csv")
    header = (tmp_path / "instances.csv").read_text().splitlines()[0]
    assert header == f"{COLUMNS},iou_1pt_oracle,iou_3pt_oracle,iou_box_oracle"


def test_rows_come_back_from_parquet_exactly(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = [with_oracle(each, 1 / 3) for each in EXACT]
    write_rows(rows, str(tmp_path / "instances.parquet"), "parquet")
    assert_columns(read_rows(tmp_path), rows)


def test_a_run_without_a_table_is_refused(tmp_path: Path, refused: Refused) -> None:
    with refused(ValueError, match=r"run .* holds neither instances\.csv nor instances\.parquet; measure it again"):
        read_rows(tmp_path)


def changed_table(directory: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Write ROWS and change the lines of the file."""
    path = directory / "instances.csv"
    write_rows(ROWS, str(path), "csv")
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: [*lines[:-1], lines[-1][: len(lines[-1]) // 2]], r": a line of \d+ values under 15 names;"),
        (lambda lines: [line.split(",", 1)[1] for line in lines], ": no column seed; measure it again"),
        (lambda lines: [line.rsplit(",", 2)[0] for line in lines], ": no column biou_3pt, biou_box; measure it again"),
        (lambda lines: [*lines, lines[-1].replace("60.0", "sixty")], r" holds what is no number \(.*sixty"),
        (lambda lines: [*lines, "1.5" + lines[-1][1:]], r" holds what is no number \(.*1\.5"),
        (lambda lines: lines[:1], ""),
        (lambda lines: [], ""),
    ],
    ids=["torn", "no first column", "no last columns", "a word", "a broken id", "no rows", "empty"],
)
def test_a_table_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, refused: Refused, change: Callable[[list[str]], list[str]], told: str
) -> None:
    changed_table(tmp_path, change)
    with refused(ValueError, match=rf"instances\.csv{told}"):
        read_rows(tmp_path)


@pytest.fixture
def no_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails


@pytest.mark.usefixtures("no_pyarrow")
def test_without_pyarrow_one_line_says_how_to_go_on(tmp_path: Path, refused: Refused) -> None:
    line = "table=parquet needs pyarrow; pip install pyarrow, or take table=csv"
    with refused(ValueError, match=line):
        import_parquet()
    with refused(ValueError, match=line):
        write_rows(ROWS, str(tmp_path / "instances.parquet"), "parquet")
    (tmp_path / "instances.parquet").write_bytes(b"PAR1")
    with refused(ValueError, match="needs pyarrow"):
        read_rows(tmp_path)


@pytest.mark.usefixtures("no_pyarrow")
def test_csv_needs_no_pyarrow(tmp_path: Path) -> None:
    write_rows(ROWS, str(tmp_path / "instances.csv"), "csv")
    assert_columns(read_rows(tmp_path), ROWS)
