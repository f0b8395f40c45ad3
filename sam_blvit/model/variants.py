"""Study variants: what docs/evidence.md compares with the paper's layer, and the tables that a config chooses from.

A new token rule is a module from tokens (B, N, C) to logits (B, N), and one entry of `ROUTERS` here and in
`sam_blvit.config.model`. Of its logits `choose` takes the K best of each window.

Shapes:
    B  images    M  windows of an image    S  slots of a window    N  tokens of an image, N = M * S here    C  channels
    K  primary tokens of a window    R  rows of a summary: K primary tokens, then R - K means of other tokens
    g  groups that attend within themselves    Q  queries of a group
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_blvit.config import ModelConfig
from sam_blvit.model.attention import Attention
from sam_blvit.model.attention_backends import attend_marked, position_marks
from sam_blvit.model.big_little import BigLittleLayer
from sam_blvit.model.blocks import scaled
from sam_blvit.model.router import Routing, Scoring, TokenRouter, choose, window_scores
from sam_blvit.model.windows import Scope, TokenGrid, WindowLayout, take_tokens

HASH_SCALE = 12345.678
"""Makes the fractional parts of neighbouring sines differ."""


class RandomRouter(nn.Module):
    """Random logits: a hash of each token's values, so that no generator is involved.

    It depends on the lowest bits of these values, so another device, dtype or batch may pick other tokens.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, N) from 0 to 1 in float32 of tokens `x` (B, N, C)."""
        return (x.float().sum(-1).sin() * HASH_SCALE).remainder(1)


def two_class_scores(logits: Tensor, layout: WindowLayout) -> Tensor:
    """Twice the softmax over two classes, primary or not, of each token: (B, M, S), mean 1 at initialisation.

    The softmax depends only on the difference of the two logits, which one row of weights gives, and is its sigmoid.
    """
    return 2 * logits.sigmoid()


@dataclass(frozen=True)
class Summary:
    """Fewer rows in place of the tokens of a window: its primary tokens, then means of the others in each square."""

    slots: Tensor
    """(B, M, K) slots of the primary tokens."""
    means: Tensor | None
    """(B, M, R - K, S) weight of each token in a mean; 0 for a square without other tokens. None: there are no
    means."""
    log_counts: Tensor
    """(B, M, R) logarithm of the number of tokens in a row. It is added to the logits of a key, so that a mean weighs
    as much as its tokens would if they were alike (proportional attention, Bolya et al. 2023, equation 1)."""
    places: Tensor
    """(B, M, Q) slots where the queries stand: the primary tokens and, if means are updated, centres of squares."""
    spread: Tensor | None
    """(B, M, S, R - K) 1 if a token gets the update of a mean. None: means are keys only."""

    def rows(self, x: Tensor) -> Tensor:
        """Rows (B, M, R, C) of the tokens `x` (B or 1, M or 1, S, C) of each window."""
        images, windows = self.slots.shape[:2]
        x = x.expand(images, windows, -1, -1).flatten(0, 1)
        rows = take_tokens(x, self.slots.flatten(0, 1))
        if self.means is not None:
            with torch.autocast(x.device.type, enabled=False):  # means of float32 tokens stay float32
                rows = torch.cat([rows, self.means.flatten(0, 1).to(x.dtype) @ x], dim=1)
        return rows.unflatten(0, (images, windows))

    def updates(self, of_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Updates of the tokens, by the updates `of_rows` (B, M * R, C).

        Returns:
            Updates of the primary tokens (B, M * K, C), and of all tokens (B, N, C), 0 for primary ones.
        """
        assert self.spread is not None
        squares = self.spread.shape[-1]
        of_rows = of_rows.unflatten(1, self.log_counts.shape[1:])  # (B, M, R, C)
        primary, means = of_rows[:, :, :-squares], of_rows[:, :, -squares:]
        return primary.flatten(1, 2), (self.spread.to(means.dtype) @ means).flatten(1, 2)


