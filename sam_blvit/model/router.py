"""The router ("prediction layer"): which tokens of a window are worth the performance block.

Shapes:
    B  images    M  windows of an image    S  slots of a window    N  tokens of an image
    K  primary tokens of each window, the same number everywhere, so that every tensor is rectangular
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_blvit.model.windows import WindowLayout, take_tokens

HASH_SCALE = 12345.678
"""What makes neighbouring sines differ after the point."""


@dataclass(frozen=True)
class Summary:
    """Fewer rows that stand for the tokens of a window: its primary ones, then means of the others in each square."""

    slots: Tensor
    """(B, M, K) of the primary ones."""
    means: Tensor | None
    """(B, M, R - K, S) share that each token has in a mean; 0 for a square without others. None: there are no means."""
    log_counts: Tensor
    """(B, M, R) logarithm of how many tokens a row stands for. It is added to a key's logit, so that a mean weighs what
    its tokens would if they were alike (proportional attention of token merging, Bolya et al. 2023, equation 1)."""
    places: Tensor
    """(B, M, Q) slots that rows ask from: the primary ones and, where updates spread, the middles of the squares."""
    spread: Tensor | None
    """(B, M, S, R - K) 1 where a mean's update is a token's too. None: means are keys alone."""

    def rows(self, x: Tensor) -> Tensor:
        """Rows (B, M, R, C) of `x` (B or 1, M or 1, S, C), what the tokens of each window hold."""
        images, windows = self.slots.shape[:2]
        x = x.expand(images, windows, -1, -1).flatten(0, 1)
        rows = take_tokens(x, self.slots.flatten(0, 1))
        if self.means is not None:
            with torch.autocast(x.device.type, enabled=False):  # a mean of float32 tokens is one
                rows = torch.cat([rows, self.means.flatten(0, 1).to(x.dtype) @ x], dim=1)
        return rows.unflatten(0, (images, windows))

    def updates(self, of_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Updates `of_rows` (B, M * R, C) as those of primary tokens (B, M * K, C), and of all tokens by their means
        (B, N, C), 0 for primary ones."""
        assert self.spread is not None
        squares = self.spread.shape[-1]
        of_rows = of_rows.unflatten(1, self.log_counts.shape[1:])
        primary, means = of_rows[:, :, :-squares], of_rows[:, :, -squares:]
        return primary.flatten(1, 2), (self.spread.to(means.dtype) @ means).flatten(1, 2)


@dataclass(frozen=True)
class Routing:
    """The primary tokens that a router chose; they hold until the next router."""

    slots: Tensor
    """(B, M, K) place of each primary token in its window, ascending."""
    tokens: Tensor
    """(B, M * K) place of each primary token among the N window-major tokens."""
    scores: Tensor
    """(B, M * K, 1) float32, mean 1 over a window (or, of two classes, at the start); 0 for a filler."""
    filled: Tensor | None
    """(B, M * K, 1) 1 for a token, 0 for a filler in a border window with fewer than K tokens. None: no fillers."""
    primary: Tensor
    """(B, N, 1) 1 for a primary token, 0 for any other."""
    summary: Summary | None = None
    """What primary tokens attend to. None: all tokens."""


class TokenRouter(nn.Module):
    """Scores tokens; `choose` picks the K best of each window (paper, section 3.2, token selection).

    The scores also scale the performance block's output, so the router learns from the task loss
    although picking the best K has no gradient of its own.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, bias=False)  # no choice hangs on one, and softmax over a window cancels it

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, N) in float32 of tokens `x` (B, N, C)."""
        with torch.autocast(x.device.type, enabled=False):  # bf16 logits would tie
            return self.score(x.float()).squeeze(-1)


class RandomRouter(nn.Module):
    """Logits that know nothing: a hash of each token's own numbers, so that no generator's state matters.

    It hangs on the last bits of these numbers: another device, dtype or batch may draw other tokens.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, N) from 0 to 1 in float32 of tokens `x` (B, N, C)."""
        return (x.float().sum(-1).sin() * HASH_SCALE).remainder(1)


