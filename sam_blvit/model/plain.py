"""Which modules may be replaced by arithmetic on their weights: those that do nothing else and have no hooks.

Reading a weight is faster than calling the module if only part of it is needed, or if it folds into another weight.
Any other module (a LoRA wrapper, an int8 layer, a parametrisation, a module with hooks) must be called.
Parameters are float32 everywhere (`check_float32`).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

REPLACED = ("forward", "predict_masks")
"""Methods that may have been replaced on an instance."""


def is_plain(part: nn.Module, kinds: Collection[type[nn.Module]]) -> bool:
    """Whether arithmetic on the weights of `part` gives what calling it gives.

    It does if `part` is exactly of one of `kinds` (not a subclass), has a bias if its kind has one, its own forward, no
    hooks of its own, and ordinary tensors as weights.
    """
    return type(part) in kinds and not (_hooked(part) or _changed(part))


def _hooked(part: nn.Module) -> bool:
    """Global hooks do not count: profilers and MAC counters set them to observe what runs without them."""
    return bool(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)


def _changed(part: nn.Module) -> bool:
    replaced = any(name in part.__dict__ for name in REPLACED) or part._compiled_call_impl is not None
    wrapped = any(is_traceable_wrapper_subclass(weight) for weight in part.parameters(recurse=False))
    return replaced or wrapped or getattr(part, "bias", part) is None


def check_float32(dtype: torch.dtype, what: str) -> None:
    """Raise ValueError, one line that names `what`, unless `dtype`, that of its parameters, is float32."""
    if dtype != torch.float32:
        raise ValueError(
            f"{what} cannot be {dtype}: parameters stay float32; for speed set the option "
            'compute_dtype="bfloat16" when the model is built, or run it under torch.autocast'
        )
