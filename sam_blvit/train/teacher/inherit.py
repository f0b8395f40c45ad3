"""Initialise an encoder with a part of a larger one of the same kind.

This is the weight selection of Xu et al., "Initializing Models with Larger Ones" (ICLR 2024). As there, the channels
taken are evenly spaced and the same in all tensors, and the first layers are taken: here the first windowed and the
first global ones. Attention heads stay whole.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sam_blvit.checkpoint.load import is_big_little
from sam_blvit.config import ModelConfig
from sam_blvit.model.blocks import MLP_RATIO
from sam_blvit.model.sam import Sam

STREAM, HEADS, PACKED, UNITS = "stream", "heads", "packed", "units"
"""Kinds of tensor dimensions: channels of a token, channels of the heads, packed queries, keys and values, and hidden
units of the MLP."""
DIMENSIONS: dict[str, dict[int, str]] = {
    "patch_embed.proj.weight": {0: STREAM},
    "patch_embed.proj.bias": {0: STREAM},
    "pos_embed": {3: STREAM},
    "norm1.weight": {0: STREAM},
    "norm1.bias": {0: STREAM},
    "attn.qkv.weight": {0: PACKED, 1: STREAM},
    "attn.qkv.bias": {0: PACKED},
    "attn.proj.weight": {0: STREAM, 1: HEADS},
    "attn.proj.bias": {0: STREAM},
    "norm2.weight": {0: STREAM},
    "norm2.bias": {0: STREAM},
    "mlp.lin1.weight": {0: UNITS, 1: STREAM},
    "mlp.lin1.bias": {0: UNITS},
    "mlp.lin2.weight": {0: STREAM, 1: UNITS},
    "mlp.lin2.bias": {0: STREAM},
    "neck.0.weight": {1: STREAM},
}
"""Dimensions to take a part of, by the parameter's name in the encoder or in its layer. Others are copied whole."""


@torch.no_grad()
def inherit(student: Sam, teacher: Sam) -> None:
    """Initialise the encoder of `student` with evenly spaced channels of the first layers of `teacher`.

    Routers, efficiency blocks, prompt encoder and mask decoder are not changed.

    Raises:
        ValueError: If the models do not match. The head size and the image size must be equal, and the student must
            not have more channels, windowed layers or global layers.
    """
    small, large = student.config, teacher.config
    _check_smaller(small, large)
    parts = _parts(small, large)
    layer_of = _layers(small, large)
    theirs = teacher.image_encoder.state_dict()
    for name, value in student.image_encoder.state_dict().items():
        if is_big_little(f"image_encoder.{name}"):
            continue
        source, kind = name, name
        if name.startswith("blocks."):
            _, block, kind = name.split(".", 2)
            source = f"blocks.{layer_of[int(block) + 1] - 1}.{kind}"
        part = theirs[source]
        for dimension, what in DIMENSIONS.get(kind, {}).items():
            part = part.index_select(dimension, parts[what])
        value.copy_(part)


def _check_smaller(small: ModelConfig, large: ModelConfig) -> None:
    sizes: list[tuple[str, Any, Any, Callable[[Any, Any], bool]]] = [
        ("channels a head", _head_size(small), _head_size(large), operator.eq),
        ("pixels a side", small.image_size, large.image_size, operator.eq),
        ("enlarge", small.enlarge, large.enlarge, operator.eq),
        ("neck_layers", small.neck_layers, large.neck_layers, operator.eq),
        ("rel_pos_window", small.rel_pos_window, large.rel_pos_window, operator.eq),
        ("channels", small.dim, large.dim, operator.le),
        ("windowed layers", len(_of_kind(small, False)), len(_of_kind(large, False)), operator.le),
        ("global layers", len(_of_kind(small, True)), len(_of_kind(large, True)), operator.le),
    ]
    if wrong := [f"{what} {mine} against {theirs}" for what, mine, theirs, fits in sizes if not fits(mine, theirs)]:
        raise ValueError(
            f"{small.name} does not fit into teacher {large.name} and cannot start with a part of it "
            f"({', '.join(wrong)}); name weights of its own size with checkpoint"
        )


def _parts(small: ModelConfig, large: ModelConfig) -> dict[str, Tensor]:
    """Return the indices of `large` that `small` takes, by kind of dimension."""
    size = _head_size(large)
    heads = torch.arange(large.dim).view(large.heads, size)[_spaced(small.heads, large.heads)].flatten()
    return {
        STREAM: _spaced(small.dim, large.dim),
        HEADS: heads,
        PACKED: torch.cat([heads + part * large.dim for part in range(3)]),
        UNITS: _spaced(MLP_RATIO * small.dim, MLP_RATIO * large.dim),
    }


def _layers(small: ModelConfig, large: ModelConfig) -> dict[int, int]:
    """Return which layer of `large` each layer of `small` takes, both counted from 1."""
    taken: dict[int, int] = {}
    for are_global in (False, True):
        taken |= dict(zip(_of_kind(small, are_global), _of_kind(large, are_global), strict=False))
    return taken


def _of_kind(config: ModelConfig, are_global: bool) -> list[int]:
    """Return the global layers, or the windowed ones."""
    return [layer for layer in range(1, config.layers + 1) if (layer in config.global_layers) == are_global]


def _spaced(count: int, of: int) -> Tensor:
    """Return `count` indices evenly spaced among `of`: the last of each of `count` parts."""
    return torch.arange(1, count + 1) * of // count - 1


def _head_size(config: ModelConfig) -> int:
    return config.dim // config.heads
