"""Where code runs: the device a name stands for."""

from __future__ import annotations

import torch


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; auto is the first of cuda, mps, cpu that there is. ValueError if it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, present in there.items() if present))
    if not there.get(name, False):
        raise ValueError(f"device={name}: not available here; there are {', '.join(k for k, v in there.items() if v)}")
    return torch.device(name)