def summarize(slots: Tensor, layout: WindowLayout, *, pool: int | None, broadcast: bool = False) -> Summary:
    """The summary of each window with primary tokens at `slots` (B, M, K).

    Args:
        slots: of the primary tokens.
        layout: how the tokens lie in windows, without padding.
        pool: side of the squares of tokens whose others make one mean. None: no means, primary tokens only.
        broadcast: whether means are updated, and other tokens by them.
    """
    alone = torch.zeros_like(slots, dtype=torch.float32)  # log 1
    if pool is None:
        return Summary(slots=slots, means=None, log_counts=alone, places=slots, spread=None)
    unchosen = 1 - F.one_hot(slots, layout.slots).sum(2, keepdim=True).float()  # (B, M, 1, S)
    side = layout.window // pool
    place = torch.arange(layout.slots, device=slots.device)
    square = place // layout.window // pool * side + place % layout.window // pool  # (S,)
    middle = (torch.arange(side, device=slots.device) * pool + pool // 2).unsqueeze(1) * layout.window
    middles = (middle + middle.T // layout.window).flatten().expand(*slots.shape[:2], -1)  # (B, M, squares)
    others = F.one_hot(square, side * side).mT * unchosen  # (B, M, squares, S)
    counts = others.sum(-1)
    return Summary(
        slots=slots,
        means=others / counts.clamp_min(1).unsqueeze(-1),
        log_counts=torch.cat([alone, counts.log()], dim=2),
        places=torch.cat([slots, middles], dim=2) if broadcast else slots,
        spread=others.mT if broadcast else None,
    )


@dataclass(frozen=True)
class SummaryRouting(Routing):
    """A routing whose primary tokens attend to a summary of the tokens."""

    summary: Summary


class SummaryAttention(Attention):
    """Semi-cross attention whose keys are the rows of a summary."""

    def forward(
        self, x: Tensor, grid: TokenGrid, queries: Tensor | None = None, summary: Summary | None = None
    ) -> Tensor:
        """As `Attention.forward`. With a `summary` its rows are the keys, and also the queries if they are updated."""
        if queries is None or summary is None:
            return super().forward(x, grid, queries)
        images, windows = summary.slots.shape[:2]
        slots = x.shape[0] * x.shape[1] // (images * windows)

        def of_group(rows: Tensor) -> Tensor:
            return rows.reshape(len(x), -1, rows.shape[-1])  # (g, R of its windows, C)

        rows = of_group(summary.rows(x.reshape(images, windows, slots, -1)))
        asking = take_tokens(x, queries) if summary.spread is None else rows
        q, k, v = self._queries_and_keys(asking, rows)
        marks = of_group(summary.rows(position_marks(grid, x.dtype).unflatten(0, (-1, slots)))).to(k.dtype)
        extra = summary.log_counts.reshape(len(x), 1, 1, -1).to(k.dtype)
        marks = marks.unsqueeze(1).expand(-1, self.num_heads, -1, -1)
        return self._merged(attend_marked(q, k, v, *self._bias(q, grid, queries), marks, extra))


class SummaryLayer(BigLittleLayer):
    """Primary tokens attend to each other, and to means of the other tokens if there are any."""

    attention_class = SummaryAttention

    def primary_attention(self, x: Tensor, scope: Scope, routing: Routing) -> Tensor:
        """Updates (B, M * K, C) of primary tokens, or (B, M * R, C) of all rows if means are updated."""
        summary = _summary_of(routing)
        update = self.attn(scope.enter(self.norm1(x)), scope.grid, scope.queries(summary.places), summary)
        return update.reshape(len(x), -1, x.shape[-1])


class BroadcastLayer(SummaryLayer):
    """Means are updated too, and each other token gets the update of its mean, as in Evo-ViT.

    Layers have no efficiency block: a token gets one update.
    """

    def primary_mlp(self, x: Tensor, routing: Routing) -> Tensor:
        """Updates (B, M * R, C) of all rows."""
        windows = routing.slots.shape[1]
        return self.mlp_update(_summary_of(routing).rows(x.unflatten(1, (windows, -1))).flatten(1, 2))

    def fuse(
        self,
        x: Tensor,
        primary: Tensor | None,
        secondary: Tensor | None,
        routing: Routing | None,
        half: str,
        factor: Tensor | None,
    ) -> Tensor:
        """As `BigLittleLayer.fuse`, with updates `primary` (B, M * R, C) of all rows."""
        if primary is not None and routing is not None:
            primary, others = _summary_of(routing).updates(primary)
            x = x + scaled(others, factor)
        return super().fuse(x, primary, secondary, routing, half, factor)


def _summary_of(routing: Routing) -> Summary:
    assert isinstance(routing, SummaryRouting)
    return routing.summary


ROUTERS: dict[str, Callable[[int], nn.Module]] = {"learned": TokenRouter, "random": lambda dim: RandomRouter()}
"""Token rules by `ModelConfig.router`, each built for C channels."""
SCORINGS: dict[str, Scoring] = {"window": window_scores, "two_class": two_class_scores}
"""By `ModelConfig.router_scores`."""


def layer_class(config: ModelConfig) -> type[BigLittleLayer]:
    """The class of `config`'s routed layers."""
    if config.primary_keys == "all":
        return BigLittleLayer
    return BroadcastLayer if config.broadcast else SummaryLayer


def route(logits: Tensor, *, config: ModelConfig, layout: WindowLayout, num_primary: int) -> Routing:
    """The routing that `config`'s layers take, of router `logits` (B, N)."""
    routing = choose(logits, layout=layout, num_primary=num_primary, scoring=SCORINGS[config.router_scores])
    if config.primary_keys == "all":
        return routing
    pool = config.pool if config.primary_keys == "pooled" else None
    return SummaryRouting(
        slots=routing.slots,
        tokens=routing.tokens,
        scores=routing.scores,
        filled=routing.filled,
        primary=routing.primary,
        summary=summarize(routing.slots, layout, pool=pool, broadcast=config.broadcast),
    )
