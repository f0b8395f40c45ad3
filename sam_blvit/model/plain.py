"""Which modules may be replaced by arithmetic on their weights: those that do nothing else, and whom nobody watches.

Reading a weight is quicker than calling a module where only a part of it is needed, or where it folds into another.
Whatever else stands there (a LoRA wrapper, an int8 layer, a parametrisation, a hook) must be called.
Weights are float32 wherever they are (`check_float32`).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

REPLACED = ("forward", "predict_masks")
"""Methods that may be set on an instance."""


def is_plain(part: nn.Module, kinds: Collection[type[nn.Module]]) -> bool:
    """Whether `part` itself is of one of `kinds` (a subclass is not), with a bias if it may have one, with its own
    forward, without hooks of its own, and with weights that are ordinary tensors."""
    return type(part) in kinds and not (_listened(part) or _odd(part))


def _listened(part: nn.Module) -> bool:
    """Hooks for all modules do not count: profilers and MAC counters set them, to see what would run without them."""
    return bool(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)


def _odd(part: nn.Module) -> bool:
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
