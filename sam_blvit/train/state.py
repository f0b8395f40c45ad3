"""What a run needs to go on: checkpoints that are there as a whole or not at all, the newest two and the best.

PyTorch's distributed checkpoint writes them, so they load with any number of processes. Nothing random is in them:
every draw follows from the seed and what was seen, so there is no generator whose state could be lost.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from sam_blvit.distributed import Processes
from sam_blvit.files import first_line, write_json
from sam_blvit.model.sam import Sam
from sam_blvit.train.optim import MovingAverage

DIRECTORY = "checkpoints"
PREFIX = "step_"
UNFINISHED = ".unfinished_"
PROGRESS = "run.json"
KEPT = 2


@dataclass
class Progress:
    """How far a run is."""

    identity: dict[str, Any]
    """The settings that make it this run."""
    origin: dict[str, Any]
    """Where its last part was computed."""
    step: int = 0
    samples: int = 0
    """Photographs that were taken in, damaged ones too: the place in the order."""
    bad_steps: int = 0
    """Steps skipped for a gradient that is no number."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Photographs that could not be used, by id, and why."""
    best_score: float | None = None
    best_step: int | None = None
    finished: bool = False


@dataclass(frozen=True)
class State:
    """The tensors of a run, as they are now."""

    student: Sam
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None

    def tensors(self) -> dict[str, Any]:
        """All of them by name, for PyTorch's distributed checkpoint."""
        model, optimizer = get_state_dict(self.student, self.optimizer)
        average: dict[str, Tensor] = {} if self.average is None else self.average.values
        return {"model": model, "optimizer": optimizer, "average": average}

    def load(self, directory: Path) -> None:
        """Take over the tensors in `directory`."""
        tensors = self.tensors()
        with _alone_is_fine():
            checkpoint.load(tensors, checkpoint_id=directory)
        set_state_dict(
            self.student,
            self.optimizer,
            model_state_dict=tensors["model"],
            optim_state_dict=tensors["optimizer"],
        )


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in the directory of a run."""

    output: Path
    processes: Processes

    def save(self, state: State, progress: Progress) -> None:
        """Write everything under another name, then give it its own; remove what is not to be kept."""
        final = self._directory / f"{PREFIX}{progress.step:08d}"
        if final.is_dir():  # the same step again, say after a signal: nothing has changed
            return
        temporary = self._directory / f"{UNFINISHED}{final.name}"
        if self.processes.first:
            for left in self._directory.glob(f"{UNFINISHED}*"):
                shutil.rmtree(left)
            temporary.mkdir(parents=True)
        self.processes.wait()
        with _alone_is_fine():
            checkpoint.save(state.tensors(), checkpoint_id=temporary)
        self.processes.wait()
        if self.processes.first:
            write_json(temporary / PROGRESS, asdict(progress))
            os.replace(temporary, final)
            self._remove_old(progress)
        self.processes.wait()

    def load_newest(self, state: State) -> Progress | None:
        """Take over the newest checkpoint that loads, saying of each newer one why not; None if there is none."""
        found = self.found()
        for directory in reversed(found):
            try:
                progress = read_progress(directory)
                state.load(directory)
            except (Exception, CheckpointException) as error:  # damage shows itself as anything
                if self.processes.first:
                    warnings.warn(f"checkpoint {directory} does not load ({_reason(error)})", stacklevel=2)
                continue
            return progress
        if found:
            raise ValueError(
                f"none of {len(found)} checkpoints in {self._directory} loads; name another output, or remove it"
            )
        return None

    def found(self) -> list[Path]:
        """Finished checkpoints, the oldest first."""
        return sorted(self._directory.glob(f"{PREFIX}*"))

    @property
    def _directory(self) -> Path:
        return self.output / DIRECTORY

    def _remove_old(self, progress: Progress) -> None:
        best = f"{PREFIX}{progress.best_step:08d}" if progress.best_step is not None else ""
        for directory in self.found()[:-KEPT]:
            if directory.name != best:
                going = directory.with_name(f"{UNFINISHED}{directory.name}")  # so that half of it is never found
                os.replace(directory, going)
                shutil.rmtree(going)


def read_progress(directory: Path) -> Progress:
    """The progress stored in a checkpoint's `directory`."""
    return Progress(**json.loads((directory / PROGRESS).read_text()))


def changed(before: dict[str, Any], now: dict[str, Any]) -> Sequence[str]:
    """Names of the settings in which two runs differ."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """PyTorch warns where no process group is; a run of one process has none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process.*")
        yield


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):  # one for every process that failed
        error = next(iter(error.failures.values()))[0]
    return first_line(error)
