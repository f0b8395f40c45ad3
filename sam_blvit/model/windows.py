"""Window-major token order: the tokens of one window lie side by side, through all layers.

Shapes:
    B  images                       N  tokens of an image (Gh * Gw)
    M  windows of an image          S  slots of a window (W * W), some empty where the grid is padded
    g  groups that attend within themselves: B * M windows, or B whole images
    T  tokens (or slots) of a group C  channels

If the window divides the grid, entering or leaving a window is a reshape and moves no memory. If not (SAM's 14 in 64),
the last windows of a row or column hold fewer tokens; they are padded for windowed attention only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def take_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens at `index` (g, Q) in each group of `x` (g, T, C), as (g, Q, C)."""
    return x.flatten(0, 1).index_select(0, _flat(index, x.shape[1])).view(*index.shape, x.shape[2])


def add_tokens(x: Tensor, index: Tensor, update: Tensor, *, in_place: bool) -> Tensor:
    """`x` (g, T, C) with `update` (g, Q, C) added to its tokens at `index` (g, Q).

    `in_place` overwrites `x`; use it only if `x` is not read again.
    """
    rows = x.flatten(0, 1)
    add = rows.index_add_ if in_place else rows.index_add
    return add(0, _flat(index, x.shape[1]), update.flatten(0, 1).to(x.dtype)).view_as(x)


def _flat(index: Tensor, length: int) -> Tensor:
    start = torch.arange(index.shape[0], device=index.device) * length
    return (index + start[:, None]).flatten()


@dataclass(frozen=True)
class TokenGrid:
    """Row and column of the T tokens of a group, and their order."""

    rows: Tensor
    """(T,) row of each token in its group."""
    cols: Tensor
    """(T,) column of each token in its group."""
    blocks: tuple[int, int, int, int]
    """(Mh, Mw, h, w): the tokens come as Mh x Mw blocks of h x w, row by row inside and out."""

    @property
    def height(self) -> int:
        """Rows of the group."""
        return self.blocks[0] * self.blocks[2]

    @property
    def width(self) -> int:
        """Columns of the group."""
        return self.blocks[1] * self.blocks[3]

    def outer_sum(self, by_row: Tensor, by_col: Tensor) -> Tensor:
        """Sum of `by_row` (..., height) and `by_col` (..., width) for every token, as (..., T)."""
        mh, mw, h, w = self.blocks
        rows = by_row.unflatten(-1, (mh, 1, h, 1))
        cols = by_col.unflatten(-1, (1, mw, 1, w))
        return (rows + cols).flatten(-4)

    @classmethod
    def of(cls, blocks: tuple[int, int, int, int], device: torch.device) -> TokenGrid:
        """The grid of `blocks` (Mh, Mw, h, w)."""
        mh, mw, h, w = blocks
        rows = torch.arange(mh * h, device=device).view(mh, 1, h, 1).expand(blocks).flatten()
        cols = torch.arange(mw * w, device=device).view(1, mw, 1, w).expand(blocks).flatten()
        return cls(rows=rows, cols=cols, blocks=blocks)


