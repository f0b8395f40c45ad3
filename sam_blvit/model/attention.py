"""Attention with SAM's decomposed relative positions: self-attention, or semi-cross attention of a few queries.

Shapes:
    g  groups    T  tokens of a group (keys)    Q  queries of a group    C  channels
    H  heads     d  channels of a head
    h, w  rows and columns of the grid that a group's tokens stand on, T = h * w
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_blvit.model.attention_backends import attend
from sam_blvit.model.plain import is_plain
from sam_blvit.model.windows import TokenGrid, take_tokens


class Attention(nn.Module):
    """Multi-head attention under SAM's parameter names.

    Args:
        dim: C, channels of the main stream.
        inner_dim: channels of all heads together. An efficiency block has fewer than `dim`, and its projections change
            the width (section 3.2, dimension matching).
        num_heads: H.
        table_size: side of the square of tokens whose offsets have relative positions of their own.
    """

    def __init__(self, dim: int, *, inner_dim: int, num_heads: int, table_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.inner_dim = inner_dim
        self.qkv = nn.Linear(dim, 3 * inner_dim)
        self.proj = nn.Linear(inner_dim, dim)
        head_dim = inner_dim // num_heads
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * table_size - 1, head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * table_size - 1, head_dim))

    def forward(self, x: Tensor, grid: TokenGrid, queries: Tensor | None = None) -> Tensor:
        """Attend within each group.

        Args:
            x: (g, T, C) tokens, in the order of `grid`.
            grid: where the tokens stand.
            queries: (g, Q) tokens that are queries, while all tokens are keys and values (section 3.2, semi-cross
                attention). None: every token is a query.

        Returns:
            (g, Q, C), or (g, T, C) if every token is a query.
        """
        if queries is None:
            q, k, v = (self._heads(part) for part in self.qkv(x).chunk(3, dim=-1))  # (g, H, T, d) each
        else:
            q, k, v = self._queries_and_keys(take_tokens(x, queries), x)  # q (g, H, Q, d)
        return self._merged(attend(q, k, v, *self._bias(q, grid, queries), grid))

    def _queries_and_keys(self, asking: Tensor, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (g, H, Q, d) of tokens `asking` (g, Q, C); k and v (g, H, T, d) of tokens `asked` (g, T, C).

        Of a plain `qkv` only the weights in use are multiplied; any other module is called, once.
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

    def _merged(self, out: Tensor) -> Tensor:
        return self.proj(out.transpose(1, 2).flatten(2))  # (g, H, Q, d) -> (g, Q, C)

    def _bias(self, q: Tensor, grid: TokenGrid, queries: Tensor | None) -> tuple[Tensor, Tensor]:
        """Relative positions in the logits of `q` (g, H, Q, d).

        Returns:
            q . R_h[row - key row] for each row of keys, (g, H, Q, h), and q . R_w[column - key column] for each
            column, (g, H, Q, w).
        """
        tables = self.rel_pos_h.to(q.dtype), self.rel_pos_w.to(q.dtype)
        if queries is None:
            mh, mw, h, w = grid.blocks
            q = q.unflatten(2, grid.blocks)  # (g, H, mh, mw, h, w, d)
            of_rows = tables[0][_offsets(grid.height, tables[0])].unflatten(0, (mh, h))
            of_cols = tables[1][_offsets(grid.width, tables[1])].unflatten(0, (mw, w))
            by_row = torch.einsum("gHmnhwd,mhkd->gHmnhwk", q, of_rows)
            by_col = torch.einsum("gHmnhwd,nwkd->gHmnhwk", q, of_cols)
            return by_row.flatten(2, 5), by_col.flatten(2, 5)
        # queries stand anywhere: multiply with every offset, then take those of each query's row and column
        by_row = _take_own(q @ tables[0].T, _offsets(grid.height, tables[0]), grid.rows[queries])
        by_col = _take_own(q @ tables[1].T, _offsets(grid.width, tables[1]), grid.cols[queries])
        return by_row, by_col


def _take_own(products: Tensor, offsets: Tensor, places: Tensor) -> Tensor:
    """Each query's own products, (g, H, Q, k).

    Args:
        products: (g, H, Q, r) of each query with every row of a table.
        offsets: (n, k) rows of the table for each row (or column) of the grid.
        places: (g, Q) row (or column) of each query.
    """
    return products.gather(3, offsets[places].unsqueeze(1).expand(-1, products.shape[1], -1, -1))


def _offsets(size: int, table: Tensor) -> Tensor:
    """Row of `table` for each offset i - j, (size, size); offsets beyond the table read its first or last row."""
    reach = table.shape[0] // 2
    place = torch.arange(size, device=table.device)
    return (place[:, None] - place[None]).clamp(-reach, reach) + reach
