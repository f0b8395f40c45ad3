"""The two blocks of a big.LITTLE layer: SAM's block as performance block, and a narrow efficiency block.

Each has two updates, one by attention and one by the feed-forward network (FFN), which the layer adds to the tokens.

Shapes:
    B  images    N  tokens of an image, window-major    C  channels    Ce  channels inside an efficiency block
"""

from __future__ import annotations

from typing import ClassVar

from segment_anything.modeling.common import MLPBlock
from torch import Tensor, nn

from sam_blvit.model.attention import Attention
from sam_blvit.model.windows import Scope

MLP_RATIO = 4


def layer_norm(dim: int) -> nn.LayerNorm:
    """LayerNorm with SAM's epsilon."""
    return nn.LayerNorm(dim, eps=1e-6)


class PerformanceBlock(nn.Module):
    """SAM's block under SAM's parameter names: the P-block. Called on its own it is a dense layer."""

    attention_class: ClassVar[type[Attention]] = Attention

    def __init__(self, dim: int, *, num_heads: int, table_size: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.attn = self.attention_class(dim, inner_dim=dim, num_heads=num_heads, table_size=table_size)
        self.norm2 = layer_norm(dim)
        self.mlp = MLPBlock(embedding_dim=dim, mlp_dim=MLP_RATIO * dim)

    def forward(self, x: Tensor, scope: Scope, *, scale: Tensor | None = None) -> Tensor:
        """Update every token.

        Args:
            x: (B, N, C)
            scope: what attention sees.
            scale: (B, 2) factors on each image's attention and FFN update.

        Returns:
            (B, N, C)
        """
        of_attention, of_mlp = split_scale(scale)
        x = x + scaled(self.attention_update(x, scope), of_attention)
        return x + scaled(self.mlp_update(x), of_mlp)

    def attention_update(self, x: Tensor, scope: Scope) -> Tensor:
        """Update of every token of `x` (B, N, C) by attention, (B, N, C)."""
        return scope.leave(self.attn(scope.enter(self.norm1(x)), scope.grid))

    def mlp_update(self, x: Tensor) -> Tensor:
        """Update of every token of `x` (B, N, C) by the FFN, (B, N, C)."""
        return self.mlp(self.norm2(x))


class EfficiencyBlock(nn.Module):
    """The E-block: updates every token at low cost. The layer calls its two updates one after the other."""

    def __init__(self, dim: int, *, inner_dim: int, num_heads: int, table_size: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.attn = Attention(dim, inner_dim=inner_dim, num_heads=num_heads, table_size=table_size)
        self.norm2 = layer_norm(dim)
        self.mlp = EfficiencyMLP(dim, inner_dim)

    def attention_update(self, x: Tensor, scope: Scope) -> Tensor:
        """Update of every token of `x` (B, N, C) by attention, (B, N, C)."""
        return scope.leave(self.attn(scope.enter(self.norm1(x)), scope.grid))

    def mlp_update(self, x: Tensor) -> Tensor:
        """Update of every token of `x` (B, N, C) by the FFN, (B, N, C)."""
        return self.mlp(self.norm2(x))


class EfficiencyMLP(nn.Module):
    """The FFN of an efficiency block, C -> Ce -> 4 Ce -> Ce -> C (section 3.2, dimension matching)."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.enter = nn.Linear(dim, inner_dim)
        self.lin1 = nn.Linear(inner_dim, MLP_RATIO * inner_dim)
        self.lin2 = nn.Linear(MLP_RATIO * inner_dim, inner_dim)
        self.leave = nn.Linear(inner_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.leave(self.lin2(nn.functional.gelu(self.lin1(self.enter(x)))))


def split_scale(scale: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Factors (B, 1, 1) on the attention and on the FFN update, of `scale` (B, 2)."""
    if scale is None:
        return None, None
    of_attention, of_mlp = scale[..., None, None].unbind(1)
    return of_attention, of_mlp


def scaled(update: Tensor, factor: Tensor | None) -> Tensor:
    """`update` times `factor`, if there is one."""
    return update if factor is None else update * factor