class WindowLayout:
    """The window-major order of a grid of tokens, with conversions from and to raster order."""

    def __init__(self, grid: tuple[int, int], window: int, device: torch.device) -> None:
        """The layout of `grid` (Gh, Gw) tokens in windows of `window` x `window`."""
        self.grid = grid
        self.window = window
        self.windows = (-(-grid[0] // window), -(-grid[1] // window))
        self.num_windows = self.windows[0] * self.windows[1]
        self.num_tokens = grid[0] * grid[1]
        self.slots = window * window
        self.padded = self.num_windows * self.slots != self.num_tokens
        self.blocks = (*self.windows, window, window)
        if self.padded:
            slot = TokenGrid.of(self.blocks, device)
            real = (slot.rows < grid[0]) & (slot.cols < grid[1])
            self.real = real.view(self.num_windows, self.slots)
            """(M, S) whether a slot holds a token."""
            # by sorting, not by real.nonzero(): no shape may depend on values
            slot_of_token = (~real).int().argsort(stable=True)[: self.num_tokens]  # (N,), window-major
            self.slot_of_token = slot_of_token
            self.token_of_slot = torch.where(real, real.cumsum(0) - 1, 0)
            self.raster_of_token = (slot.rows * grid[1] + slot.cols)[slot_of_token]
            self.token_of_raster = self.raster_of_token.argsort()

    def by_window(self, x: Tensor) -> Tensor:
        """(B, Gh, Gw, C) -> (B, N, C), window by window."""
        if self.padded:
            return x.flatten(1, 2).index_select(1, self.raster_of_token)
        mh, mw, w, _ = self.blocks
        return x.unflatten(2, (mw, w)).unflatten(1, (mh, w)).transpose(2, 3).flatten(1, 4)

    def by_raster(self, x: Tensor) -> Tensor:
        """(B, N, C), window by window -> (B, Gh, Gw, C)."""
        if self.padded:
            return x.index_select(1, self.token_of_raster).unflatten(1, self.grid)
        return x.unflatten(1, self.blocks).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def in_slots(self, x: Tensor, *, empty: float) -> Tensor:
        """(B, N) -> (B, M, S), with `empty` in slots that hold no token."""
        if self.padded:
            filled = x.new_full((len(x), self.num_windows * self.slots), empty)
            x = filled.index_copy(1, self.slot_of_token, x)
        return x.unflatten(1, (self.num_windows, self.slots))

    def tokens_of(self, slots: Tensor) -> Tensor:
        """Window-major token index (B, M * K) of `slots` (B, M, K); an empty slot gives token 0."""
        start = torch.arange(self.num_windows, device=slots.device) * self.slots
        flat = (slots + start[:, None]).flatten(1)
        return self.token_of_slot[flat] if self.padded else flat


class Scope(Protocol):
    """What one layer's attention sees: groups of T tokens, each attending within itself."""

    grid: TokenGrid

    def enter(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (g, T, C)."""

    def leave(self, x: Tensor) -> Tensor:
        """(g, T, C) -> (B, N, C)."""

    def queries(self, slots: Tensor) -> Tensor:
        """Primary `slots` (B, M, K) as rows of the groups (g, Q)."""


class WindowScope:
    """Attention inside each window; empty slots take part as zeros, as in SAM."""

    def __init__(self, layout: WindowLayout, device: torch.device) -> None:
        self.layout = layout
        self.grid = TokenGrid.of((1, 1, layout.window, layout.window), device)

    def enter(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B * M, S, C)."""
        layout = self.layout
        if layout.padded:
            slots = x.new_zeros(x.shape[0], layout.num_windows * layout.slots, x.shape[2])
            x = slots.index_copy(1, layout.slot_of_token, x)
        return x.reshape(-1, layout.slots, x.shape[2])

    def leave(self, x: Tensor) -> Tensor:
        """(B * M, S, C) -> (B, N, C)."""
        x = x.reshape(-1, self.layout.num_windows * self.layout.slots, x.shape[2])
        return x.index_select(1, self.layout.slot_of_token) if self.layout.padded else x

    def queries(self, slots: Tensor) -> Tensor:
        """(B, M, K) -> (B * M, K)."""
        return slots.flatten(0, 1)


class GlobalScope:
    """Attention over all tokens of an image."""

    def __init__(self, layout: WindowLayout, device: torch.device) -> None:
        self.layout = layout
        self.grid = TokenGrid.of((1, 1, *layout.grid) if layout.padded else layout.blocks, device)

    def enter(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C): raster order where windows are padded, so that the grid is one block."""
        return x.index_select(1, self.layout.token_of_raster) if self.layout.padded else x

    def leave(self, x: Tensor) -> Tensor:
        """The inverse of `enter`."""
        return x.index_select(1, self.layout.raster_of_token) if self.layout.padded else x

    def queries(self, slots: Tensor) -> Tensor:
        """(B, M, K) -> (B, M * K)."""
        tokens = self.layout.tokens_of(slots)
        return self.layout.raster_of_token[tokens] if self.layout.padded else tokens


def both_scopes(layout: WindowLayout, device: torch.device) -> dict[bool, Scope]:
    """What attention sees in a windowed layer (False) and in a global layer (True)."""
    return {False: WindowScope(layout, device), True: GlobalScope(layout, device)}
