"""Memory of a process, and the most that a stretch of work took."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import torch

KIB, GIB = 2**10, 2**30
CONTAINERS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""What a container may take, and what it has taken."""
RESET_HIGH_WATER = "5"  # proc(5), clear_refs


def resident(process: int | str = "self") -> int | None:
    """Bytes of memory that `process` has touched and not returned; None where the system does not tell (not Linux)."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):  # a process that has just ended has an empty file
        return None


def available() -> int | None:
    """Bytes of memory that a new process may take here; None where the system does not tell."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    free = [int(line.split()[1]) * KIB for line in lines if line.startswith("MemAvailable")]
    for limit, taken in CONTAINERS:
        if free and Path(limit).is_file() and (most := Path(limit).read_text().strip()).isdigit():
            free.append(int(most) - int(Path(taken).read_text()))
    return min(free, default=None)


class PeakMemory:
    """The most memory beyond what is taken at its making: device memory on CUDA, resident memory on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before: int | None = torch.cuda.memory_allocated(device)
        else:
            with contextlib.suppress(OSError):  # else what came before counts too
                Path("/proc/self/clear_refs").write_text(RESET_HIGH_WATER)
            self.before = resident() if device.type == "cpu" else None

    def beyond(self) -> int | None:
        """Bytes; None where the system or the device does not tell."""
        if self.before is None:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        status = Path("/proc/self/status").read_text().splitlines()  # not getrusage, which begins with the parent's
        (most,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        return most * KIB - self.before
