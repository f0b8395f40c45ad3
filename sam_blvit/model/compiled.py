"""How an image encoder is given to torch.compile."""

from __future__ import annotations

from typing import Any

import torch


def compile_settings(device: torch.device) -> dict[str, Any]:
    """Keywords of `torch.compile` (and of `nn.Module.compile`) for inference with an encoder on `device`.

    One graph without breaks. On CPU weights are frozen: cast and packed once, so they must not change afterwards, and
    the encoder must be called without gradients. On CUDA the kernels are replayed as CUDA graphs.
    """
    if device.type == "cuda":
        return {"fullgraph": True, "mode": "reduce-overhead"}
    if device.type == "cpu":
        return {"fullgraph": True, "options": {"freezing": True}}
    return {"fullgraph": True}
