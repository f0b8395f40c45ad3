"""Runs are found once each under their own names, and one line says what is wrong with one that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from runs import ap_run, miou_run, rows_of
from sam_blvit.evaluate.report.read_runs import instances_of, read_runs

Refused = Callable[[type[Exception], str], AbstractContextManager[object]]


def test_every_run_below_a_directory_counts_once_in_the_order_given(tmp_path: Path) -> None:
    for name in ("x/b", "x/a", "x/a/dark", "y"):
        ap_run(tmp_path / "runs" / name)
    runs = tmp_path / "runs"
    found = read_runs([runs / "y", runs / "x", runs / "x" / ".." / "y", runs])
    assert [(run.number, run.name) for run in found] == [(1, "y"), (2, "x/a"), (3, "x/a/dark"), (4, "x/b")]


def test_a_run_above_another_keeps_its_name(tmp_path: Path) -> None:
    ap_run(tmp_path / "x" / "dark")
    ap_run(tmp_path / "x")
    assert [run.name for run in read_runs([tmp_path])] == ["x", "x/dark"]


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_directory_is_refused(tmp_path: Path, refused: Refused, name: str) -> None:
    (tmp_path / "file").write_text("{}")
    with refused(ValueError, f"{name} is not a directory; name the output of"):
        read_runs([tmp_path / name])


def test_a_directory_without_runs_is_left_out_with_a_note(tmp_path: Path) -> None:
    ap_run(tmp_path / "x")
    (tmp_path / "empty").mkdir()
    with pytest.warns(UserWarning, match="empty is left out: no run's summary.json in or below it"):
        assert len(read_runs([tmp_path / "empty", tmp_path / "x"])) == 1


def test_a_calibrations_own_summaries_are_no_runs(tmp_path: Path) -> None:
    ap_run(tmp_path / "x")
    (tmp_path / "calibration" / "vit_b").mkdir(parents=True)
    (tmp_path / "calibration" / "vit_b" / "summary.json").write_text('{"task": "calibration"}')
    assert [run.name for run in read_runs([tmp_path])] == ["x"]


def test_no_directory_is_refused(tmp_path: Path, refused: Refused) -> None:
    with refused(ValueError, "no directory that is named holds a run"):
        read_runs([])


@pytest.mark.parametrize("content", [b"{", b"\xff", b""])
def test_a_summary_that_is_no_json_is_refused(tmp_path: Path, refused: Refused, content: bytes) -> None:
    (miou_run(tmp_path / "a") / "summary.json").write_bytes(content)
    with refused(ValueError, r"a/summary.json is no JSON \("):
        read_runs([tmp_path / "a"])


def test_a_run_without_its_instances_is_refused(tmp_path: Path, refused: Refused) -> None:
    (miou_run(tmp_path / "a") / "instances.csv").unlink()
    with refused(ValueError, "a holds neither instances.csv nor instances.parquet"):
        instances_of(tmp_path / "a")


def test_instances_without_a_column_are_refused(tmp_path: Path, refused: Refused) -> None:
    rows = [{name: value for name, value in row.items() if name != "piou_3pt"} for row in rows_of()]
    with refused(ValueError, "instances.csv: no column piou_3pt"):
        instances_of(miou_run(tmp_path / "a", rows=rows))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_instances_without_a_number_are_refused(tmp_path: Path, refused: Refused, value: str) -> None:
    rows = rows_of()
    rows[4]["biou_box"] = float(value)  # not used
    rows[3]["piou_1pt"] = float(value)
    with refused(ValueError, f"a: object 3 has piou_1pt={value}; measure it again"):
        instances_of(miou_run(tmp_path / "a", rows=rows))
