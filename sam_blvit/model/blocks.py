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
        score_scaling: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.attn = Attention(dim, inner_dim=dim, num_heads=num_heads, table_size=table_size)
        self.norm2 = layer_norm(dim)
        self.mlp = MLPBlock(embedding_dim=dim, mlp_dim=MLP_RATIO * dim)
        self.routed = routed
        self.little = little
        self.score_scaling = score_scaling
        if routed and score_scaling:  # shape (1,): FSDP2 takes no 0-dim parameters
            self.alpha_attn = nn.Parameter(torch.zeros(1))
            self.alpha_mlp = nn.Parameter(torch.zeros(1))
        if little is not None:
            self.gamma_attn = nn.Parameter(torch.full((1,), GAMMA_INIT))
            self.gamma_mlp = nn.Parameter(torch.full((1,), GAMMA_INIT))

    def forward(
        self,
        x: Tensor,
        scope: Scope,
        *,
        dense: bool,
        routing: Routing | None = None,
        scale: Tensor | None = None,
        little_scope: Scope | None = None,
    ) -> Tensor:
        """Update the tokens of `x` (B, N, C).

        `dense`: all of them with the performance block, as SAM does. Otherwise the primary tokens of `routing` with
        both blocks and the others with the efficiency block (paper, Algorithm 1); None: no token is primary (keep
        ratio 0). `scale` (B, 2): factors on each image's update by attention and by the feed-forward half.
        `little_scope`: what the efficiency block's attention sees, if not `scope`.
        One method for both, as FSDP2 gathers a layer's parameters when the layer is called and at no other time.
        """
        by_attn, by_mlp = (None, None) if scale is None else scale[..., None, None].unbind(1)  # (B, 1, 1) each
        if dense:
            x = x + _times(scope.leave(self.attn(scope.enter(self.norm1(x)), scope.grid)), by_attn)
            return x + _times(self.mlp(self.norm2(x)), by_mlp)
        e = self.little.attention_update(x, little_scope or scope) if self.little is not None else None
        p = None if routing is None else self._primary_attention(x, scope, routing)
        x = self._fused(x, p, e, routing, "attn", by_attn)
        e = self.little.mlp_update(x) if self.little is not None else None
        p = None if routing is None else self._primary_mlp(x, routing)
        return self._fused(x, p, e, routing, "mlp", by_mlp)

    @torch.no_grad()
    def benefit(self, x: Tensor, scope: Scope, little_scope: Scope) -> tuple[Tensor, Tensor]:
        """What the choice of block means to the tokens of `x` (B, N, C): (B, N) float32, the distance between the two
        blocks' updates of a token, both halves together; and `x` after the performance block."""
        attended = scope.leave(self.attn(scope.enter(self.norm1(x)), scope.grid)).float()
        between = x + attended
        fed = self.mlp(self.norm2(between)).float()
        after = between + fed
        if self.little is not None:
            attended = attended - self.little.attention_update(x, little_scope)
            fed = fed - self.little.mlp_update(between)
        return attended.norm(dim=-1) + fed.norm(dim=-1), after

    def _primary_attention(self, x: Tensor, scope: Scope, routing: Routing) -> Tensor:
        """Semi-cross attention: primary tokens ask, all tokens answer, or what a summary has of them. (B, P, C), or
        (B, M * R, C) where a summary's rows are updated."""
        asking = routing.slots if routing.summary is None else routing.summary.places
        updates = self.attn(scope.enter(self.norm1(x)), scope.grid, scope.queries(asking), routing.summary)
        return updates.reshape(len(x), -1, x.shape[-1])

    def _primary_mlp(self, x: Tensor, routing: Routing) -> Tensor:
        """As `_primary_attention`, by the feed-forward half."""
        if routing.summary is None or routing.summary.spread is None:
            return self.mlp(self.norm2(take_tokens(x, routing.tokens)))
        return self.mlp(self.norm2(routing.summary.rows(x.unflatten(1, (routing.slots.shape[1], -1))).flatten(1, 2)))

    def _fused(
        self,
        x: Tensor,
        p: Tensor | None,
        e: Tensor | None,
        routing: Routing | None,
        half: str,
        factor: Tensor | None,
    ) -> Tensor:
        """x + factor * fuse(p, e): (alpha * s + 1) * p + gamma * e for a primary token, e for any other."""
        to_all = e
        if p is not None and routing is not None and routing.summary is not None and routing.summary.spread is not None:
            p, to_all = routing.summary.updates(p)  # 0 for primary tokens
        if to_all is not None:
            x = x + _times(to_all, factor)
        if p is None or routing is None:
            return x
        p = self._gated(p, e, routing, half)
        return add_tokens(x, routing.tokens, _times(p, factor), in_place=to_all is not None)

    def _gated(self, p: Tensor, e: Tensor | None, routing: Routing, half: str) -> Tensor:
        """What primary tokens (B, P, C) get beyond `e`, which all tokens got; 0 for fillers."""
        if self.score_scaling:  # alpha in float32: where the router gets its gradient
            p = (getattr(self, f"alpha_{half}") * routing.scores + 1) * p
        if e is not None:
            p = p + (getattr(self, f"gamma_{half}") - 1) * take_tokens(e, routing.tokens)
        return p if routing.filled is None else p * routing.filled


def _times(update: Tensor, factor: Tensor | None) -> Tensor:
    return update if factor is None else update * factor
