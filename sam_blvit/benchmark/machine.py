"""What a benchmark runs on: all that decides a time beside the model."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from typing import Any

import torch

from sam_blvit.measure.latency import processor

TELLING = ("LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES", "OMP_", "KMP_", "GOMP_", "MKL_", "ONEDNN_", "DNNL_")
"""Beginnings of the names of environment variables that change times."""


def machine(device: torch.device) -> dict[str, Any]:
    """Processor and, on CUDA, GPU, driver and its libraries; threads; versions; settings of the environment."""
    return {
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
