"""What a run needs to go on: checkpoints that are there as a whole or not at all, the newest two and the best.

PyTorch's distributed checkpoint writes them, so they load with any number of processes. Nothing random is in them:
every draw follows from the seed and what was seen, so there is no generator whose state could be lost.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from sam_blvit.checkpoint.format import first_not_finite
from sam_blvit.model.sam import Sam
from sam_blvit.system.distributed import Processes
from sam_blvit.system.files import first_line, parse_json, to_disk, write_json
from sam_blvit.train.optim import MovingAverage

DIRECTORY = "checkpoints"
PREFIX = "step_"
UNFINISHED, DAMAGED = ".unfinished_", ".damaged_"
"""Before the names of what is not to be found."""
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
    warmup_samples: int = 0
    """Samples of the warm-up, by the images a step that the run began with."""


@dataclass(frozen=True)
class State:
    """The tensors of a run, as they are now."""

    student: Sam
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None

    def tensors(self) -> dict[str, Any]:
        """All of them by name, for PyTorch's distributed checkpoint."""
        untouched = not self.optimizer.state
        model, optimizer = get_state_dict(self.student, self.optimizer)
        if untouched:  # PyTorch has made a step of nothing, to have moments to name: it must not count
            for moments in self.optimizer.state.values():
                moments["step"].zero_()
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

    def first_not_finite(self) -> str | None:
        """The name of a tensor of this process that holds NaN or infinity; None if there is none."""
        average = {} if self.average is None else self.average.values
        tensors = {**self.student.state_dict(), **{f"average of {name}": value for name, value in average.items()}}
        for name, parameter in self.student.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"{kind} of {name}": value for kind, value in moments.items() if isinstance(value, Tensor)}
        local = {name: value.to_local() if hasattr(value, "to_local") else value for name, value in tensors.items()}
        return first_not_finite(local)


class OtherRun(ValueError):
    """A checkpoint of a run with other settings; the message is one line."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in the directory of a run."""

    output: Path
    processes: Processes

    def save(self, state: State, progress: Progress) -> None:
        """Write everything under another name, then give it its own; remove what is not to be kept.

        ValueError, one line, where the disk does not take it; older checkpoints stay.
        """
        final = self._directory / f"{PREFIX}{progress.step:08d}"
        if self.processes.gathered(final.is_dir())[0]:  # the same step again, say after a signal: nothing has changed
            return
        temporary = self._directory / f"{UNFINISHED}{final.name}"
        with writing(final):
            if self.processes.first:
                for left in self._directory.glob(f"{UNFINISHED}*"):
                    shutil.rmtree(left)
                temporary.mkdir(parents=True)
            self.processes.wait()
            try:
                with _alone_is_fine():
                    checkpoint.save(state.tensors(), checkpoint_id=temporary)
                self.processes.wait()
                if self.processes.first:
                    write_json(temporary / PROGRESS, asdict(progress))
                    os.replace(temporary, final)
                    to_disk(self._directory)
                    self._remove_old(progress)
            except BaseException:
                if self.processes.first:
                    shutil.rmtree(temporary, ignore_errors=True)  # a full disk wants the room
                raise
        self.processes.wait()

    def load_newest(self, state: State, identity: dict[str, Any]) -> Progress | None:
        """Take over the newest checkpoint that loads; None if there is none.

        Of each newer one it is said why it does not load, and it is put aside under another name. ValueError where
        the run has another `identity`, or where none loads.
        """
        names = self.processes.gathered([directory.name for directory in self.found()])[0]
        damaged: list[Path] = []
        for directory in (self._directory / name for name in reversed(names)):
            progress = self._read(directory)
            try:
                if isinstance(progress, Exception):
                    raise progress
                _check_identity(progress.identity, identity, self.output)
                state.load(directory)
                if bad := [name for name in self.processes.gathered(state.first_not_finite()) if name is not None]:
                    raise ValueError(f"{bad[0]} is not finite")
            except OtherRun:
                raise
            except (Exception, CheckpointException) as error:  # damage shows itself as anything
                damaged.append(directory)
                if self.processes.first:
                    warnings.warn(f"checkpoint {directory} does not load ({_reason(error)})", stacklevel=2)
                continue
            if self.processes.first:
                for other in damaged:
                    os.replace(other, other.with_name(f"{DAMAGED}{other.name}_{time.time_ns()}"))
            self.processes.wait()
            return progress
        if names:
            raise ValueError(f"none of {len(names)} checkpoints in {self._directory} loads; name another output")
        return None

    def _read(self, directory: Path) -> Progress | Exception:
        """The progress in `directory`, or what is wrong with it, as the first process finds it."""
        found: Progress | Exception | None = None
        if self.processes.first:
            try:
                found = read_progress(directory)
            except Exception as error:
                found = error
        first = self.processes.gathered(found)[0]
        assert first is not None
        return first

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
    return Progress(**parse_json((directory / PROGRESS).read_text()))


def _check_identity(before: dict[str, Any], now: dict[str, Any], output: Path) -> None:
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if names:
        differing = ", ".join(f"{name} {before.get(name)!r:.20} there, {now.get(name)!r:.20} here" for name in names)
        raise OtherRun(f"{output} holds a run with other settings ({differing}); name another output, or remove it")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever fails while `path` is written becomes a ValueError, one line."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
        free = shutil.disk_usage(path.parents[1]).free / 2**30
        raise ValueError(
            f"{path} cannot be written ({_reason(error)}), {free:.1f} GiB are free; make room and start again: the run "
            "goes on from its last checkpoint"
        ) from error


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
