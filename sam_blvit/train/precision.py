"""Resolve precision=auto for the device."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TypeVar

from sam_blvit.config import MachineConfig
from sam_blvit.system.distributed import multiplies_bfloat16, pick_device
from sam_blvit.system.machine import device_name

AnyMachineConfig = TypeVar("AnyMachineConfig", bound=MachineConfig)


def with_precision(config: AnyMachineConfig) -> AnyMachineConfig:
    """Return `config` with precision=auto replaced by bf16 or fp32. The first process prints the choice."""
    if config.precision != "auto":
        return config
    device = pick_device(config.device)
    has_it = multiplies_bfloat16(device)
    if os.environ.get("RANK", "0") == "0":
        print(f"precision: {'bf16' if has_it else 'fp32'} ({device_name(device)})")
    return replace(config, precision="bf16" if has_it else "fp32")
