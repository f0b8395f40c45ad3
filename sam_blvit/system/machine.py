"""The machine: everything except the model that affects timings."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

TELLING = ("LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES", "OMP_", "KMP_", "GOMP_", "MKL_", "ONEDNN_", "DNNL_")
"""Prefixes of environment variables that affect timings."""


def processor() -> str:
    """The CPU's model name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """Name of the GPU or the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def machine(device: torch.device) -> dict[str, Any]:
    """Device, processor and, on CUDA, GPU, driver and its libraries; threads; versions; settings of the environment."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **(_gpu(device) if device.type == "cuda" else {}),
        "torch": torch.__version__,
        "segment-anything": version("segment-anything"),
        "float32 products": torch.get_float32_matmul_precision(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(TELLING)},
    }


def _gpu(device: torch.device) -> dict[str, Any]:
    return {
        "gpu": torch.cuda.get_device_name(device),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None
