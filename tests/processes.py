"""Trainers as processes of their own (tests/trainer.py): started, killed, joined, and what their diaries say."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file

Seen = dict[int, list[tuple[int, int]]]
"""Samples (epoch, image id) by the step that saw them."""

TESTS = Path(__file__).parent
FOLDERS = [TESTS, *sorted({path.parent for path in TESTS.rglob("test_*.py")} - {TESTS}), TESTS.parent]
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, FOLDERS))  # for the server that processes fork from
SERVER = multiprocessing.get_context("forkserver")  # imports once what takes seconds; each trainer is still its own
SERVER.set_forkserver_preload(["trainer"])


@dataclass(frozen=True)
class Run:
    """Processes that belong together."""

    processes: list[ForkServerProcess]
    said: list[Path]
    """What each of them printed."""


class Command:
    """A Python command in a process of its own, as subprocess.Popen would start it, but for seconds of imports."""

    def __init__(
        self, words: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdout: IO[bytes], stderr: int
    ) -> None:
        self.process = SERVER.Process(target=_python, args=(words[1:], dict(env), stdout.name, stdout.name, cwd))
        self.process.start()

    def wait(self) -> int:
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    def terminate(self) -> None:
        self.process.terminate()


def run_in_two(code: str, *words: object) -> list[str]:
    """Run Python `code`, given `words`, in two processes as torchrun starts them, to their end; what each printed."""
    with tempfile.TemporaryDirectory() as said:
        run = start_python(["-c", code, *map(str, words)], Path(said), ranks=2)
        try:
            finish(run, seconds=90)
        finally:
            for process in run.processes:
                process.kill()
        return [path.read_text() for path in run.said[::2]]


def start_python(words: Sequence[str], said: Path, *, ranks: int) -> Run:
    """`python` with `words`, in `ranks` processes as torchrun starts them; what they print goes to files in `said`."""
    said.mkdir(parents=True, exist_ok=True)
    run = Run([], [])
    for rank, joined in enumerate(_joined(ranks)):
        run.said.extend(said / f"{rank}_{stream}.txt" for stream in ("out", "err"))
        given = (words, {**os.environ, **joined}, *run.said[-2:], Path.cwd())
        run.processes.append(SERVER.Process(target=_python, args=given))
        run.processes[-1].start()
    return run


def _python(words: Sequence[str], environment: Mapping[str, str], out: str | Path, err: str | Path, cwd: Path) -> None:
    """What `python` does with `words`: a script or `-c`, and what is given to it."""
    os.environ.update(environment)
    os.chdir(cwd)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of readers of data, as where nobody forked this process
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


def _joined(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each of so many processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


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
    run = Run([], [])
    variables = {"DIARY": str(diary), **(environment or {})}
    for rank, joined in enumerate([{}] if ranks == 1 else _joined(ranks)):
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
