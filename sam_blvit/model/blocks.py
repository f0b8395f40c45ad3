"""One layer of the encoder: SAM's block as performance block, a narrow efficiency block, and their fusion.

Shapes:
    B  images    N  tokens of an image, window-major    C  channels    P  primary tokens of an image (M * K)
"""

from __future__ import annotations

import torch
from segment_anything.modeling.common import MLPBlock
from torch import Tensor, nn

from sam_blvit.model.attention import Attention
from sam_blvit.model.router import Routing
from sam_blvit.model.windows import Scope, add_tokens, take_tokens

MLP_RATIO = 4
GAMMA_INIT = 1e-5


def layer_norm(dim: int) -> nn.LayerNorm:
    """LayerNorm with SAM's epsilon."""
    return nn.LayerNorm(dim, eps=1e-6)


class LittleMLP(nn.Module):
    """The efficiency block's feed-forward half, C -> Ce -> 4 Ce -> Ce -> C (paper, dimension matching)."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.enter = nn.Linear(dim, inner_dim)
        self.lin1 = nn.Linear(inner_dim, MLP_RATIO * inner_dim)
        self.lin2 = nn.Linear(MLP_RATIO * inner_dim, inner_dim)
        self.leave = nn.Linear(inner_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.leave(self.lin2(nn.functional.gelu(self.lin1(self.enter(x)))))


class LittleBlock(nn.Module):
    """The efficiency block: updates every token, cheaply. Its two halves are called one by one."""

    def __init__(self, dim: int, *, inner_dim: int, num_heads: int, table_size: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.attn = Attention(dim, inner_dim=inner_dim, num_heads=num_heads, table_size=table_size)
        self.norm2 = layer_norm(dim)
        self.mlp = LittleMLP(dim, inner_dim)

    def attention_update(self, x: Tensor, scope: Scope) -> Tensor:
        """What attention adds to `x` (B, N, C)."""
        return scope.leave(self.attn(scope.enter(self.norm1(x)), scope.grid))

    def mlp_update(self, x: Tensor) -> Tensor:
        """What the feed-forward half adds to `x` (B, N, C)."""
        return self.mlp(self.norm2(x))


class Block(nn.Module):
    """One layer. `norm1`, `attn`, `norm2`, `mlp` are SAM's block under SAM's names: the performance block."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        table_size: int,
        routed: bool,
        little: LittleBlock | None,
    ) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.attn = Attention(dim, inner_dim=dim, num_heads=num_heads, table_size=table_size)
        self.norm2 = layer_norm(dim)
        self.mlp = MLPBlock(embedding_dim=dim, mlp_dim=MLP_RATIO * dim)
        self.routed = routed
        self.little = little
        if routed:  # shape (1,): FSDP2 takes no 0-dim parameters
            self.alpha_attn = nn.Parameter(torch.zeros(1))
            self.alpha_mlp = nn.Parameter(torch.zeros(1))
        if little is not None:
            self.gamma_attn = nn.Parameter(torch.full((1,), GAMMA_INIT))
            self.gamma_mlp = nn.Parameter(torch.full((1,), GAMMA_INIT))

    def forward(self, x: Tensor, scope: Scope) -> Tensor:
        """Update every token of `x` (B, N, C) with the performance block, as SAM does."""
        x = x + scope.leave(self.attn(scope.enter(self.norm1(x)), scope.grid))
        return x + self.mlp(self.norm2(x))

    def route(self, x: Tensor, scope: Scope, routing: Routing | None) -> Tensor:
        """Update primary tokens of `x` (B, N, C) with both blocks, the others with the efficiency block.

        `routing` None means that no token is primary (keep ratio 0). Paper, Algorithm 1.
        """
        e = self.little.attention_update(x, scope) if self.little is not None else None
        p = (
            None
            if routing is None
            else self._scaled(self._primary_attention(x, scope, routing), routing, self.alpha_attn)
        )
        x = self._fused(x, p, e, routing, "gamma_attn")
        e = self.little.mlp_update(x) if self.little is not None else None
        p = None if routing is None else self._scaled(self._primary_mlp(x, routing), routing, self.alpha_mlp)
        return self._fused(x, p, e, routing, "gamma_mlp")

    def _primary_attention(self, x: Tensor, scope: Scope, routing: Routing) -> Tensor:
        """Semi-cross attention: primary tokens ask, all tokens answer. (B, P, C)."""
        updates = self.attn(scope.enter(self.norm1(x)), scope.grid, scope.queries(routing.slots))
        return updates.reshape(*routing.tokens.shape, -1)

    def _primary_mlp(self, x: Tensor, routing: Routing) -> Tensor:
        return self.mlp(self.norm2(take_tokens(x, routing.tokens)))  # (B, P, C)

    @staticmethod
    def _scaled(update: Tensor, routing: Routing, alpha: Tensor) -> Tensor:
        """(alpha * s + 1) * update in float32, 0 for fillers: where the router gets its gradient."""
        gate = alpha * routing.scores + 1
        return update * (gate if routing.filled is None else gate * routing.filled)

    def _fused(self, x: Tensor, p: Tensor | None, e: Tensor | None, routing: Routing | None, gamma: str) -> Tensor:
        """x + fuse(p, e): p + gamma * e for a primary token, e for any other."""
        if e is not None:
            if routing is not None:
                e = e * torch.where(routing.primary > 0, getattr(self, gamma), 1.0)
            x = x + e
        return x if p is None or routing is None else add_tokens(x, routing.tokens, p)
