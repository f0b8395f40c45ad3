"""Segment Anything with a big.LITTLE image encoder: a drop-in for `SamPredictor` that is faster by routing tokens.

Names are imported on first use, so that a command's help does not wait for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam_blvit.automatic_mask_generator import SamAutomaticMaskGenerator
    from sam_blvit.checkpoint.load import (
        CheckpointError,
        build_sam,
        load_sam,
        sam_model_registry,
        save_plain_sam,
        save_sam,
    )
    from sam_blvit.config import MODELS, ModelConfig
    from sam_blvit.model.compiled import compile_encoder
    from sam_blvit.predictor import SamPredictor
    from sam_blvit.system.allocator import tune_allocator

__version__ = "0.1.0"
__all__ = [
    "MODELS",
    "CheckpointError",
    "ModelConfig",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "build_sam",
    "compile_encoder",
    "load_sam",
    "sam_model_registry",
    "save_plain_sam",
    "save_sam",
    "tune_allocator",
]
_MODULES = {
    "CheckpointError": "checkpoint.load",
    "MODELS": "config",
    "ModelConfig": "config",
    "SamAutomaticMaskGenerator": "automatic_mask_generator",
    "SamPredictor": "predictor",
    "build_sam": "checkpoint.load",
    "compile_encoder": "model.compiled",
    "load_sam": "checkpoint.load",
    "sam_model_registry": "checkpoint.load",
    "save_plain_sam": "checkpoint.load",
    "save_sam": "checkpoint.load",
    "tune_allocator": "system.allocator",
}
"""The module that defines each public name."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # later uses are ordinary lookups
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
