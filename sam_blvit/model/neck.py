"""The neck: from the tokens of the last layer to the image embedding that SAM's mask decoder reads.

Shapes:
    B  images    Gh, Gw  token rows and columns    C  channels    E  cells along a side of the embedding
"""

from __future__ import annotations

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from sam_blvit.config import EMBEDDING_CHANNELS
from sam_blvit.model.blocks import layer_norm

EMBEDDING_SCALE = 0.1
"""About the standard deviation of SAM's embeddings. From 1, AdamW would need hundreds of steps to get there."""


class NeckNorm(LayerNorm2d):
    """SAM's LayerNorm over channels, with statistics in float32 even if autocast makes the convolutions bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Gh, Gw) -> (B, C, Gh, Gw) float32."""
        return super().forward(x.float())


class Neck(nn.Sequential):
    """SAM's neck under SAM's parameter names. It can also read tokens of earlier layers."""

    def forward(self, x: Tensor, *laterals: Tensor) -> Tensor:
        """(B, C, Gh, Gw) -> (B, 256, Gh, Gw); `laterals` (B, 256, Gh, Gw) are added after the first step."""
        enter, *rest = self
        x = enter(x)
        for lateral in laterals:
            x = x + lateral
        for step in rest:
            x = step(x)
        return x


def build_neck(dim: int) -> Neck:
    """A neck for `dim` channels. Not `Neck`'s constructor: slices of an `nn.Sequential` call that with modules."""
    return Neck(
        nn.Conv2d(dim, EMBEDDING_CHANNELS, kernel_size=1, bias=False),
        NeckNorm(EMBEDDING_CHANNELS),
        nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, kernel_size=3, padding=1, bias=False),
        NeckNorm(EMBEDDING_CHANNELS),
    )


class Lateral(nn.Sequential):
    """Projects tokens (B, Gh, Gw, C) of an earlier layer for the neck, (B, Gh, Gw, 256)."""

    def __init__(self, dim: int) -> None:
        super().__init__(layer_norm(dim), nn.Linear(dim, EMBEDDING_CHANNELS, bias=False))


class Enlargement(nn.Sequential):
    """Learned upsampling of the embedding: each cell becomes `factor` x `factor` cells."""

    def __init__(self, factor: int) -> None:
        norm = NeckNorm(EMBEDDING_CHANNELS)
        nn.init.constant_(norm.weight, EMBEDDING_SCALE)
        super().__init__(
            nn.ConvTranspose2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, kernel_size=factor, stride=factor), norm
        )


def pad_embedding(embedding: Tensor, side: int, outside: Tensor) -> Tensor:
    """`embedding` (B, 256, h, w) padded right and below with the vector `outside` (256,), (B, 256, side, side)."""
    height, width = embedding.shape[-2:]
    if (height, width) == (side, side):
        return embedding
    outside = outside[:, None, None].expand(len(embedding), -1, -1, -1)  # (B, 256, 1, 1)
    right = outside.expand(-1, -1, height, side - width)
    below = outside.expand(-1, -1, side - height, side)
    return torch.cat([torch.cat([embedding, right], dim=3), below], dim=2)
