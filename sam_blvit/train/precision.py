"""Which precision `auto` stands for on this machine."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TypeVar

from sam_blvit.config import MachineConfig
from sam_blvit.system.distributed import multiplies_bfloat16, pick_device
from sam_blvit.system.machine import device_name

AnyMachineConfig = TypeVar("AnyMachineConfig", bound=MachineConfig)


def with_precision(config: AnyMachineConfig) -> AnyMachineConfig:
    """`config` with bf16 or fp32 for a precision of auto, printed by the first process of a run."""
    if config.precision != "auto":
        return config
    device = pick_device(config.device)
    has_it = multiplies_bfloat16(device)
    if os.environ.get("RANK", "0") == "0":
        print(f"precision: {'bf16' if has_it else 'fp32'} ({device_name(device)})")
    return replace(config, precision="bf16" if has_it else "fp32")
