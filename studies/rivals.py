"""Encoders of other fast SAMs' shapes, with random weights, in segment_anything's own Sam, for timing only.

$ sam-blvit benchmark blvit_b_t studies.rivals:mobile_sam studies.rivals:efficient_sam_ti

From the repository's root. Written from the published descriptions that each docstring names. Attention is
scaled_dot_product_attention throughout, PyTorch's fastest, whatever the originals call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

PATCH_SIZE = 16
EMBEDDING_CHANNELS = 256
EXPANSION = 4
"""Of feed-forward layers and inverted bottlenecks."""


def mobile_sam(image_size: int = 1024) -> Sam:
    """MobileSAM: TinyViT-5M and SAM's neck.

    Zhang et al. 2023, Faster Segment Anything (arXiv 2306.14289), on Wu et al. 2022, TinyViT (arXiv 2207.10666),
    table 7: channels 64, 128, 160, 320, depths 2, 2, 6, 2, windows 7, 14, 7, heads of 32 channels. The last stage is
    not downsampled, so that a side of 1024 pixels gives SAM's 64 x 64 embedding.
    """
    return sam_around(TinyViT(image_size))


def efficient_sam_ti(image_size: int = 1024) -> Sam:
    """EfficientSAM-Ti: a plain ViT of DeiT-Ti's shape, patches of 16, and SAM's neck.

    Xiong et al. 2023, EfficientSAM (arXiv 2312.00863), section 4; shape by Touvron et al. 2021 (arXiv 2012.12877),
    table 1: 12 layers, 192 channels, 3 heads.
    """
    return sam_around(PlainViT(image_size, dim=192, heads=3))


def efficient_sam_s(image_size: int = 1024) -> Sam:
    """EfficientSAM-S: as `efficient_sam_ti`, of DeiT-S's shape: 12 layers, 384 channels, 6 heads."""
    return sam_around(PlainViT(image_size, dim=384, heads=6))


def sam_around(encoder: nn.Module) -> Sam:
    """`encoder` with SAM's own prompt encoder and mask decoder."""
    side = encoder.img_size
    assert isinstance(side, int)
    return Sam(
        encoder,
        PromptEncoder(
            embed_dim=EMBEDDING_CHANNELS,
            image_embedding_size=(side // PATCH_SIZE, side // PATCH_SIZE),
            input_image_size=(side, side),
            mask_in_chans=16,
        ),
        MaskDecoder(
            transformer_dim=EMBEDDING_CHANNELS,
            transformer=TwoWayTransformer(depth=2, embedding_dim=EMBEDDING_CHANNELS, mlp_dim=2048, num_heads=8),
        ),
    ).eval()


def _neck(dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(dim, EMBEDDING_CHANNELS, kernel_size=1, bias=False),
        LayerNorm2d(EMBEDDING_CHANNELS),
        nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(EMBEDDING_CHANNELS),
    )


class Attention(nn.Module):
    """Multi-head attention within groups of tokens (g, T, C); with a `window` a bias is learned for each distance."""

    def __init__(self, dim: int, *, heads: int, window: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.bias = None if window is None else nn.Parameter(torch.zeros(heads, window**2))
        if window is not None:
            place = torch.cartesian_prod(torch.arange(window), torch.arange(window))
            row, column = (place[:, None] - place[None]).abs().unbind(-1)  # (T, T)
            self.register_buffer("distance", row * window + column, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each group."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = None if self.bias is None else self.bias[:, self.distance].to(q.dtype)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))


def _feed_forward(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, EXPANSION * dim), nn.GELU(), nn.Linear(EXPANSION * dim, dim))


class PlainViT(nn.Module):
    """A ViT with absolute positions in which every layer attends over all tokens."""

    def __init__(self, image_size: int, *, dim: int, heads: int, layers: int = 12) -> None:
        super().__init__()
        self.img_size = image_size
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)
        self.positions = nn.Parameter(torch.zeros(1, (image_size // PATCH_SIZE) ** 2, dim))
        self.attentions = nn.ModuleList(Attention(dim, heads=heads) for _ in range(layers))
        self.feed_forwards = nn.ModuleList(_feed_forward(dim) for _ in range(layers))
        self.neck = _neck(dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed `images` (B, 3, H, H) as (B, 256, H / 16, H / 16)."""
        patches = self.patch_embed(images)  # (B, C, G, G)
        x = patches.flatten(2).transpose(1, 2) + self.positions
        for attention, feed_forward in zip(self.attentions, self.feed_forwards, strict=True):
            x = x + attention(x)
            x = x + feed_forward(x)
        return self.neck(x.transpose(1, 2).unflatten(2, patches.shape[-2:]))


class TinyViT(nn.Module):
    """TinyViT-5M: convolutions at a quarter of the side, then attention in windows at an eighth and a sixteenth."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.img_size = image_size
        self.patch_embed = nn.Sequential(_conv(3, 32, kernel=3, stride=2), nn.GELU(), _conv(32, 64, kernel=3, stride=2))
        self.stages = nn.Sequential(
            *(InvertedBottleneck(64) for _ in range(2)),
            _merging(64, 128, stride=2),
            *(WindowBlock(128, window=7) for _ in range(2)),
            _merging(128, 160, stride=2),
            *(WindowBlock(160, window=14) for _ in range(6)),
            _merging(160, 320, stride=1),
            *(WindowBlock(320, window=7) for _ in range(2)),
        )
        self.neck = _neck(320)

    def forward(self, images: Tensor) -> Tensor:
        """Embed `images` (B, 3, H, H) as (B, 256, H / 16, H / 16)."""
        return self.neck(self.stages(self.patch_embed(images)))


class InvertedBottleneck(nn.Module):
    """MBConv: widen, convolve each channel by itself, narrow; added to what came in."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        wide = EXPANSION * dim
        self.layers = nn.Sequential(
            _conv(dim, wide), nn.GELU(), _conv(wide, wide, kernel=3, groups=wide), nn.GELU(), _conv(wide, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Of `x` (B, C, H, W)."""
        return F.gelu(x + self.layers(x))


class WindowBlock(nn.Module):
    """Attention in windows, a convolution of each channel by itself, and a feed-forward layer."""

    def __init__(self, dim: int, *, window: int) -> None:
        super().__init__()
        self.window = window
        self.attention = Attention(dim, heads=dim // 32, window=window)
        self.local = _conv(dim, dim, kernel=3, groups=dim)
        self.feed_forward = _feed_forward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Of `x` (B, C, H, W); windows at the right and lower border are padded with zeros."""
        x = self.local(x + self._attended(x))
        tokens = x.flatten(2).transpose(1, 2)
        return x + self.feed_forward(tokens).transpose(1, 2).unflatten(2, x.shape[-2:])

    def _attended(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        side = self.window
        x = F.pad(x, (0, -width % side, 0, -height % side))
        rows, columns = x.shape[2] // side, x.shape[3] // side
        windows = x.unflatten(3, (columns, side)).unflatten(2, (rows, side)).permute(0, 2, 4, 3, 5, 1)
        attended = self.attention(windows.reshape(-1, side * side, x.shape[1]))
        attended = attended.reshape(windows.shape).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return attended[:, :, :height, :width]


def _merging(dim: int, out: int, *, stride: int) -> nn.Sequential:
    """Between stages: other channels, and with a stride of 2 half the side."""
    return nn.Sequential(
        _conv(dim, out), nn.GELU(), _conv(out, out, kernel=3, stride=stride, groups=out), nn.GELU(), _conv(out, out)
    )


def _conv(dim: int, out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution and its normalisation."""
    convolution = nn.Conv2d(dim, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out))
