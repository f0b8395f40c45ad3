"""Devices, dtypes, and the processes that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

PATIENCE = timedelta(days=1)
"""How long a process waits for the others."""

Anything = TypeVar("Anything")


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
        """Return once every process is here.

        This and the methods below soon raise ValueError if another process has ended.
        """
        if self.count > 1:
            with _others_are_there():
                distributed.barrier()

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes, in each of them."""
        total = values.clone()
        if self.count > 1:
            with _others_are_there():
                distributed.all_reduce(total)
        return total

    def from_first(self, values: Tensor) -> None:
        """Overwrite `values` with those of the first process."""
        if self.count > 1:
            with _others_are_there():
                distributed.broadcast(values, src=0)

    def gathered(self, item: Anything) -> list[Anything]:
        """`item` of every process, in the order of their ranks, in each of them."""
        if self.count == 1:
            return [item]
        items: list[Anything | None] = [None] * self.count
        with _others_are_there():
            distributed.all_gather_object(items, item)
        return items  # type: ignore[return-value]


@contextmanager
def _others_are_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ValueError(
            "another process of this run has ended, see its message; what was saved is kept: start the run "
            "again to resume it (an evaluation with --resume)"
        ) from error


@contextmanager
def joined_processes(device: torch.device | None = None) -> Iterator[Processes]:
    """The processes that torchrun started, connected while the context lasts; without torchrun only this one.

    `device`: of the tensors that processes exchange. None: only CPU tensors are exchanged.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    # one process may be hours later than another in an evaluation, and one that dies closes its connections
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products called `name`, float32 or bfloat16; auto is bfloat16 if `device` supports it.

    A CPU that has only AVX2 multiplies bfloat16 a hundred times slower than float32.
    """
    if name == "auto":
        name = "bfloat16" if multiplies_bfloat16(device) else "float32"
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether `device` has instructions for products of bfloat16: AVX512-bf16, AMX, or a CUDA device since Ampere."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; auto is the first available of cuda, mps and cpu. ValueError if it is not available.

    If there are several CUDA devices, each process that torchrun started on this machine uses its own.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in there.items() if present)
    if not there.get(name, False):
        raise ValueError(f"device={name}: not available here; there are {', '.join(k for k, v in there.items() if v)}")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return torch.device(name)
