"""The layerwise warm start: each efficiency block learns its performance block's update before anything else trains.

No decoder and no gradient through more than one block: minutes, where the whole model takes days to get as far. The
inputs of a layer are what the dense encoder puts there, so that each block learns its task from right examples.

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
"""Learning rate of a block with a single inner channel: AdamW's steps add up over the width."""
SMALLEST = 1e-12
"""Keeps the error of a block that updates nothing a number."""


class LayerInputs:
    """What reaches a layer, of all images of one padded size, and what its performance block adds there."""

    def __init__(self, x: Tensor, layout: WindowLayout, precision: str) -> None:
        """`x` (n, N, C) before the first routed layer."""
        self.x = x
        self.layout = layout
        self.precision = precision
        self.attention = torch.empty_like(x)
        """(n, N, C) update of the attention half."""
        self.mlp = torch.empty_like(x)
        """(n, N, C) update of the feed-forward half, at x + attention."""
        self.little_scope: Scope

    @torch.no_grad()
    def enter(self, block: BigLittleLayer, *, is_global: bool, little_is_global: bool) -> None:
        """Look at `block`, image by image."""
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
        """To the next layer's input: every token updated by the performance block."""
        self.x += self.attention
        self.x += self.mlp

    def squares(self, little: EfficiencyBlock, chosen: Tensor) -> Tensor:
        """Sums over images `chosen`, float32 (2, 2): attention and feed-forward half, each the squared error of
        `little` and the square of what is to be met."""
        x, attention, mlp = self.x[chosen], self.attention[chosen], self.mlp[chosen]
        with self._autocast():
            updates = little.attention_update(x, self.little_scope), little.mlp_update(x + attention)
        sums = [
            torch.stack([(update.float() - wanted).square().sum(), wanted.square().sum().clamp_min(SMALLEST)])
            for update, wanted in zip(updates, (attention, mlp), strict=True)
        ]
        return torch.stack(sums)

    def _autocast(self) -> torch.autocast:
        """A context for one step: the next must not meet weights that this one has rounded and kept."""
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
    """Regress each efficiency block of `sam` onto its performance block's two updates, in place, layer by layer.

    `images`: (3, h, w) uint8, resized for `sam`, which is where it will run. Three times their tokens are held in
    float32: 38 MiB an image for blvit_b_t at 1024 px. `steps` for each layer, each on `batch_size` images drawn by
    (seed, layer, step). `lr`: peak learning rate; None: 0.2 / Ce, what suits the width of the efficiency blocks.
    Nothing changes but these.
    Returns, by layer, the mean of both halves' squared error over the square of what was to be met, over all images:
    0 is perfect, 1 as good as no update. ValueError if there are no images.
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
    """What reaches the first routed layer, grouped by padded size."""
    by_grid: dict[tuple[int, int], tuple[WindowLayout, list[Tensor]]] = {}
    for image in images:
        with torch.autocast(sam.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            tokens = sam.image_encoder.begin(sam.preprocess(image.to(sam.device).float())[None])
        by_grid.setdefault(tokens.layout.grid, (tokens.layout, []))[1].append(tokens.x)
    if not by_grid:
        raise ValueError("warm_start: there is no photograph to learn from; check the data")
    return [LayerInputs(torch.cat(parts), layout, precision) for layout, parts in by_grid.values()]


def _regress(
    little: EfficiencyBlock, groups: list[LayerInputs], *, steps: int, batch_size: int, lr: float, entropy: list[int]
) -> None:
    """Train `little` alone; the rate falls to zero along a cosine."""
    optimizer = torch.optim.AdamW(little.parameters(), lr=lr, weight_decay=0.0)
    shares = np.array([len(group.x) for group in groups]) / sum(len(group.x) for group in groups)
    for step in range(steps):
        rng = np.random.default_rng([*entropy, step])
        group = groups[rng.choice(len(groups), p=shares)]  # a batch has one layout
        chosen = torch.from_numpy(rng.permutation(len(group.x))[:batch_size]).to(group.x.device)
        squares = group.squares(little, chosen)
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad(set_to_none=True)
        (squares[:, 0] / squares[:, 1]).mean().backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _error(little: EfficiencyBlock, groups: list[LayerInputs]) -> float:
    """Mean of both halves' relative squared error over all images."""
    places = [(group, torch.tensor([i], device=group.x.device)) for group in groups for i in range(len(group.x))]
    total = torch.stack([group.squares(little, chosen) for group, chosen in places]).sum(0)
    return (total[:, 0] / total[:, 1]).mean().item()
