"""The log of a run: JSON lines, and optionally TensorBoard."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

LOG_FILE = "log.jsonl"
DIGITS = 6


class Log:
    """The log of a run. Only the first process writes."""

    def __init__(self, output: Path, *, writes: bool, tensorboard: bool, step: int) -> None:
        """`step`: the step to resume from. Later entries are hidden in TensorBoard but stay in log.jsonl."""
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
        """Flush and close."""
        if self._board is not None:
            self._board.close()


def append_json(path: Path, row: dict[str, Any]) -> None:
    """Append `row` to a file of JSON lines. NaN and infinity are written as text."""
    line = json.dumps({name: _plain(value) for name, value in row.items()}, allow_nan=False) + "\n"
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # leave a line that was cut short by a kill on its own
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
