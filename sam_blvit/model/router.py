"""The router ("prediction layer"): which tokens of a window the performance block updates.

Shapes:
    B  images    M  windows of an image    S  slots of a window    N  tokens of an image    C  channels
    K  primary tokens of each window, the same number everywhere, so that every tensor is rectangular
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sam_blvit.model.windows import WindowLayout


@dataclass(frozen=True)
class Routing:
    """The primary tokens that a router chose; used by every layer up to the next router."""

    slots: Tensor
    """(B, M, K) slot of each primary token in its window, ascending."""
    tokens: Tensor
    """(B, M * K) place of each primary token among the N window-major tokens."""
    scores: Tensor
    """(B, M * K, 1) float32 importance scores; 0 for a filler."""
    filled: Tensor | None
    """(B, M * K, 1) 1 for a token, 0 for a filler in a border window with fewer than K tokens. None: no fillers."""
    primary: Tensor
    """(B, N, 1) the mask M of section 3.2: 1 for a primary token, 0 for any other."""


class TokenRouter(nn.Module):
    """Scores tokens by one linear layer (section 3.2, token selection and routing).

    The scores also scale the performance block's updates, so the router learns from the task loss although the choice
    of the K best tokens has no gradient.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, bias=False)  # a bias changes no choice, and softmax over a window cancels it

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, N) in float32 of tokens `x` (B, N, C)."""
        with torch.autocast(x.device.type, enabled=False):  # bf16 logits would tie
            return self.score(x.float()).squeeze(-1)


Scoring = Callable[[Tensor, WindowLayout], Tensor]
"""Importance scores (B, M, S) of logits (B, M, S); the logit of an empty slot is -inf and its score 0."""


def window_scores(logits: Tensor, layout: WindowLayout) -> Tensor:
    """Softmax over the tokens of each window, times their number: (B, M, S), mean 1 over a window.

    The paper does not say what its softmax runs over. With a learnable alpha the factor changes no function that the
    model can learn, but neither gradients nor `1 + alpha * s` in bf16 shrink with the size of a window.
    """
    tokens_of_window = layout.real.sum(-1, keepdim=True) if layout.padded else layout.slots  # (M, 1)
    return logits.softmax(-1) * tokens_of_window


def choose(logits: Tensor, *, layout: WindowLayout, num_primary: int, scoring: Scoring = window_scores) -> Routing:
    """Top-K of each window (section 3.2, token selection and routing).

    Args:
        logits: (B, N); among equal ones the first token is chosen.
        layout: how the tokens lie in windows.
        num_primary: K.
        scoring: from logits to importance scores.
    """
    logits = layout.in_slots(logits, empty=-torch.inf)  # (B, M, S)
    scores = scoring(logits, layout)  # (B, M, S)
    best = logits.argsort(dim=-1, descending=True, stable=True)[..., :num_primary]
    slots = best.sort(dim=-1).values  # (B, M, K), ascending: neighbours stay neighbours in memory
    tokens = layout.tokens_of(slots)  # (B, M * K)
    filled = layout.real.expand_as(logits).gather(-1, slots).flatten(1).float() if layout.padded else None
    counted = torch.ones_like(tokens, dtype=torch.float32) if filled is None else filled
    unchosen = logits.new_zeros(logits.shape[0], layout.num_tokens)
    return Routing(
        slots=slots,
        tokens=tokens,
        scores=scores.gather(-1, slots).flatten(1).unsqueeze(-1),
        filled=None if filled is None else filled.unsqueeze(-1),
        primary=unchosen.scatter_add(1, tokens, counted).unsqueeze(-1),
    )
