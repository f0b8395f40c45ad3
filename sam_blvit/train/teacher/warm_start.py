"""The layerwise warm start: before training, each efficiency block learns to predict its performance block's updates.

This takes minutes, while training the whole model takes days to reach the same point: it needs no decoder, and no
gradient passes through more than one block. The inputs of each layer are those of the dense encoder.

Shapes:
    n  images of one padded size    N  tokens of an image, window-major    C  channels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import cast

import numpy as np
import torch
from torch import Tensor

from sam_blvit.model.big_little import BigLittleLayer
from sam_blvit.model.blocks import EfficiencyBlock
from sam_blvit.model.sam import Sam
from sam_blvit.model.windows import GlobalScope, Scope, WindowLayout, WindowScope

RATE = 0.2
"""Learning rate times width: the effect of AdamW's steps adds up over the channels of a block."""
SMALLEST = 1e-12
"""Smallest denominator of the relative error, for performance blocks with zero updates."""


class LayerInputs:
    """Inputs of a layer and updates of its performance block, for all images of one padded size."""

    def __init__(self, x: Tensor, layout: WindowLayout, precision: str) -> None:
        """`x`: (n, N, C), the input of the first routed layer."""
        self.x = x
        self.layout = layout
        self.precision = precision
        self.attention = torch.empty_like(x)
        """(n, N, C) updates by attention."""
        self.mlp = torch.empty_like(x)
        """(n, N, C) updates by the MLP, at x + attention."""
        self.little_scope: Scope

    @torch.no_grad()
    def enter(self, block: BigLittleLayer, *, is_global: bool, little_is_global: bool) -> None:
        """Compute the updates of `block`, image by image."""
        scopes: dict[bool, Scope] = {
            True: GlobalScope(self.layout, self.x.device),
            False: WindowScope(self.layout, self.x.device),
        }
        scope, self.little_scope = scopes[is_global], scopes[little_is_global]
        with self._autocast():
            for i in range(len(self.x)):
                x = self.x[i : i + 1]
                self.attention[i : i + 1] = scope.leave(block.attn(scope.enter(block.norm1(x)), scope.grid))
                self.mlp[i : i + 1] = block.mlp(block.norm2(x + self.attention[i : i + 1]))

    def leave(self) -> None:
        """Add the updates, giving the input of the next layer."""
        self.x += self.attention
        self.x += self.mlp

    def squares(self, little: EfficiencyBlock, chosen: Tensor) -> Tensor:
        """Return sums over the images `chosen`, (2, 2) float32.

        Rows: attention, MLP. Columns: squared error of `little`, square of the target.
        """
        x, attention, mlp = self.x[chosen], self.attention[chosen], self.mlp[chosen]
        with self._autocast():
            updates = little.attention_update(x, self.little_scope), little.mlp_update(x + attention)
        sums = [
            torch.stack([(update.float() - wanted).square().sum(), wanted.square().sum().clamp_min(SMALLEST)])
            for update, wanted in zip(updates, (attention, mlp), strict=True)
        ]
        return torch.stack(sums)

    def _autocast(self) -> torch.autocast:
        """Return an autocast context for one step. A longer one would cache outdated casts of the weights."""
        return torch.autocast(self.x.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def warm_start(
    sam: Sam,
    images: Iterable[Tensor],
    *,
    steps: int,
    batch_size: int,
    lr: float | None = None,
    seed: int = 0,
    precision: str = "fp32",
    say: Callable[[str], object] = print,
) -> dict[int, float]:
    """Fit each efficiency block of `sam` to the two updates of its performance block, in place, layer by layer.

    Only efficiency blocks change. Three copies of all tokens are held in float32 on the device of `sam`: 38 MiB per
    image for blvit_b_t at 1024 px.

    Args:
        sam: The model.
        images: (3, h, w) uint8 each, resized for `sam`.
        steps: Steps per layer.
        batch_size: Images per step, drawn by (seed, layer, step).
        lr: Peak learning rate. None: 0.2 / Ce.
        seed: Seed of the draws.
        precision: fp32 or bf16.
        say: Called with a line about each layer.

    Returns:
        The relative squared error by layer, over all images, averaged over attention and MLP. 0 is perfect; 1 is as
        good as no update.

    Raises:
        ValueError: If there are no images.
    """
    encoder = sam.image_encoder
    groups = _begun(sam, images, precision)
    rate = RATE / max(1, encoder.config.little_dim) if lr is None else lr
    errors: dict[int, float] = {}
    for layer in range(encoder.config.routed_from or encoder.config.layers + 1, encoder.config.layers + 1):
        block = cast(BigLittleLayer, encoder.blocks[layer - 1])
        is_global, little_is_global = (
            encoder.config.attends_globally(layer, little=little) for little in (False, True)
        )
        for group in groups:
            group.enter(block, is_global=is_global, little_is_global=little_is_global)
        if block.little is not None:
            before = _error(block.little, groups)
            _regress(block.little, groups, steps=steps, batch_size=batch_size, lr=rate, entropy=[seed, layer])
            errors[layer] = _error(block.little, groups)
            say(f"warm start: layer {layer}, error {before:.3f} -> {errors[layer]:.3f} of the update")
        for group in groups:
            group.leave()
    return errors


@torch.no_grad()
def _begun(sam: Sam, images: Iterable[Tensor], precision: str) -> list[LayerInputs]:
    """Compute the inputs of the first routed layer, grouped by padded size."""
    by_grid: dict[tuple[int, int], tuple[WindowLayout, list[Tensor]]] = {}
    for image in images:
        with torch.autocast(sam.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            tokens = sam.image_encoder.begin(sam.preprocess(image.to(sam.device).float())[None])
        by_grid.setdefault(tokens.layout.grid, (tokens.layout, []))[1].append(tokens.x)
    if not by_grid:
        raise ValueError("warm_start: no photograph can be used; check the data")
    return [LayerInputs(torch.cat(parts), layout, precision) for layout, parts in by_grid.values()]


def _regress(
    little: EfficiencyBlock, groups: list[LayerInputs], *, steps: int, batch_size: int, lr: float, entropy: list[int]
) -> None:
    """Train only `little`. The learning rate decays to zero along a cosine."""
    optimizer = torch.optim.AdamW(little.parameters(), lr=lr, weight_decay=0.0)
    shares = np.array([len(group.x) for group in groups]) / sum(len(group.x) for group in groups)
    for step in range(steps):
        rng = np.random.default_rng([*entropy, step])
        group = groups[rng.choice(len(groups), p=shares)]  # all images of a batch have the same layout
        chosen = torch.from_numpy(rng.permutation(len(group.x))[:batch_size]).to(group.x.device)
        squares = group.squares(little, chosen)
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad(set_to_none=True)
        (squares[:, 0] / squares[:, 1]).mean().backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _error(little: EfficiencyBlock, groups: list[LayerInputs]) -> float:
    """Return the relative squared error over all images, averaged over attention and MLP."""
    places = [(group, torch.tensor([i], device=group.x.device)) for group in groups for i in range(len(group.x))]
    total = torch.stack([group.squares(little, chosen) for group, chosen in places]).sum(0)
    return (total[:, 0] / total[:, 1]).mean().item()
