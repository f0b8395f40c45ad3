"""Trainers as processes of their own (tests/trainer.py): started, killed, joined, and what their diaries say."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Seen = dict[int, list[tuple[int, int]]]
"""Samples (epoch, image id) by the step that saw them."""

TESTS = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])  # for the server that processes fork from
SERVER = multiprocessing.get_context("forkserver")  # imports once what takes seconds; each trainer is still its own
SERVER.set_forkserver_preload(["trainer"])


@dataclass(frozen=True)
class Run:
    """The processes of one training run."""

    processes: list[ForkServerProcess]
    said: list[Path]
    """What each of them printed."""


def run_in_two(code: str, *words: object) -> list[str]:
    """Run Python `code`, given `words`, in two processes as torchrun starts them, to their end; what each printed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=90) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    return [out for out, _ in said]


def start(
    output: Path, data: Path, *, ranks: int = 1, environment: Mapping[str, str] | None = None, **settings: Any
) -> Run:
    """`ranks` processes of a training run, its diary beside its output. A setting of None is left out.

    `environment` is for the switches of tests/trainer.py.
    """
    from trainer import train

    diary = _diary(output)
    diary.mkdir(parents=True, exist_ok=True)
    settings = {"model": "blvit_tiny", **settings}
    flags = [word for name, value in settings.items() if value is not None for word in _flag(name, value)]
    flags = ["--data", str(data), "--output", str(output), "--device", "cpu", *flags]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    run = Run([], [])
    variables = {"DIARY": str(diary), **(environment or {})}
    for rank in range(ranks):
        joined = {} if ranks == 1 else {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        }  # fmt: skip
        run.said.append(diary / f"{rank}_{len(list(diary.iterdir()))}.txt")
        run.processes.append(SERVER.Process(target=train, args=(flags, {**variables, **joined}, run.said[-1])))
        run.processes[-1].start()
    return run


def finish(run: Run, *, code: int = 0, seconds: float = 240) -> str:
    """Wait for all; what they said, if each ended with `code`."""
    for process in run.processes:
        process.join(seconds)
    said = "\n".join(path.read_text() for path in run.said)
    codes = [process.exitcode for process in run.processes]
    assert codes == [code] * len(codes), f"{codes}\n{said[-4000:]}"
    return said


def kill(run: Run, number: signal.Signals = signal.SIGKILL) -> None:
    """Send all of them a signal; after SIGKILL they are gone."""
    for process in run.processes:
        assert process.pid is not None
        os.kill(process.pid, number)
    if number == signal.SIGKILL:
        for process in run.processes:
            process.join()


def diary(output: Path) -> list[tuple[int, list[tuple[int, int]]]]:
    """What each process saw in each step, in the order it was written down; a line cut short by a kill left out."""
    entries = []
    for path in sorted(_diary(output).glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            entries.append((entry["step"], [(epoch, image_id) for epoch, image_id in entry["seen"]]))
    return entries


def seen(output: Path) -> Seen:
    """Samples by step, of all processes; a step made twice must have seen the same both times."""
    by_step: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for step, samples in diary(output):
        by_step[step] |= set(samples)
    return {step: sorted(samples) for step, samples in sorted(by_step.items())}


def assert_each_once(steps: Seen) -> None:
    """No photograph was seen by two steps of an epoch."""
    samples = [sample for step in steps.values() for sample in step]
    assert len(samples) == len(set(samples)), "a photograph was seen twice in an epoch"


def gradients(output: Path) -> list[dict[str, torch.Tensor]]:
    """The gradients of each step after clipping, as the first process had them."""
    paths = sorted(_diary(output).glob("gradients_*.safetensors"))
    return [load_file(path) for path in paths]


def model(output: Path) -> dict[str, torch.Tensor]:
    """The tensors of the run's model."""
    return load_file(output / "last.safetensors")


def assert_equal_models(one: Path, other: Path) -> None:
    """Two runs ended with the same weights, bit for bit."""
    first, second = model(one), model(other)
    assert set(first) == set(second)
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def _diary(output: Path) -> Path:
    return output.with_name(f"{output.name}_diary")


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{name.replace('_', '-')}"]
    return [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
