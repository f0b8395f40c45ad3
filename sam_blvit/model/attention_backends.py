"""Attention backends: softmax(q k^T / sqrt(d) + bias) v, computed by the fastest of several implementations.

The bias has SAM's decomposed form: one term for the row and one for the column of the grid that a key stands on. Only
`eager` and `sdpa` store their sum for every pair of query and key.

A new backend is one function of type `Backend` and one entry of `BACKENDS`; `fastest_backend` decides when it runs.

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

Backend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, TokenGrid], Tensor]
MANY_KEYS = 1024
"""With more keys than this the group is an image, not a window, and its logits take much memory."""
TILE_BYTES = 2 << 20
"""Size of the logits of one tile; they stay in the cache of a core."""
LEAST_TILE = 128
"""Fewest queries of a tile; smaller matrix products are slow."""
HALVES = (torch.bfloat16, torch.float16)
TRITON = importlib.util.find_spec("triton") is not None
"""Whether Triton is installed; FlexAttention needs it on CUDA."""


def attend(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, grid: TokenGrid) -> Tensor:
    """Attention under decomposed relative positions, by the fastest backend.

    Args:
        q: (g, H, Q, d) queries.
        k: (g, H, T, d) keys, in the order of `grid`.
        v: (g, H, T, d) values.
        by_row: (g, H, Q, h) bias of each query for the keys of each row.
        by_col: (g, H, Q, w) bias of each query for the keys of each column.
        grid: where the keys stand.

    Returns:
        (g, H, Q, d)
    """
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, by_row, by_col))
    name = _forced or fastest_backend(q, keys=k.shape[2], trained=trained)
    return BACKENDS[name](q, k, v, by_row, by_col, grid)


def fastest_backend(q: Tensor, *, keys: int, trained: bool) -> str:
    """Name of the fastest backend.

    On a CPU the rule follows the measurements of studies/attention_speed.py; on CUDA it saves memory.

    Args:
        q: queries, of which only device and dtype matter.
        keys: T.
        trained: whether a gradient is needed. SDPA has no fast path for it on a CPU, and `tiles` has no gradient.
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
def attention_backend(name: str) -> Iterator[None]:
    """A context in which every attention, of all threads, runs on the backend `name`.

    Raises:
        ValueError: if there is no such backend.
    """
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"backend={name!r} is not one of {', '.join(BACKENDS)}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


_forced: str | None = None


def _eager(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, grid: TokenGrid) -> Tensor:
    """The formula, step by step: the reference for every other backend."""
    logits = q * q.shape[-1] ** -0.5 @ k.mT + grid.outer_sum(by_row, by_col)
    return logits.softmax(-1).to(v.dtype) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, grid: TokenGrid) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=grid.outer_sum(by_row, by_col))


def _widened(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, grid: TokenGrid) -> Tensor:
    """The bias inside the matrix product: it widens the queries, one-hot rows and columns widen the keys.

    That is h + w more channels: few for a window, and faster on a CPU than adding a broadcast sum.
    """
    marks = position_marks(grid, k.dtype)
    return attend_marked(q, k, v, by_row, by_col, marks.expand(*k.shape[:2], -1, -1))  # (g, H, Q, d)


def position_marks(grid: TokenGrid, dtype: torch.dtype) -> Tensor:
    """One-hot row and column (T, h + w) of each token of `grid`."""
    return torch.cat([F.one_hot(grid.rows, grid.height), F.one_hot(grid.cols, grid.width)], dim=1).to(dtype)


def attend_marked(
    q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, marks: Tensor, extra: Tensor | None = None
) -> Tensor:
    """As `attend`, for keys that may also be means of tokens: the bias of a mean is the mean of its tokens' biases.

    Args:
        q: as in `attend`.
        k: as in `attend`.
        v: as in `attend`.
        by_row: as in `attend`.
        by_col: as in `attend`.
        marks: (g, H, T, h + w) share of each row and column in a key; `position_marks` for single tokens.
        extra: (g, 1, 1, T) added to the logits of each key.

    Returns:
        (g, H, Q, d)
    """
    wide_q = torch.cat([q * q.shape[-1] ** -0.5, by_row, by_col], dim=-1)  # (g, H, Q, d + h + w)
    logits = wide_q @ torch.cat([k, marks], dim=-1).mT  # (g, H, Q, T)
    return (logits if extra is None else logits + extra).softmax(-1).to(v.dtype) @ v


def _tiles(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, grid: TokenGrid) -> Tensor:
    """One head and a few queries at a time: the logits stay in the cache and are never stored as a whole."""
    return torch.ops.sam_blvit.tiled_attention(q, k, v, by_row, by_col, grid.blocks).transpose(1, 2)


def _tile_by_tile(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, blocks: Sequence[int]) -> Tensor:
    """Attention (g, Q, H, d), without gradients."""
    k, v = (_by_raster(x, blocks) for x in (k, v))  # keys of a row side by side: adding the bias is fast then
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


# one operation for torch.compile, which would unroll the loops
torch.library.custom_op("sam_blvit::tiled_attention", _tile_by_tile, mutates_args=())
torch.library.register_fake("sam_blvit::tiled_attention", _shape_of_tiles)


def _by_raster(x: Tensor, blocks: Sequence[int]) -> Tensor:
    """Tokens of `x` (g, H, T, d), which come block by block, in raster order."""
    return x.unflatten(2, tuple(blocks)).transpose(3, 4).reshape(x.shape)


def _flex(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, grid: TokenGrid) -> Tensor:
    """FlexAttention with the bias as a score function. Always compiled: eager, it would store every logit."""

    def biased(score: Tensor, group: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + by_row[group, head, query, grid.rows[key]] + by_col[group, head, query, grid.cols[key]]

    from torch.nn.attention.flex_attention import flex_attention  # imported here: takes seconds, and only CUDA uses it

    if torch.compiler.is_compiling():
        return cast(Tensor, flex_attention(q, k, v, score_mod=biased))
    with torch._dynamo.config.patch(recompile_limit=MANY_SHAPES):
        return _compiled_flex()(q, k, v, score_mod=biased)


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(cast(Callable[..., Tensor], flex_attention), fullgraph=True, dynamic=False)


BACKENDS: dict[str, Backend] = {"eager": _eager, "sdpa": _sdpa, "widened": _widened, "tiles": _tiles, "flex": _flex}
