"""Router statistics: where primary tokens lie, how peaked the scores are, and how much the choice changes.

A router that always picks the centre, picks padding, or has uniform scores has learnt nothing from the photograph.

Shapes:
    B  images    G  token rows and columns of the square input    Gh, Gw  of the encoder's input    N  Gh * Gw
    M  windows of an image    S  slots of a window
"""

from __future__ import annotations

import torch
from torch import Tensor

from sam_blvit.model.encoder import Encoding
from sam_blvit.model.windows import WindowLayout

THIRDS = 3


def router_health(encoding: Encoding, valid: Tensor) -> dict[str, float]:
    """Compute values to log for each router that ran.

    Args:
        encoding: Output of the encoder.
        valid: (B, G, G), 1 where a token lies on the photograph.

    Returns:
        Values by name. `router_4/entropy` belongs to the router after layer 4. Empty at keep ratios 0 and 1, where no
        router runs.
        - `region_<row>_<column>`: share of the primary tokens in each ninth of the photograph, from the top left.
        - `padding`: share of the primary tokens outside the photograph. These ten shares sum to 1.
        - `entropy`: of the softmax over a window, relative to uniform scores (1: no preference).
        - `change`: share of the photograph's tokens that became or ceased to be primary since the previous router.
    """
    height, width = encoding.layout.grid
    valid = valid[:, :height, :width].bool()
    regions = _regions(valid)
    health: dict[str, float] = {}
    before: Tensor | None = None
    for layer, routing in sorted(encoding.routings.items()):
        primary = encoding.layout.by_raster(routing.primary)[..., 0] > 0  # (B, Gh, Gw)
        shares = torch.bincount(regions[primary], minlength=THIRDS**2 + 1) / primary.sum()
        for region, share in enumerate(shares[:-1].tolist()):
            health[f"router_{layer}/region_{region // THIRDS}_{region % THIRDS}"] = share
        health[f"router_{layer}/padding"] = shares[-1].item()
        health[f"router_{layer}/entropy"] = relative_entropy(encoding.logits[layer], encoding.layout).item()
        if before is not None:
            health[f"router_{layer}/change"] = (primary ^ before)[valid].float().mean().item()
        before = primary
    return health


def relative_entropy(logits: Tensor, layout: WindowLayout) -> Tensor:
    """Return the entropy of the softmax over a window, averaged over windows; 1 if all tokens have equal scores.

    Args:
        logits: (B, N) scores of tokens.
        layout: The windows. Windows with a single token are skipped.
    """
    sizes = logits.new_full((layout.num_windows,), layout.slots)
    if layout.padded:
        sizes = layout.real.sum(-1).to(logits)
    scores = layout.in_slots(logits, empty=-torch.inf).softmax(-1)  # (B, M, S)
    entropy = torch.special.entr(scores).sum(-1)  # (B, M)
    return (entropy[:, sizes > 1] / sizes[sizes > 1].log()).mean()


def _regions(valid: Tensor) -> Tensor:
    """Return (B, Gh, Gw), the ninth of the photograph that each token lies in, row by row; 9 outside the photograph."""
    row, column = valid.cumsum(1) - 1, valid.cumsum(2) - 1  # relative to the photograph, which starts at the top left
    height, width = valid.any(2).sum(1)[:, None, None], valid.any(1).sum(1)[:, None, None]
    ninth = row * THIRDS // height * THIRDS + column * THIRDS // width
    return torch.where(valid, ninth, THIRDS**2)
