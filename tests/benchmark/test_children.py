"""Processes that measure, as their listener sees them: stand-ins for the worker, which need no PyTorch, and itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_cells import CELL

from sam_blvit.benchmark import children
from sam_blvit.benchmark.children import run_child
from sam_blvit.benchmark.memory import GIB, resident
from sam_blvit.benchmark.worker import Job

MIB = 2**20
JOB = Job(cells=[replace(CELL, model="blvit_tiny", keep_ratio=0.5, side=128)], rounds=2, cold=True)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def doing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str | None, list[dict[str, Any]]]]:
    """Have a child run this code instead of the worker: why it ended early, and what it said. `say(**event)`, `job`."""
    start = "import json, os, sys, time\njob = json.loads(sys.stdin.readline())\n"
    start += "say = lambda **event: print(json.dumps(event), file=open(sys.argv[1], 'a'))\n"

    def run(code: str, *, job: Job = JOB, limit: int | None = GIB) -> tuple[str | None, list[dict[str, Any]]]:
        monkeypatch.setattr(children, "WORKER", (sys.executable, "-c", start + code))
        heard: list[dict[str, Any]] = []
        return run_child(job, heard.append, limit=limit), heard

    return run


def test_a_child_is_given_its_job_and_heard(doing: Callable[..., Any]) -> None:
    assert doing("say(job=job)\nsay(second=2)\nprint('noise')") == (
        None,
        [{"job": json.loads(JOB.to_json())}, {"second": 2}],
    )


def test_a_child_that_takes_too_much_memory_is_ended_and_what_it_said_is_kept(doing: Callable[..., Any]) -> None:
    code = "say(first=1)\ntime.sleep(.2)\nblock = b'x' * (200 << 20)\ntime.sleep(60)\nsay(late=1)"
    assert doing(code, limit=100 * MIB) == ("does not fit: more than 0.1 GiB", [{"first": 1}])


def test_memory_that_is_mapped_and_not_touched_does_not_count(doing: Callable[..., Any]) -> None:
    code = "import mmap\nblock = mmap.mmap(-1, 800 << 20)\ntime.sleep(.2)\nsay(alive=1)"
    assert doing(code, limit=100 * MIB) == (None, [{"alive": 1}])


def test_a_child_that_the_system_kills_does_not_fit(doing: Callable[..., Any]) -> None:
    why, _ = doing("os.kill(os.getpid(), 9)")
    assert why == "does not fit: killed by the system"


def test_a_child_that_fails_says_why(doing: Callable[..., Any]) -> None:
    why, _ = doing("sys.exit('no\\nluck')")
    assert why == "its process ended with 1: luck"


def test_bad_input_is_an_error_of_ours(doing: Callable[..., Any], refused: Callable[..., Any]) -> None:
    with refused(ValueError, "model=x is bad"):
        doing("say(error='model=x is bad')\ntime.sleep(60)")


def test_what_a_child_started_ends_with_it(doing: Callable[..., Any]) -> None:
    code = "import subprocess\nsay(pid=subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"
    _, ((started,)) = doing(code)
    for _ in range(100):
        if not resident(started["pid"]):  # 0 until somebody asks how it ended
            break
        time.sleep(0.1)
    assert not resident(started["pid"])


def test_a_cold_child_finds_nothing_compiled_before(doing: Callable[..., Any]) -> None:
    code = "say(cache=os.environ.get('TORCHINDUCTOR_CACHE_DIR'))"
    (_, [cold]), (_, [warm]) = doing(code), doing(code, job=replace(JOB, cold=False))
    assert cold["cache"]
    assert not Path(cold["cache"]).exists()
    assert warm["cache"] == os.environ.get("TORCHINDUCTOR_CACHE_DIR")


def test_the_worker_does_a_job() -> None:
    heard: list[dict[str, Any]] = []
    assert run_child(JOB, heard.append, limit=None) is None
    said = set().union(*heard)
    assert {"machine", "input_size", "macs", "weights", "first_seconds", "peak_bytes", "macs_per_second"} <= said
    assert sum("encoder_ms" in event for event in heard) == JOB.rounds


def test_the_worker_ends_with_whoever_waits_for_it(tmp_path: Path) -> None:
    words = replace(JOB, rounds=10**9).to_json() + "\n"
    worker = [*children.WORKER, str(tmp_path / "said")]
    ended = subprocess.run(worker, input=words, text=True, check=False, timeout=120, env=os.environ)
    assert ended.returncode == 1
