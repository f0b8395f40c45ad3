"""Runs commands as parallel processes, each with a log. None is left running, however this process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NoReturn

from studies.evidence.study import ROOT, Task

PROGRAMS = {
    "python": (sys.executable,),
    "sam-blvit": (sys.executable, "-c", "from sam_blvit.cli import main; main()"),
}
"""First words of commands, and what runs them."""


def run_chains(chains: Sequence[Sequence[Task]], *, parallel: int = 1) -> list[ValueError]:
    """Run the tasks of each of `chains` in order, `parallel` chains at once.

    Returns:
        The errors of the chains that failed.
    """
    running: set[subprocess.Popen[bytes]] = set()
    stopped = threading.Event()
    environment = dict(os.environ)
    if parallel > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // parallel)))

    def run_chain(tasks: Sequence[Task]) -> None:
        for task in tasks:
            if not stopped.is_set():
                run_task(task, environment=environment, running=running, stopped=stopped)

    before = signal.signal(signal.SIGTERM, _leave)
    pool = ThreadPoolExecutor(parallel)
    try:
        futures = [pool.submit(run_chain, tasks) for tasks in chains]
        wait(futures)
    except BaseException:
        stopped.set()
        for process in list(running):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, ValueError):
            raise error
    return [error for error in errors if isinstance(error, ValueError)]


def run_task(
    task: Task, *, environment: Mapping[str, str], running: set[subprocess.Popen[bytes]], stopped: threading.Event
) -> None:
    """Run `task` unless it has already finished. ValueError if it fails.

    Its process is in `running` while it runs. To stop, set `stopped` first, then terminate the processes.
    """
    identity = task.identity()
    if task.finished:
        print(f"{task.name}: finished before", flush=True)
        return
    print(f"{task.name}: {task.log}", flush=True)
    task.log.parent.mkdir(parents=True, exist_ok=True)
    command = [*PROGRAMS[task.words[0]], *task.words[1:]]
    with task.log.open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        running.add(process)
        if stopped.is_set():  # set after the last check, so that the process may have been missed in `running`
            process.terminate()
        code = process.wait()
        running.remove(process)
    if code:
        said = [line.strip() for line in task.log.read_text(errors="replace").splitlines() if line.strip()]
        raise ValueError(f"{task.name} ended with code {code} ({said[-1] if said else 'no output'}); see {task.log}")
    task.finish(identity)


def _leave(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)
