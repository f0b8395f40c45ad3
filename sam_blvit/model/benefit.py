"""The benefit of a token: what the choice of block means to it. The target of the listwise loss for routers.

Shapes:
    B  images    N  tokens of an image, window-major    C  channels
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sam_blvit.model.big_little import BigLittleLayer
from sam_blvit.model.blocks import PerformanceBlock
from sam_blvit.model.windows import Scope


@torch.no_grad()
def benefits_in(layers: Iterable[tuple[PerformanceBlock, Scope, Scope]], x: Tensor) -> Tensor:
    """Sum over `layers` of the benefit in each, (B, N) float32; dense layers have none.

    Args:
        layers: with what attention of their performance block and of their efficiency block sees.
        x: (B, N, C) tokens before the first. Each further layer gets the tokens that performance blocks make of them.
    """
    benefits = x.new_zeros(x.shape[:2])
    for layer, scope, efficiency_scope in layers:
        if isinstance(layer, BigLittleLayer):
            benefit, x = benefit_in(layer, x, scope, efficiency_scope)
            benefits = benefits + benefit
        else:
            x = layer(x, scope)
    return benefits


@torch.no_grad()
def benefit_in(layer: BigLittleLayer, x: Tensor, scope: Scope, efficiency_scope: Scope) -> tuple[Tensor, Tensor]:
    """Distance between the updates of each token by the two blocks of `layer`, attention and FFN together.

    Args:
        layer: with or without an efficiency block.
        x: (B, N, C) tokens before it.
        scope: what attention of the performance block sees.
        efficiency_scope: what attention of the efficiency block sees.

    Returns:
        The distances (B, N), float32, and the tokens after the performance block (B, N, C).
    """
    attended = layer.attention_update(x, scope).float()  # (B, N, C)
    between = x + attended
    fed = layer.mlp_update(between).float()  # (B, N, C)
    after = between + fed
    if layer.little is not None:
        attended = attended - layer.little.attention_update(x, efficiency_scope)
        fed = fed - layer.little.mlp_update(between)
    return attended.norm(dim=-1) + fed.norm(dim=-1), after
