"""`sam-blvit benchmark`, whole, and how it asks processes to measure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from sam_blvit.benchmark import command
from sam_blvit.benchmark.cells import Group, plan
from sam_blvit.benchmark.command import benchmark, measure
from sam_blvit.benchmark.memory import GIB
from sam_blvit.benchmark.worker import Job
from sam_blvit.config import BenchmarkConfig

Answer = Callable[[Job, Callable[[dict[str, Any]], None]], "str | None"]


class Children:
    """Stands in for processes: remembers what it was asked, and answers as told."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.jobs: list[Job] = []
        self.limits: list[int | None] = []

    def __call__(self, job: Job, listen: Callable[[dict[str, Any]], None], *, limit: int | None) -> str | None:
        self.jobs.append(job)
        self.limits.append(limit)
        return self.answer(job, listen)


def well(job: Job, listen: Callable[[dict[str, Any]], None]) -> None:
    """All goes well."""
    listen({"machine": {"processor": "A chip"}})
    for index in range(len(job.cells)):
        listen({"cell": index, "macs": 10**9, "input_size": [64, 64], "weights": "random"})
        if job.cold:
            listen({"cell": index, "first_seconds": 3.0, "peak_bytes": GIB})
        for turn in range(job.rounds):
            listen({"cell": index, "encoder_ms": 10.0 + turn + index, "decoder_ms": 5.0})
    for _ in range(job.rounds):
        listen({"dtype": "bfloat16", "macs_per_second": 1e12})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Group, Children]]:
    """Measure the only group of `models` by processes that answer so."""

    def ask(models: list[str], answer: Answer, **settings: Any) -> tuple[Group, Children]:
        children = Children(answer)
        monkeypatch.setattr(command, "run_child", children)
        config = BenchmarkConfig(**{"devices": ("cpu",), "rounds": 2, **settings})
        (group,) = plan(models, config)
        with tqdm(disable=True) as bar:
            measure(group, config, bar)
        return group, children

    return ask


def test_on_a_cpu_each_model_is_measured_alone_and_then_all_of_them_together(asked: Callable[..., Any]) -> None:
    group, children = asked(["vit_b", "vit_l"], well)
    assert [([cell.model for cell in job.cells], job.rounds, job.cold) for job in children.jobs] == [
        (["vit_b"], 0, True),
        (["vit_l"], 0, True),
        (["vit_b", "vit_l"], 2, False),
    ]
    assert [row.encoder_ms for row in group.rows] == [[10, 11], [11, 12]]
    assert [row.first_seconds for row in group.rows] == [3, 3]
    assert group.machine == {"processor": "A chip"}
    assert group.rates == {"bfloat16": [1e12, 1e12]}


def test_on_another_device_too_each_is_first_measured_alone(
    asked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (8, 0))
    _, children = asked(["vit_b", "vit_l"], well, devices=("cuda",))
    assert [(len(job.cells), job.rounds, job.cold) for job in children.jobs] == [
        (1, 0, True),
        (1, 0, True),
        (2, 2, False),
    ]


def test_what_does_not_fit_alone_is_not_timed_with_the_others(asked: Callable[..., Any]) -> None:
    def answer(job: Job, listen: Callable[[dict[str, Any]], None]) -> str | None:
        well(job, listen)
        return "does not fit: too much" if job.cells[0].model == "vit_l" else None

    group, children = asked(["vit_l", "vit_b"], answer)
    assert [cell.model for cell in children.jobs[-1].cells] == ["vit_b"]
    assert [row.problem for row in group.rows] == ["does not fit: too much", None]
    assert [row.encoder_ms for row in group.rows] == [[], [10, 11]]


def test_where_none_fits_none_is_timed(asked: Callable[..., Any]) -> None:
    _, children = asked(["vit_l"], lambda job, listen: "does not fit")
    assert len(children.jobs) == 1


def test_what_a_process_says_of_a_problem_counts(asked: Callable[..., Any]) -> None:
    def answer(job: Job, listen: Callable[[dict[str, Any]], None]) -> None:
        listen({"cell": 0, "problem": "does not compile: so it is"})

    group, _ = asked(["vit_b"], answer)
    assert group.rows[0].problem == "does not compile: so it is"


def test_models_that_do_not_fit_side_by_side_say_so(asked: Callable[..., Any]) -> None:
    def answer(job: Job, listen: Callable[[dict[str, Any]], None]) -> str | None:
        if job.cold:
            return well(job, listen)
        for times in range(2):
            listen({"cell": 0, "encoder_ms": 1.0 + times, "decoder_ms": 1.0})
        return "does not fit: killed by the system"

    group, _ = asked(["vit_b", "vit_l"], answer)
    beside = "does not fit: killed by the system, with the others of its shape"
    assert [row.problem for row in group.rows] == [None, beside]


@pytest.mark.parametrize(
    ("settings", "there", "limit"), [({}, 100 * GIB, 90 * GIB), ({"memory_limit": 2.0}, GIB, 2 * GIB), ({}, None, None)]
)
def test_a_process_may_take_what_is_available_or_what_is_allowed(
    asked: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    there: int | None,
    limit: int | None,
) -> None:
    monkeypatch.setattr(command, "available", lambda: there)
    _, children = asked(["vit_b"], well, **settings)
    assert children.limits == [limit, limit]


def test_charts_are_drawn_along_what_was_varied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run_child", Children(well))
    settings: dict[str, Any] = {"devices": ("cpu",), "output": tmp_path}
    benchmark(["vit_b"], BenchmarkConfig(**settings))
    assert {path.name for path in tmp_path.glob("*.svg")} == {"macs.svg"}
    benchmark(
        ["vit_b"],
        BenchmarkConfig(**settings, sides=(512, 1024), batches=(1, 2), threads=(1, 2), aspects=("square", "4:3")),
    )
    axes = {"side.svg", "batch.svg", "threads.svg", "aspect.svg"}
    assert {path.name for path in tmp_path.glob("*.svg")} == {"macs.svg"} | axes


def test_a_benchmark_writes_what_it_measured(tmp_path: Path) -> None:
    config = BenchmarkConfig(devices=("cpu",), dtypes=("float32",), sides=(128,), rounds=2, output=tmp_path)
    text = benchmark(["blvit_tiny"], config)
    assert (tmp_path / "benchmark.md").read_text() == text
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert written.keys() == {"date", "sam_blvit", "rounds", "groups"}
    (group,) = written["groups"]
    (row,) = group["rows"]
    assert group["machine"]["torch"]
    assert len(group["rates"]["float32"]) == len(row["encoder_ms"]) == len(row["decoder_ms"]) == 2
    assert row["cell"]["model"] == "blvit_tiny"
    assert row["ratio"] == 1
    assert min(row["encoder_ms"]) <= row["encoder"]["median"] <= max(row["encoder_ms"])
    assert row["problem"] is None
    assert row["peak_bytes"] > 0
    assert row["first_seconds"] > 0
    assert row["floor_ms"] == pytest.approx(row["macs"] / statistics.median(group["rates"]["float32"]) * 1e3)
    assert group["shape"] in text
    assert "blvit_tiny" in (tmp_path / "macs.svg").read_text()


def test_bad_input_of_a_module_is_one_line(tmp_path: Path, refused: Callable[..., Any]) -> None:
    with refused(ValueError, "model=nosuch:sam cannot be imported"):
        benchmark(["nosuch:sam"], BenchmarkConfig(devices=("cpu",), output=tmp_path))
