"""Attention with SAM's decomposed relative positions, for all tokens or for a few queries among them.

Shapes:
    g  groups    T  tokens of a group (keys)    Q  queries of a group    H  heads    d  channels of a head
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_blvit.model.attend import attend, attend_marked, position_marks
from sam_blvit.model.plain import is_plain
from sam_blvit.model.router import Summary
from sam_blvit.model.windows import TokenGrid, take_tokens


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

    def forward(
        self, x: Tensor, grid: TokenGrid, queries: Tensor | None = None, summary: Summary | None = None
    ) -> Tensor:
        """Attend within groups of `x` (g, T, C) standing on `grid`.

        `queries` (g, Q) names the rows that ask (semi-cross attention, paper section 3.2): all tokens
        are keys, and (g, Q, C) comes back. None: every token asks, (g, T, C) comes back. With a `summary` of the
        windows its rows are the keys; where it spreads updates all of them ask, and (g, rows, C) comes back.
        """
        if queries is None:
            q, k, v = (self._heads(part) for part in self.qkv(x).chunk(3, dim=-1))
            out = attend(q, k, v, *self._bias(q, grid, queries), grid)
        elif summary is None:
            q, k, v = self._queries_and_keys(take_tokens(x, queries), x)
            out = attend(q, k, v, *self._bias(q, grid, queries), grid)
        else:
            out = self._to_rows(x, grid, queries, summary)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _to_rows(self, x: Tensor, grid: TokenGrid, queries: Tensor, summary: Summary) -> Tensor:
        images, windows = summary.slots.shape[:2]
        slots = x.shape[0] * x.shape[1] // (images * windows)

        def of_group(rows: Tensor) -> Tensor:
            return rows.reshape(len(x), -1, rows.shape[-1])

        rows = of_group(summary.rows(x.reshape(images, windows, slots, -1)))
        asking = take_tokens(x, queries) if summary.spread is None else rows
        q, k, v = self._queries_and_keys(asking, rows)
        marks = of_group(summary.rows(position_marks(grid, x.dtype).unflatten(0, (-1, slots)))).to(k.dtype)
        extra = summary.log_counts.reshape(len(x), 1, 1, -1).to(k.dtype)
        marks = marks.unsqueeze(1).expand(-1, self.num_heads, -1, -1)
        return attend_marked(q, k, v, *self._bias(q, grid, queries), marks, extra)

    def _queries_and_keys(self, asking: Tensor, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q of `asking` (g, Q, C), k and v of `asked` (g, T, C), by head.

        Of a plain `qkv` only the rows of weights in use are multiplied; any other module is called, once.
        """
        if not is_plain(self.qkv, (nn.Linear,)):
            q, k, v = (self._heads(part) for part in self.qkv(torch.cat([asking, asked], dim=1)).chunk(3, dim=-1))
            count = asking.shape[1]
            return q[:, :, :count], k[:, :, count:], v[:, :, count:]
        weight_q, weight_kv = self.qkv.weight.split([self.inner_dim, 2 * self.inner_dim])
        bias_q, bias_kv = self.qkv.bias.split([self.inner_dim, 2 * self.inner_dim])
        k, v = (self._heads(part) for part in F.linear(asked, weight_kv, bias_kv).chunk(2, dim=-1))
        return self._heads(F.linear(asking, weight_q, bias_q)), k, v

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (g, H, T, d)

    def _bias(self, q: Tensor, grid: TokenGrid, queries: Tensor | None) -> tuple[Tensor, Tensor]:
        """What position adds to the logits of `q` (g, H, Q, d): q . R_h[row - key row] for each row of keys
        (g, H, Q, h), and q . R_w[column - key column] for each column (g, H, Q, w)."""
        tables = self.rel_pos_h.to(q.dtype), self.rel_pos_w.to(q.dtype)
        if queries is None:
            mh, mw, h, w = grid.blocks
            q = q.unflatten(2, grid.blocks)
            of_rows = tables[0][_offsets(grid.height, tables[0])].unflatten(0, (mh, h))
            of_cols = tables[1][_offsets(grid.width, tables[1])].unflatten(0, (mw, w))
            by_row = torch.einsum("gHmnhwd,mhkd->gHmnhwk", q, of_rows)
            by_col = torch.einsum("gHmnhwd,nwkd->gHmnhwk", q, of_cols)
            return by_row.flatten(2, 5), by_col.flatten(2, 5)
        # the queries stand anywhere: products with every offset, and of them each query's own
        by_row = _take_own(q @ tables[0].T, _offsets(grid.height, tables[0]), grid.rows[queries])
        by_col = _take_own(q @ tables[1].T, _offsets(grid.width, tables[1]), grid.cols[queries])
        return by_row, by_col


def _take_own(products: Tensor, offsets: Tensor, places: Tensor) -> Tensor:
    """Of `products` (g, H, Q, r) with every row of a table those (g, H, Q, k) that `offsets` (n, k) names for the rows
    or columns `places` (g, Q) where the queries stand."""
    return products.gather(3, offsets[places].unsqueeze(1).expand(-1, products.shape[1], -1, -1))


def _offsets(size: int, table: Tensor) -> Tensor:
    """Which row of `table` is for offset i - j, (size, size); the farthest row serves beyond."""
    reach = table.shape[0] // 2
    place = torch.arange(size, device=table.device)
    return (place[:, None] - place[None]).clamp(-reach, reach) + reach
