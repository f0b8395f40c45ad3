"""What a run says while it goes: JSON lines always, TensorBoard where it is asked for."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

LOG_FILE = "log.jsonl"
DIGITS = 6


class Log:
    """The log of a run; only its first process has one that writes."""

    def __init__(self, output: Path, *, writes: bool, tensorboard: bool, step: int) -> None:
        """`step`: where the run goes on. What TensorBoard holds of later ones is superseded; log.jsonl keeps it."""
        self._path = output / LOG_FILE if writes else None
        self._board = _board(output, step) if writes and tensorboard else None

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Add one line."""
        if self._path is None:
            return
        append_json(self._path, {"step": step, **row})
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is held back."""
        if self._board is not None:
            self._board.close()


def append_json(path: Path, row: dict[str, Any]) -> None:
    """Add `row` to a file of JSON lines; numbers that are none are written as text."""
    line = json.dumps({name: _plain(value) for name, value in row.items()}, allow_nan=False) + "\n"
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # what a kill cut short stays a line of its own
                line = "\n" + line
        file.write(line.encode())


def _plain(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)


def _board(output: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard is not installed; pip install tensorboard, or leave out --tensorboard") from error
    return SummaryWriter(str(output / "tensorboard"), purge_step=step + 1)
