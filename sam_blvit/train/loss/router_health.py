"""Whether routers do their work: where their primary tokens lie, how sure they are, and how often they change sides.

A router that always picks the centre, spends tokens on padding, or whose scores stay uniform has learnt nothing from
the photograph.

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
    """What is to be logged of each router that ran, by name: `router_4/entropy` is of the one after layer 4.

    `valid` (B, G, G): 1 where a token lies on the photograph.
    - `region_<row>_<column>`: share of the primary tokens in each ninth of the photograph, counted from the top left;
    - `padding`: share of the primary tokens outside of it, so that these ten sum to 1;
    - `entropy`: of the softmax over a window, relative to uniform scores (1: the router prefers nothing);
    - `change`: share of the photograph's tokens that are on another side than after the router before.
    Nothing at keep ratios 0 and 1, where no router runs.
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
    """Mean over windows of the entropy of a window's softmax, 1 where all tokens score alike; `logits` (B, N).

    Windows of a single token, which have nothing to choose from, are left out.
    """
    sizes = logits.new_full((layout.num_windows,), layout.slots)
    if layout.padded:
        sizes = layout.real.sum(-1).to(logits)
    scores = layout.in_slots(logits, empty=-torch.inf).softmax(-1)  # (B, M, S)
    entropy = torch.special.entr(scores).sum(-1)  # (B, M)
    return (entropy[:, sizes > 1] / sizes[sizes > 1].log()).mean()


def _regions(valid: Tensor) -> Tensor:
    """(B, Gh, Gw): the ninth of the photograph that each token is in, row by row; 9 outside of it."""
    row, column = valid.cumsum(1) - 1, valid.cumsum(2) - 1  # within the photograph, which starts at the top left
    height, width = valid.any(2).sum(1)[:, None, None], valid.any(1).sum(1)[:, None, None]
    ninth = row * THIRDS // height * THIRDS + column * THIRDS // width
    return torch.where(valid, ninth, THIRDS**2)
