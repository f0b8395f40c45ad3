"""Models built by a user's own function, named as `module:function`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam as OriginalSam

from sam_blvit.system.files import first_line

SAM_PARTS = (
    "image_encoder",
    "prompt_encoder",
    "mask_decoder",
    "preprocess",
    "postprocess_masks",
    "mask_threshold",
    "device",
)
"""Attributes of a Sam that this package uses."""


def build_from_function(model: str, checkpoint: Path | None) -> OriginalSam:
    """Call the function named by `model`.

    Args:
        model: `module:function`; modules in the working directory are found too.
        checkpoint: passed to the function as `checkpoint`, if given.

    Raises:
        ValueError: if there is no such function, it fails, or it does not return a segment_anything Sam.
    """
    module, _, function = model.partition(":")
    given = {} if checkpoint is None else {"checkpoint": str(checkpoint)}
    build = imported_function(module, function)
    try:
        inspect.signature(build).bind(**given)
    except TypeError as error:
        raise ValueError(f"model={model} cannot be called with checkpoint={checkpoint} ({error})") from error
    try:
        sam: OriginalSam = build(**given)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # user code may raise anything
        raise ValueError(f"model={model} cannot be built ({type(error).__name__}: {first_line(error)})") from error
    if lacking := [part for part in SAM_PARTS if not hasattr(sam, part)]:
        raise ValueError(
            f"model={model} returned a {type(sam).__name__} without {', '.join(lacking)}; a segment_anything "
            "Sam is expected"
        )
    return sam


def imported_function(module: str, function: str) -> Callable[..., Any]:
    """Import `function` from `module`, which may be in the working directory."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"model={module}:{function} cannot be imported ({error}); name it module:function") from error
    if not callable(found):
        raise ValueError(f"model={module}:{function} cannot be called: it is {found!r:.40}; name a function")
    return found
