"""The big.LITTLE layer (paper, Algorithm 1): performance block, efficiency block, and their fusion.

Shapes:
    B  images    N  tokens of an image, window-major    C  channels    P  primary tokens of an image
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sam_blvit.model.blocks import EfficiencyBlock, PerformanceBlock, scaled, split_scale
from sam_blvit.model.router import Routing
from sam_blvit.model.windows import Scope, add_tokens, take_tokens

GAMMA_INIT = 1e-5


class BigLittleLayer(PerformanceBlock):
    """The layer itself is the performance block, whose parameters keep SAM's names; `little` is the efficiency block.

    Args:
        dim: C.
        num_heads: attention heads of the performance block.
        table_size: side of the performance block's relative-position tables, tokens.
        little: the efficiency block. None: a layer without one, which updates primary tokens only.
        score_scaling: whether scores scale the performance block's updates; a router learns from that.
    """

    def __init__(
        self, dim: int, *, num_heads: int, table_size: int, little: EfficiencyBlock | None, score_scaling: bool = True
    ) -> None:
        super().__init__(dim, num_heads=num_heads, table_size=table_size)
        self.little = little
        for half in ("attn", "mlp"):  # shape (1,): FSDP2 does not shard 0-dim parameters
            self.register_parameter(f"alpha_{half}", nn.Parameter(torch.zeros(1)) if score_scaling else None)
        for half in ("attn", "mlp"):
            gamma = None if little is None else nn.Parameter(torch.full((1,), GAMMA_INIT))
            self.register_parameter(f"gamma_{half}", gamma)

    def forward(
        self,
        x: Tensor,
        scope: Scope,
        *,
        scale: Tensor | None = None,
        dense: bool = False,
        routing: Routing | None = None,
        efficiency_scope: Scope | None = None,
    ) -> Tensor:
        """Algorithm 1.

        Args:
            x: (B, N, C) tokens.
            scope: what attention of the performance block sees.
            scale: (B, 2) factors on each image's attention and FFN update.
            dense: update every token by the performance block, as SAM does (keep ratio 1). A flag and not a method:
                FSDP2 gathers the parameters of a layer only when the layer is called.
            routing: the primary tokens. None: no token is primary (keep ratio 0).
            efficiency_scope: what attention of the efficiency block sees, if not `scope`.

        Returns:
            (B, N, C)
        """
        if dense:
            return super().forward(x, scope, scale=scale)
        of_attention, of_mlp = split_scale(scale)
        # dual attention: E_Attention(x) of every token, P_Attention(q=primary tokens, kv=x)
        secondary = None if self.little is None else self.little.attention_update(x, efficiency_scope or scope)
        primary = None if routing is None else self.primary_attention(x, scope, routing)
        x = self.fuse(x, primary, secondary, routing, "attn", of_attention)
        # dual FFN: E_FFN(x) of every token, P_FFN(primary tokens)
        secondary = None if self.little is None else self.little.mlp_update(x)
        primary = None if routing is None else self.primary_mlp(x, routing)
        return self.fuse(x, primary, secondary, routing, "mlp", of_mlp)

    def primary_attention(self, x: Tensor, scope: Scope, routing: Routing) -> Tensor:
        """P_Attention(q=primary tokens, kv=x), (B, P, C) (section 3.2, semi-cross attention)."""
        update = self.attn(scope.enter(self.norm1(x)), scope.grid, scope.queries(routing.slots))
        return update.reshape(len(x), -1, x.shape[-1])

    def primary_mlp(self, x: Tensor, routing: Routing) -> Tensor:
        """P_FFN(primary tokens), (B, P, C)."""
        return self.mlp_update(take_tokens(x, routing.tokens))

    def fuse(
        self,
        x: Tensor,
        primary: Tensor | None,
        secondary: Tensor | None,
        routing: Routing | None,
        half: str,
        factor: Tensor | None,
    ) -> Tensor:
        """x + fuse(primary, secondary) (section 3.2, token fusion).

        A primary token of score s gets (alpha * s + 1) * primary + gamma * secondary, any other token secondary.

        Args:
            x: (B, N, C) tokens.
            primary: (B, P, C) updates by the performance block, if any token is primary.
            secondary: (B, N, C) updates by the efficiency block, if there is one.
            routing: the primary tokens.
            half: "attn" or "mlp"; each has its own alpha and gamma.
            factor: (B, 1, 1) on the whole update.
        """
        if secondary is not None:  # for every token; primary ones then get the difference
            x = x + scaled(secondary, factor)
        if primary is None or routing is None:
            return x
        primary = self._gated(primary, secondary, routing, half)
        return add_tokens(x, routing.tokens, scaled(primary, factor), in_place=secondary is not None)

    def _gated(self, primary: Tensor, secondary: Tensor | None, routing: Routing, half: str) -> Tensor:
        """(alpha * s + 1) * primary + (gamma - 1) * secondary of the primary tokens, (B, P, C); 0 for fillers."""
        if (alpha := getattr(self, f"alpha_{half}")) is not None:  # float32: the router learns from this product
            primary = (alpha * routing.scores + 1) * primary
        if secondary is not None:
            primary = primary + (getattr(self, f"gamma_{half}") - 1) * take_tokens(secondary, routing.tokens)
        return primary if routing.filled is None else primary * routing.filled
