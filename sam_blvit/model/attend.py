"""softmax(q k^T / sqrt(d) + bias) v in several ways; the quickest is chosen by device, dtype and shape.

The bias comes in SAM's decomposed form: what a query gives each row of the grid its keys stand on, and each column.
Only `eager` and `sdpa` add the two up to a number for every query and key.

Shapes:
    g  groups    T  tokens of a group (keys)    Q  queries of a group    H  heads    d  channels of a head
    h, w  rows and columns of the keys' grid, T = h * w
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_blvit.model.compiled import MANY_SHAPES
from sam_blvit.model.windows import TokenGrid

Way = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, TokenGrid], Tensor]
MANY_KEYS = 1024
"""Above so many keys an image attends, not a window, and a number for every query and key is much to store."""
TILE_BYTES = 2 << 20
"""Logits of one tile, which stay in a core's cache."""
LEAST_TILE = 128
"""Queries of a tile; with fewer a matrix product is slow."""
HALVES = (torch.bfloat16, torch.float16)
TRITON = importlib.util.find_spec("triton") is not None
"""What FlexAttention is compiled to on CUDA."""


def attend(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, grid: TokenGrid) -> Tensor:
    """Attention (g, H, Q, d) of `q` (g, H, Q, d) to `k` and `v` (g, H, T, d), keys in the order of `grid`.

    The bias of a key is `by_row` (g, H, Q, h) at its row plus `by_col` (g, H, Q, w) at its column.
    """
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, by_row, by_col))
    name = _forced or quickest_way(q, keys=k.shape[2], trained=trained)
    return WAYS[name](q, k, v, by_row, by_col, grid)


def quickest_way(q: Tensor, *, keys: int, trained: bool) -> str:
    """The name in WAYS of what is quickest for queries like `q` and that many `keys`: on a CPU as measured by
    benchmarks/attention_speed.py, on CUDA by the memory that it saves.

    `trained`: with a gradient SDPA leaves its quick path on a CPU, and tiles have none.
    """
    if q.device.type == "cpu":
        if trained:
            return "widened" if q.dtype in HALVES else "eager"
        if keys > MANY_KEYS:
            return "tiles"
        return "widened" if q.dtype in HALVES else "sdpa"
    if q.device.type == "cuda" and keys > MANY_KEYS and not trained and TRITON:
        return "flex"
    return "sdpa"


@contextmanager
def attention_way(name: str) -> Iterator[None]:
    """Within this context every attention, of all threads, is computed in the way `name` of WAYS; ValueError if there
    is none."""
    global _forced
    if name not in WAYS:
        raise ValueError(f"way={name!r} is not one of {', '.join(WAYS)}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


_forced: str | None = None


def _eager(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, grid: TokenGrid) -> Tensor:
    """The reference for every other way: the formula, step by step."""
    logits = q * q.shape[-1] ** -0.5 @ k.mT + grid.outer_sum(by_row, by_col)
    return logits.softmax(-1).to(v.dtype) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, grid: TokenGrid) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=grid.outer_sum(by_row, by_col))


def _widened(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, grid: TokenGrid) -> Tensor:
    """The bias inside the product: queries widened by what they give rows and columns, keys by marks of theirs.

    h + w more channels: little for a window, and on a CPU less than adding a broadcast sum.
    """
    marks = position_marks(grid, k.dtype)
    return attend_marked(q, k, v, by_row, by_col, marks.expand(*k.shape[:2], -1, -1))


def position_marks(grid: TokenGrid, dtype: torch.dtype) -> Tensor:
    """(T, h + w), 1 at the row and at the column of each token of `grid`."""
    return torch.cat([F.one_hot(grid.rows, grid.height), F.one_hot(grid.cols, grid.width)], dim=1).to(dtype)


def attend_marked(
    q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, marks: Tensor, extra: Tensor | None = None
) -> Tensor:
    """As `attend`, to keys that stand anywhere: each takes the shares of `by_row` and `by_col` that its `marks`
    (g, H, T, h + w) say, a mean of tokens the mean of their biases. `extra` (g, 1, 1, T) is added to the logits."""
    wide_q = torch.cat([q * q.shape[-1] ** -0.5, by_row, by_col], dim=-1)
    logits = wide_q @ torch.cat([k, marks], dim=-1).mT
    return (logits if extra is None else logits + extra).softmax(-1).to(v.dtype) @ v


def _tiles(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, grid: TokenGrid) -> Tensor:
    """One head and a few queries at a time, so that logits never leave the cache and are never stored as a whole."""
    return torch.ops.sam_blvit.tiled_attention(q, k, v, by_row, by_col, grid.blocks).transpose(1, 2)


def _tile_by_tile(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, blocks: Sequence[int]) -> Tensor:
    """Attention (g, Q, H, d), without gradients."""
    k, v = (_by_raster(x, blocks) for x in (k, v))  # a row's keys side by side: adding a bias is quick then
    q = q * q.shape[-1] ** -0.5
    groups, heads, queries, _ = q.shape
    keys = k.shape[2]
    step = min(queries, max(LEAST_TILE, TILE_BYTES // (keys * q.element_size())))
    logits, weights = q.new_empty(2, step, keys)
    out = q.new_empty(groups, queries, heads, q.shape[-1])
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for group in range(groups):
            for head in range(heads):
                for start in range(0, queries, step):
                    some = (group, head, slice(start, start + step))
                    rows, cols = by_row[some].unsqueeze(-1), by_col[some].unsqueeze(-2)
                    a, p = logits[: len(rows)], weights[: len(rows)]
                    torch.add(rows, cols, out=a.unflatten(1, (rows.shape[1], cols.shape[2])))
                    torch.softmax(a.addmm_(q[some], k[group, head].mT), -1, out=p)
                    torch.mm(p, v[group, head], out=out[group, some[2], head])
    return out


def _shape_of_tiles(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, blocks: Sequence[int]) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3])


# one operation to torch.compile, which would unroll the loops
torch.library.custom_op("sam_blvit::tiled_attention", _tile_by_tile, mutates_args=())
torch.library.register_fake("sam_blvit::tiled_attention", _shape_of_tiles)


def _by_raster(x: Tensor, blocks: Sequence[int]) -> Tensor:
    """Tokens of `x` (g, H, T, d), block by block, row by row of the whole grid."""
    return x.unflatten(2, tuple(blocks)).transpose(3, 4).reshape(x.shape)


def _flex(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, grid: TokenGrid) -> Tensor:
    """The bias as a score function, looked up where it is used. Always compiled, else it would store every score."""

    def biased(score: Tensor, group: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + by_row[group, head, query, grid.rows[key]] + by_col[group, head, query, grid.cols[key]]

    from torch.nn.attention.flex_attention import flex_attention  # seconds to import, on CUDA alone

    if torch.compiler.is_compiling():
        return cast(Tensor, flex_attention(q, k, v, score_mod=biased))
    with torch._dynamo.config.patch(recompile_limit=MANY_SHAPES):
        return _compiled_flex()(q, k, v, score_mod=biased)


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(cast(Callable[..., Tensor], flex_attention), fullgraph=True, dynamic=False)


WAYS: dict[str, Way] = {"eager": _eager, "sdpa": _sdpa, "widened": _widened, "tiles": _tiles, "flex": _flex}
