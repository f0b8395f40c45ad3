"""Processes that measure: started one at a time, listened to, and ended before they take the machine's memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sam_blvit.benchmark.memory import GIB, resident
from sam_blvit.benchmark.worker import Job
from sam_blvit.system.files import parse_json

WORKER = (sys.executable, "-m", "sam_blvit.benchmark.worker")
LOOK = 0.02
"""Seconds between two looks at a process."""
KILLED = -signal.SIGKILL


def run_child(job: Job, listen: Callable[[dict[str, Any]], object], *, limit: int | None) -> str | None:
    """Have a process of its own do `job`; `listen` gets what it says. `limit`: bytes that it may take.

    Returns why it ended early, in one line, or None. Raises ValueError if it was given bad input.
    """
    with tempfile.TemporaryDirectory() as scratch:
        said, complaints = Path(scratch, "said"), Path(scratch, "complaints")
        said.touch()
        with complaints.open("w") as errors:
            process = subprocess.Popen(
                [*WORKER, str(said)],
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                text=True,
                env=os.environ | ({"TORCHINDUCTOR_CACHE_DIR": scratch} if job.cold else {}),  # nothing compiled before
                start_new_session=True,
            )
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(job.to_json() + "\n")
                process.stdin.flush()  # and left open: its end would be the worker's
            fits = _attend(process, said, listen, limit)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and the processes that compile for it
            process.wait()
            process.stdin.close()
        if not fits:
            return f"does not fit: more than {(limit or 0) / GIB:.1f} GiB"
        if process.returncode == KILLED:
            return "does not fit: killed by the system"
        if process.returncode:
            last = complaints.read_text(errors="replace").strip().splitlines()[-1:]
            return f"its process ended with {process.returncode}: {''.join(last)}"
    return None


def _attend(process: subprocess.Popen[str], said: Path, listen: Callable[[Any], object], limit: int | None) -> bool:
    """Pass on what is `said` until `process` ends (true) or takes more than `limit` (false)."""
    with said.open() as lines:
        begun = ""
        while True:
            ended = process.poll() is not None
            *whole, begun = (begun + lines.read()).split("\n")
            for event in map(parse_json, whole):
                if "error" in event:
                    raise ValueError(event["error"])
                listen(event)
            if ended:
                return True
            if limit is not None and (resident(process.pid) or 0) > limit:
                return False
            time.sleep(LOOK)
