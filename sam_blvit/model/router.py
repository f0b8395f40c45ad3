"""The router ("prediction layer"): which tokens of a window are worth the performance block.

Shapes:
    B  images    M  windows of an image    S  slots of a window    N  tokens of an image
    K  primary tokens of each window, the same number everywhere, so that every tensor is rectangular
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_blvit.model.windows import WindowLayout


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
            return F.linear(x.float(), self.score.weight.float()).squeeze(-1)


def choose(logits: Tensor, *, layout: WindowLayout, num_primary: int, kind: str = "window") -> Routing:
    """The `num_primary` best tokens of each window by `logits` (B, N); of equals the first wins.

    The paper does not say what its softmax runs over. `kind` window: the tokens of a window, and a score is
    s = S * softmax, mean 1: with a learnable alpha these are the paper's functions, but neither gradients nor
    `1 + alpha * s` in bf16 shrink with the window. two_class: primary or not, of each token on its own. Only the
    difference of the two logits counts there, and one row of weights gives it: softmax is then its sigmoid. A score
    is twice that, so that it starts at mean 1 too.
    """
    tokens_of_window: Tensor | int = layout.slots
    if layout.padded:
        empty = logits.new_full((logits.shape[0], layout.num_windows * layout.slots), -torch.inf)
        logits = empty.index_copy(1, layout.slot_of_token, logits)
        tokens_of_window = layout.real.sum(-1, keepdim=True)  # (M, 1)
    logits = logits.unflatten(1, (layout.num_windows, layout.slots))  # (B, M, S)
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
    )
