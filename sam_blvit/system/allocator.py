"""Makes glibc keep large blocks. Otherwise page faults cost up to half of an encoder's time on a CPU."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
KEEP = 1 << 30
TOP_PAD = 64 << 20


def tune_allocator() -> bool:
    """Have this process reuse large blocks instead of mapping and unmapping each one; memory is returned later.

    The package's commands call it; library users may too. Returns whether it took effect (glibc only, so Linux only).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_THRESHOLD, KEEP), (M_TRIM_THRESHOLD, KEEP), (M_TOP_PAD, TOP_PAD))
    taken = [mallopt(option, value) == 1 for option, value in settings]  # each, even if an older glibc refuses one
    return all(taken)
