"""Attention with SAM's decomposed relative positions, for all tokens or for a few queries among them.

Shapes:
    g  groups    T  tokens of a group (keys)    Q  queries of a group    H  heads    d  channels of a head
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_blvit.model.windows import TokenGrid, take_tokens


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v for `q` (g, H, Q, d), `k` and `v` (g, H, T, d), `bias` (g, H, Q, T).

    On a CPU, scaled_dot_product_attention leaves its fast path when the bias needs a gradient, and the
    plain formula is then quicker.
    """
    if q.device.type == "cpu" and bias.requires_grad:
        return attend_eager(q, k, v, bias)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def attend_eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The reference for every other way: the formula of `attend`, step by step."""
    logits = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2) + bias
    return logits.softmax(-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Multi-head attention under SAM's parameter names, with queries for all tokens or only some.

    `inner_dim` differs from `dim` in an efficiency block (C -> 3 Ce -> heads -> C).
    """

    def __init__(self, dim: int, *, inner_dim: int, num_heads: int, table_size: int) -> None:
        """`table_size`: side of the square whose offsets the relative positions tell apart, tokens."""
        super().__init__()
        self.num_heads = num_heads
        self.inner_dim = inner_dim
        self.qkv = nn.Linear(dim, 3 * inner_dim)
        self.proj = nn.Linear(inner_dim, dim)
        head_dim = inner_dim // num_heads
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * table_size - 1, head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * table_size - 1, head_dim))

    def forward(self, x: Tensor, grid: TokenGrid, queries: Tensor | None = None) -> Tensor:
        """Attend within groups of `x` (g, T, C) standing on `grid`.

        `queries` (g, Q) names the rows that ask (semi-cross attention, paper section 3.2): all tokens
        are keys, and (g, Q, C) comes back. None: every token asks, (g, T, C) comes back.
        """
        if queries is None:
            q, k, v = (self._heads(part) for part in self.qkv(x).chunk(3, dim=-1))
        else:
            weight_q, weight_kv = self.qkv.weight.split([self.inner_dim, 2 * self.inner_dim])
            bias_q, bias_kv = self.qkv.bias.split([self.inner_dim, 2 * self.inner_dim])
            q = self._heads(F.linear(take_tokens(x, queries), weight_q, bias_q))
            k, v = (self._heads(part) for part in F.linear(x, weight_kv, bias_kv).chunk(2, dim=-1))
        out = attend(q, k, v, self._relative_bias(q, grid, queries))
        return self.proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (g, H, T, d)

    def _relative_bias(self, q: Tensor, grid: TokenGrid, queries: Tensor | None) -> Tensor:
        """What position adds to the logits: q . R_h[row - key row] + q . R_w[column - key column], (g, H, Q, T)."""
        rows, cols = (grid.rows, grid.cols) if queries is None else (grid.rows[queries], grid.cols[queries])
        by_row = _project(q, _offset_table(self.rel_pos_h.to(q.dtype), grid.height)[rows])
        by_col = _project(q, _offset_table(self.rel_pos_w.to(q.dtype), grid.width)[cols])
        return grid.outer_sum(by_row, by_col)


def _offset_table(rel_pos: Tensor, size: int) -> Tensor:
    """Entry [i, j] is the row of `rel_pos` for offset i - j, (size, size, d); the farthest row serves beyond."""
    reach = rel_pos.shape[0] // 2
    place = torch.arange(size, device=rel_pos.device)
    return rel_pos[(place[:, None] - place[None]).clamp(-reach, reach) + reach]


def _project(q: Tensor, table: Tensor) -> Tensor:
    """Products of `q` (g, H, Q, d) with each query's own `table` (Q, k, d) or (g, Q, k, d): (g, H, Q, k)."""
    return torch.einsum("ghqd,qkd->ghqk" if table.dim() == 3 else "ghqd,gqkd->ghqk", q, table)
