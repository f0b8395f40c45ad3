"""Checkpoints to resume a run from: written atomically; the newest two and the best are kept.

They are written by PyTorch's distributed checkpoint and load with any number of processes. They contain no states of
random generators, because every draw depends only on the seed and the position in the run.
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
"""Prefixes of directories that are not checkpoints."""
PROGRESS = "run.json"
KEPT = 2


@dataclass
class Progress:
    """Progress of a run."""

    identity: dict[str, Any]
    """Everything that must match to resume the run."""
    origin: dict[str, Any]
    """Where the last part of the run was computed."""
    step: int = 0
    samples: int = 0
    """Number of photographs processed, including damaged ones: the position in the order of the data."""
    bad_steps: int = 0
    """Steps that were skipped because their gradient was not finite."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Reasons why photographs could not be used, by id."""
    best_score: float | None = None
    best_step: int | None = None
    warmup_samples: int = 0
    """Length of the warm-up in samples, fixed by the images per step at the start of the run."""


@dataclass(frozen=True)
class State:
    """The current tensors of a run."""

    student: Sam
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None

    def tensors(self) -> dict[str, Any]:
        """Return all tensors by name, for PyTorch's distributed checkpoint."""
        untouched = not self.optimizer.state
        model, optimizer = get_state_dict(self.student, self.optimizer)
        if untouched:  # PyTorch has made an empty step to create the moments; do not count it
            for moments in self.optimizer.state.values():
                moments["step"].zero_()
        average: dict[str, Tensor] = {} if self.average is None else self.average.values
        return {"model": model, "optimizer": optimizer, "average": average}

    def load(self, directory: Path) -> None:
        """Load the tensors in `directory`."""
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
        """Return the name of a tensor of this process with NaN or infinity, or None."""
        average = {} if self.average is None else self.average.values
        tensors = {**self.student.state_dict(), **{f"average of {name}": value for name, value in average.items()}}
        for name, parameter in self.student.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"{kind} of {name}": value for kind, value in moments.items() if isinstance(value, Tensor)}
        local = {name: value.to_local() if hasattr(value, "to_local") else value for name, value in tensors.items()}
        return first_not_finite(local)


class OtherRun(ValueError):
    """A checkpoint belongs to a run with other settings."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in the directory of a run."""

    output: Path
    processes: Processes

    def save(self, state: State, progress: Progress) -> None:
        """Write a checkpoint under a temporary name, rename it, and remove old checkpoints.

        Raises:
            ValueError: If it cannot be written. Older checkpoints are kept.
        """
        final = self._directory / f"{PREFIX}{progress.step:08d}"
        if self.processes.gathered(final.is_dir())[0]:  # already saved at this step, for example before a signal
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
                    shutil.rmtree(temporary, ignore_errors=True)  # free the space on a full disk
                raise
        self.processes.wait()

    def load_newest(self, state: State, identity: dict[str, Any]) -> Progress | None:
        """Load the newest checkpoint that can be loaded.

        Newer ones that cannot be loaded are reported in a warning and renamed.

        Returns:
            The progress of the run. None if there are no checkpoints.

        Raises:
            ValueError: If the run has another `identity`, or no checkpoint can be loaded.
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
            except (Exception, CheckpointException) as error:  # damaged files raise all kinds of exceptions
                damaged.append(directory)
                if self.processes.first:
                    warnings.warn(f"checkpoint {directory} cannot be loaded ({_reason(error)})", stacklevel=2)
                continue
            if self.processes.first:
                for other in damaged:
                    os.replace(other, other.with_name(f"{DAMAGED}{other.name}_{time.time_ns()}"))
            self.processes.wait()
            return progress
        if names:
            raise ValueError(f"none of {len(names)} checkpoints in {self._directory} can be loaded; use another output")
        return None

    def _read(self, directory: Path) -> Progress | Exception:
        """Read the progress in `directory` in the first process. Returns the exception if that fails."""
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
        """Return finished checkpoints, oldest first."""
        return sorted(self._directory.glob(f"{PREFIX}*"))

    @property
    def _directory(self) -> Path:
        return self.output / DIRECTORY

    def _remove_old(self, progress: Progress) -> None:
        best = f"{PREFIX}{progress.best_step:08d}" if progress.best_step is not None else ""
        for directory in self.found()[:-KEPT]:
            if directory.name != best:
                going = directory.with_name(f"{UNFINISHED}{directory.name}")  # a partly removed one is never found
                os.replace(directory, going)
                shutil.rmtree(going)


def read_progress(directory: Path) -> Progress:
    """Read the progress stored in the `directory` of a checkpoint."""
    return Progress(**parse_json((directory / PROGRESS).read_text()))


def _check_identity(before: dict[str, Any], now: dict[str, Any], output: Path) -> None:
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if names:
        differing = ", ".join(f"{name} {before.get(name)!r:.20} there, {now.get(name)!r:.20} here" for name in names)
        raise OtherRun(f"{output} contains a run with other settings ({differing}); use another output, or remove it")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context that turns failures to write `path` into a ValueError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
        free = shutil.disk_usage(path.parents[1]).free / 2**30
        raise ValueError(
            f"{path} cannot be written ({_reason(error)}), {free:.1f} GiB are free; make room and start again to "
            "resume from the last checkpoint"
        ) from error


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """Silence PyTorch's warning about a missing process group, which a run of one process does not have."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process.*")
        yield


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):  # has an error per failed process
        error = next(iter(error.failures.values()))[0]
    return first_line(error)
