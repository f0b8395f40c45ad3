"""Where code runs: the device a name stands for, and this process among those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

PATIENCE = timedelta(days=1)
"""How long a process waits for the others."""


@dataclass(frozen=True)
class Processes:
    """This process among those that share a command's work."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes for all."""
        return self.rank == 0

    def wait(self) -> None:
        """Return once every process is here; ValueError, soon, if one of them ended before."""
        if self.count == 1:
            return
        try:
            distributed.barrier()
        except RuntimeError as error:
            raise ValueError(
                "another process of this run has ended, and its message says why; go on with --resume, nothing is lost"
            ) from error


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """The processes that torchrun started, joined while the context lasts; without torchrun this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    # only barriers, no tensor travels; one process may be hours later than another, and one that dies hangs up
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; auto is the first of cuda, mps, cpu that there is. ValueError if it is not there.

    Of several CUDA devices each process that torchrun started on this machine takes its own.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in there.items() if present)
    if not there.get(name, False):
        raise ValueError(f"device={name}: not available here; there are {', '.join(k for k, v in there.items() if v)}")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return torch.device(name)