ROUTERS: dict[str, Callable[[int], nn.Module]] = {"learned": TokenRouter, "random": lambda _: RandomRouter()}
"""Routers by the name that `ModelConfig.router` gives them: what makes one for tokens of C channels."""


def choose(
    logits: Tensor,
    *,
    layout: WindowLayout,
    num_primary: int,
    kind: str = "window",
    keys: str = "all",
    pool: int = 1,
    broadcast: bool = False,
) -> Routing:
    """The `num_primary` best tokens of each window by `logits` (B, N); of equals the first wins.

    The paper does not say what its softmax runs over. `kind` window: the tokens of a window, and a score is
    s = S * softmax, mean 1: with a learnable alpha these are the paper's functions, but neither gradients nor
    `1 + alpha * s` in bf16 shrink with the window. two_class: primary or not, of each token on its own. Only the
    difference of the two logits counts there, and one row of weights gives it: softmax is then its sigmoid. A score
    is twice that, so that it starts at mean 1 too.
    `keys`: what primary tokens attend to: all, primary (each other) or pooled (each other, and means of the others in
    squares of side `pool`); the last two want a `layout` without padding. `broadcast`: means are updated too, and the
    others with them.
    """
    tokens_of_window = layout.real.sum(-1, keepdim=True) if layout.padded else layout.slots  # (M, 1)
    logits = layout.in_slots(logits, empty=-torch.inf)
    scores = 2 * logits.sigmoid() if kind == "two_class" else logits.softmax(-1) * tokens_of_window
    best = logits.argsort(dim=-1, descending=True, stable=True)[..., :num_primary]
    slots = best.sort(dim=-1).values  # ascending: neighbours stay neighbours in memory
    tokens = layout.tokens_of(slots)
    filled = layout.real.expand_as(logits).gather(-1, slots).flatten(1).float() if layout.padded else None
    counted = torch.ones_like(tokens, dtype=torch.float32) if filled is None else filled
    unchosen = logits.new_zeros(logits.shape[0], layout.num_tokens)
    return Routing(
        slots=slots,
        tokens=tokens,
        scores=scores.gather(-1, slots).flatten(1).unsqueeze(-1),
        filled=None if filled is None else filled.unsqueeze(-1),
        primary=unchosen.scatter_add(1, tokens, counted).unsqueeze(-1),
        summary=None if keys == "all" else _summary(slots, layout, pool if keys == "pooled" else None, broadcast),
    )


def _summary(slots: Tensor, layout: WindowLayout, pool: int | None, broadcast: bool) -> Summary:
    """Of the primary `slots` (B, M, K) and, with a `pool`, of the means of the others in squares of that side."""
    alone = torch.zeros_like(slots, dtype=torch.float32)  # log 1
    if pool is None:
        return Summary(slots=slots, means=None, log_counts=alone, places=slots, spread=None)
    unchosen = 1 - F.one_hot(slots, layout.slots).sum(2, keepdim=True).float()  # (B, M, 1, S)
    side = layout.window // pool
    place = torch.arange(layout.slots, device=slots.device)
    square = place // layout.window // pool * side + place % layout.window // pool
    middle = (torch.arange(side, device=slots.device) * pool + pool // 2).unsqueeze(1) * layout.window
    middles = (middle + middle.T // layout.window).flatten().expand(*slots.shape[:2], -1)
    others = F.one_hot(square, side * side).mT * unchosen  # (B, M, squares, S)
    counts = others.sum(-1)
    return Summary(
        slots=slots,
        means=others / counts.clamp_min(1).unsqueeze(-1),
        log_counts=torch.cat([alone, counts.log()], dim=2),
        places=torch.cat([slots, middles], dim=2) if broadcast else slots,
        spread=others.mT if broadcast else None,
    )
