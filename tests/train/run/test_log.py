"""Logs: JSON lines, and TensorBoard on request."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from sam_blvit.train.run.log import Log


def log(output: Path, *, step: int = 0, **options: bool) -> Log:
    return Log(output, **{"writes": True, "tensorboard": False, **options}, step=step)


def lines(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_each_row_is_a_line_of_json(tmp_path: Path) -> None:
    mine = log(tmp_path)
    mine.write(1, {"loss": 0.5})
    mine.write(2, {"loss": 0.25, "router_1/entropy": 1})
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "router_1/entropy": 1}]


def test_a_number_that_is_none_stays_json(tmp_path: Path) -> None:
    log(tmp_path).write(1, {"loss": math.nan})
    assert lines(tmp_path) == [{"step": 1, "loss": "nan"}]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    log(tmp_path, writes=False).write(1, {"loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_a_log_goes_on_after_what_is_there(tmp_path: Path) -> None:
    log(tmp_path).write(1, {"loss": 0.5})
    log(tmp_path).write(2, {"loss": 0.4})
    assert [row["step"] for row in lines(tmp_path)] == [1, 2]


def test_tensorboard_holds_the_same_numbers(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    mine = log(tmp_path, tensorboard=True)
    mine.write(3, {"loss": 0.5, "note": "text is for the JSON alone"})
    mine.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5)]


def test_where_a_run_goes_on_tensorboard_forgets_the_steps_after_and_no_other(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start in (0, 2):
        mine = log(tmp_path, tensorboard=True, step=start)
        for step in range(start + 1, start + 4):
            mine.write(step, {"loss": 10.0 * start + step})
        mine.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(1, 1), (2, 2), (3, 23), (4, 24), (5, 25)]


def test_tensorboard_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="tensorboard is not installed; pip install tensorboard"):
        log(tmp_path, tensorboard=True)
