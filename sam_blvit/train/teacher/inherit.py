"""A smaller encoder's start: a part of a larger one of the same kind.

Xu et al., "Initializing Models with Larger Ones" (ICLR 2024), call it weight selection. As there, channels are evenly
spaced, the same ones wherever a channel is meant, and the first layers are taken, here the first of either kind,
windowed and global; heads stay whole.
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
"""What a dimension of a tensor counts: channels of the main stream, of the heads, of queries, keys and values in one,
units of the feed-forward half."""
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
"""Dimensions of which a part is taken, by a parameter's name in the encoder or in its layer; of others all is."""


@torch.no_grad()
def inherit(student: Sam, teacher: Sam) -> None:
    """Fill `student`'s encoder with evenly spaced channels of the first layers of `teacher`'s, which is for images of
    the same size.

    Routers and efficiency blocks stay as they are; so do prompt encoder and mask decoder. ValueError, one line, if
    `student` is not smaller: its heads are of the same size, and it has no more channels or layers of either kind.
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
            f"{small.name} is of another size than teacher {large.name} and cannot start with a part of it "
            f"({', '.join(wrong)}); name weights of its own size with checkpoint"
        )


def _parts(small: ModelConfig, large: ModelConfig) -> dict[str, Tensor]:
    """Which of `large`'s places `small` takes, by what a dimension counts."""
    size = _head_size(large)
    heads = torch.arange(large.dim).view(large.heads, size)[_spaced(small.heads, large.heads)].flatten()
    return {
        STREAM: _spaced(small.dim, large.dim),
        HEADS: heads,
        PACKED: torch.cat([heads + part * large.dim for part in range(3)]),
        UNITS: _spaced(MLP_RATIO * small.dim, MLP_RATIO * large.dim),
    }


def _layers(small: ModelConfig, large: ModelConfig) -> dict[int, int]:
    """Which of `large`'s layers each of `small`'s takes, both counted from 1."""
    taken: dict[int, int] = {}
    for are_global in (False, True):
        taken |= dict(zip(_of_kind(small, are_global), _of_kind(large, are_global), strict=False))
    return taken


def _of_kind(config: ModelConfig, are_global: bool) -> list[int]:
    """The global layers, or the windowed ones."""
    return [layer for layer in range(1, config.layers + 1) if (layer in config.global_layers) == are_global]


def _spaced(count: int, of: int) -> Tensor:
    """`count` places evenly spaced among `of`: the last of each of `count` parts."""
    return torch.arange(1, count + 1) * of // count - 1


def _head_size(config: ModelConfig) -> int:
    return config.dim // config.heads
