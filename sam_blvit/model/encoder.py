"""The image encoder: SAM's, dense, or big.LITTLE with a dial for how many tokens it works on in full.

Shapes:
    B  images    Gh, Gw  token rows and columns    N  Gh * Gw    C  channels
    E  cells along a side of the embedding: those of the square input's token grid, times `enlarge`
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import PatchEmbed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sam_blvit.config import EMBEDDING_CHANNELS, PATCH_SIZE, ModelConfig, check_keep_ratio
from sam_blvit.model.blocks import Block, LittleBlock, layer_norm
from sam_blvit.model.plain import check_float32
from sam_blvit.model.router import ROUTERS, Routing, choose
from sam_blvit.model.windows import GlobalScope, Scope, WindowLayout, WindowScope

EMBEDDING_SCALE = 0.1
"""About the standard deviation of SAM's embeddings. AdamW would take hundreds of steps from 1 to there."""


@dataclass(frozen=True)
class Tokens:
    """Tokens on their way through the layers, and how they lie."""

    x: Tensor
    """(B, N, C) window-major."""
    layout: WindowLayout
    logits: dict[int, Tensor]
    """Router logits (B, N) by the layer they follow, of layers already run."""
    features: dict[int, Tensor]
    """Outputs (B, Gh, Gw, C) asked for, of layers already run."""


@dataclass(frozen=True)
class Encoding:
    """An image embedding and how it came about."""

    embedding: Tensor
    """(B, 256, E, E) float32, what SAM's mask decoder reads."""
    routings: dict[int, Routing]
    """The choice of each router that ran, by the layer it follows (from 1)."""
    logits: dict[int, Tensor]
    """(B, N) window-major, what each choice was made by."""
    features: dict[int, Tensor]
    """(B, Gh, Gw, C) tokens after each layer that was asked for."""
    benefits: dict[int, Tensor]
    """(B, N) window-major, what each router would best have known, if that was asked for."""
    layout: WindowLayout
    """How the tokens of a routing lie."""


class NeckNorm(LayerNorm2d):
    """SAM's LayerNorm over channels, its statistics in float32 where autocast makes the convolutions bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W) float32."""
        return super().forward(x.float())


class Neck(nn.Sequential):
    """SAM's neck under SAM's names, which may also read what its first step does not."""

    def forward(self, x: Tensor, *added: Tensor) -> Tensor:
        """(B, C, Gh, Gw) -> (B, 256, Gh, Gw); each of `added` (B, 256, Gh, Gw) joins after the first step."""
        enter, *rest = self
        x = enter(x)
        for each in added:
            x = x + each
        for step in rest:
            x = step(x)
        return x


class Enlargement(nn.Sequential):
    """The learned step that brings an embedding to a finer grid: each cell becomes `factor` x `factor` cells."""

    def __init__(self, factor: int) -> None:
        norm = NeckNorm(EMBEDDING_CHANNELS)
        nn.init.constant_(norm.weight, EMBEDDING_SCALE)
        super().__init__(
            nn.ConvTranspose2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, kernel_size=factor, stride=factor), norm
        )


class Lateral(nn.Sequential):
    """Brings tokens (B, Gh, Gw, C) of an earlier layer into the neck, (B, Gh, Gw, 256)."""

    def __init__(self, dim: int) -> None:
        super().__init__(layer_norm(dim), nn.Linear(dim, EMBEDDING_CHANNELS, bias=False))


class ImageEncoder(nn.Module):
    """SAM's image encoder with routed layers (paper, section 3). Takes and returns float32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.img_size = config.image_size  # SAM's name: its predictor and post-processing read it
        self.patch_embed = PatchEmbed(
            kernel_size=(PATCH_SIZE, PATCH_SIZE), stride=(PATCH_SIZE, PATCH_SIZE), embed_dim=config.dim
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid, config.grid, config.dim))
        self.blocks = nn.ModuleList(_block(config, layer) for layer in range(1, config.layers + 1))
        self.routers = nn.ModuleDict(
            {str(layer - 1): ROUTERS[config.router](config.dim) for layer in config.routers_after}
        )
        self.neck = Neck(
            nn.Conv2d(config.dim, EMBEDDING_CHANNELS, kernel_size=1, bias=False),
            NeckNorm(EMBEDDING_CHANNELS),
            nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, kernel_size=3, padding=1, bias=False),
            NeckNorm(EMBEDDING_CHANNELS),
        )
        self.laterals = nn.ModuleDict({str(layer - 1): Lateral(config.dim) for layer in config.neck_layers})
        self.enlarge = Enlargement(config.enlarge) if config.enlarge > 1 else None
        if config.routed:
            self.outside = nn.Parameter(torch.zeros(EMBEDDING_CHANNELS))
        self.checkpoint_layers = False
        """Whether training keeps only the layers' inputs and computes the rest of them again for the gradient."""
        self._keep_ratio = check_keep_ratio(config.keep_ratio) if config.routed else 1.0
        self._init_weights()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ImageEncoder:
        """As `Sam._apply`: parameters stay in float32, or ValueError."""
        check_float32(fn(torch.zeros(1)).dtype, f"the image encoder of {self.config.name}")
        return super()._apply(fn, recurse)

    @property
    def keep_ratio(self) -> float:
        """Share of the tokens that performance blocks update, 0 to 1; at 1 every layer runs dense."""
        return self._keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, value: float) -> None:
        value = check_keep_ratio(value)
        if not self.config.routed and value != 1:
            raise ValueError(f"keep_ratio={value}: {self.config.name} is dense, its keep_ratio is always 1")
        self._keep_ratio = value

    @property
    def size_step(self) -> int:
        """Input height and width are multiples of this many pixels: a token, or a window where none is padded."""
        return PATCH_SIZE if self.config.padded else PATCH_SIZE * self.config.window

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which an image of `height` x `width` is zero-padded before encoding."""
        if self.config.square_input:
            return self.img_size, self.img_size
        step = self.size_step
        return -(-height // step) * step, -(-width // step) * step

    def forward(self, images: Tensor) -> Tensor:
        """Embed normalised `images` (B, 3, H, W) as (B, 256, E, E), both float32.

        H and W are multiples of `size_step`, at most `img_size`; ValueError otherwise.
        """
        return self.encode(images).embedding

    def encode(
        self,
        images: Tensor,
        *,
        branch_scale: Tensor | None = None,
        features_of: Collection[int] = (),
        with_benefits: bool = False,
    ) -> Encoding:
        """As `forward`, with what the routers chose, the tokens after the layers `features_of` (from 1), and what the
        choices are worth, `with_benefits`.

        `branch_scale` (B, layers, 2): factors on each image's attention and feed-forward update in each layer, 0 or
        1 / (1 - p) for drop path. ValueError if it has another shape, or if there is no such layer.
        """
        tokens = self.begin(images, branch_scale=branch_scale, features_of=features_of)
        return self.finish(tokens, branch_scale=branch_scale, features_of=features_of, with_benefits=with_benefits)

    def begin(self, images: Tensor, *, branch_scale: Tensor | None = None, features_of: Collection[int] = ()) -> Tokens:
        """The part that no keep ratio changes: patches, positions and the layers before the first routed one."""
        self._check_size(images)
        self._check_asked(len(images), branch_scale, features_of)
        logits: dict[int, Tensor] = {}
        features: dict[int, Tensor] = {}
        with self._precision(images.device):
            x = self.patch_embed(images).float()  # (B, Gh, Gw, C)
            layout = WindowLayout((x.shape[1], x.shape[2]), self.config.window, x.device)
            x = layout.by_window(x + self.pos_embed[:, : x.shape[1], : x.shape[2]])
            scopes = _scopes(layout, x.device)
            for layer in range(1, self._first_routed):
                x = self._run(layer, x, scopes, dense=True, branch_scale=branch_scale)
                if layer in features_of or layer in self.config.neck_layers:
                    features[layer] = layout.by_raster(x)
                if layer in self.config.routers_after:
                    logits[layer] = self._router(layer)(x)
        return Tokens(x=x, layout=layout, logits=logits, features=features)

    def finish(
        self,
        tokens: Tokens,
        *,
        branch_scale: Tensor | None = None,
        features_of: Collection[int] = (),
        with_benefits: bool = False,
    ) -> Encoding:
        """The routed layers at the current keep ratio, and the neck."""
        x, layout = tokens.x, tokens.layout
        dense = self.keep_ratio >= 1
        num_primary = 0 if dense else self.num_primary(layout)
        routings: dict[int, Routing] = {}
        logits: dict[int, Tensor] = {}
        features = dict(tokens.features)
        benefits: dict[int, Tensor] = {}
        scopes = _scopes(layout, x.device)
        with self._precision(x.device):
            for layer in range(self._first_routed, self.config.layers + 1):
                scored = max(after for after in self.config.routers_after if after < layer)
                if num_primary and scored not in routings:
                    logits[scored] = tokens.logits[scored] if scored in tokens.logits else self._router(scored)(x)
                    routings[scored] = choose(
                        logits[scored],
                        layout=layout,
                        num_primary=num_primary,
                        kind=self.config.router_scores,
                        keys=self.config.primary_keys,
                        pool=self.config.pool,
                        broadcast=self.config.broadcast,
                    )
                    if with_benefits:
                        benefits[scored] = self.benefits(layer - 1, x, layout)
                x = self._run(layer, x, scopes, dense=dense, routing=routings.get(scored), branch_scale=branch_scale)
                if layer in features_of or layer in self.config.neck_layers:
                    features[layer] = layout.by_raster(x)
            embedding = self._to_embedding(layout.by_raster(x), features)
        return Encoding(
            embedding=self._on_canvas(embedding),
            routings=routings,
            logits=logits,
            features={layer: feature for layer, feature in features.items() if layer in features_of},
            benefits=benefits,
            layout=layout,
        )

    @torch.no_grad()
    def benefits(self, after: int, x: Tensor, layout: WindowLayout) -> Tensor:
        """What a router after layer `after` would best know: by how much performance and efficiency block differ in
        their updates of each token, (B, N) float32, summed over the routed layers up to the next router.

        `x` (B, N, C) leaves that layer, window-major; each further layer is given what performance blocks make of it.
        """
        next_routers = [router for router in self.config.routers_after if router > after]
        last = min(next_routers, default=self.config.layers)
        scopes = _scopes(layout, x.device)
        benefits = x.new_zeros(x.shape[:2])
        with self._precision(x.device):
            for layer in range(after + 1, last + 1):
                benefit, x = self._layer(layer).benefit(x, *self._seen(layer, scopes))
                benefits = benefits + benefit * (layer >= self._first_routed)
            torch.clear_autocast_cache()  # it may hold weights cast without a gradient, which later layers would take
        return benefits

    def _to_embedding(self, x: Tensor, features: dict[int, Tensor]) -> Tensor:
        """The neck, with what it reads of earlier layers, and the enlargement: `x` (B, Gh, Gw, C) to float32
        (B, 256, Gh, Gw) or finer."""
        laterals = (
            self.laterals[str(layer - 1)](features[layer]).permute(0, 3, 1, 2) for layer in self.config.neck_layers
        )
        embedding = self.neck(x.permute(0, 3, 1, 2), *laterals)
        if self.enlarge is not None:
            embedding = self.enlarge(embedding)
        return embedding.float()

    def num_primary(self, layout: WindowLayout) -> int:
        """K, primary tokens of each window, at the current keep ratio."""
        return round(self.keep_ratio * layout.num_tokens / layout.num_windows)

    def _run(
        self,
        layer: int,
        x: Tensor,
        scopes: dict[bool, Scope],
        *,
        dense: bool,
        routing: Routing | None = None,
        branch_scale: Tensor | None,
    ) -> Tensor:
        """Tokens after `layer`, of `x` (B, N, C) before it."""
        block = self.blocks[layer - 1]
        scope, little_scope = self._seen(layer, scopes)
        scale = None if branch_scale is None else branch_scale[:, layer - 1]
        call: Callable[..., Tensor] = block
        if self.checkpoint_layers and self.training and torch.is_grad_enabled():  # nothing in a layer is random
            call = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
        return call(x, scope, dense=dense, routing=routing, scale=scale, little_scope=little_scope)

    def _seen(self, layer: int, scopes: dict[bool, Scope]) -> tuple[Scope, Scope]:
        """What attention of the performance and of the efficiency block of `layer` sees."""
        config = self.config
        return scopes[config.attends_globally(layer)], scopes[config.attends_globally(layer, little=True)]

    @property
    def _first_routed(self) -> int:
        return self.config.routed_from or self.config.layers + 1

    def _layer(self, layer: int) -> Block:
        return cast(Block, self.blocks[layer - 1])

    def _router(self, layer: int) -> nn.Module:
        return cast(nn.Module, self.routers[str(layer - 1)])  # named as SAM counts its blocks, from 0

    def _on_canvas(self, embedding: Tensor) -> Tensor:
        """`embedding` (B, 256, h, w) as (B, 256, E, E): what no token covers is the learned vector `outside`."""
        grid = self.config.embedding_grid
        height, width = embedding.shape[-2:]
        if (height, width) == (grid, grid):
            return embedding
        outside = self.outside if self.config.routed else embedding.new_zeros(EMBEDDING_CHANNELS)
        outside = outside[:, None, None].expand(len(embedding), -1, -1, -1)
        right = outside.expand(-1, -1, height, grid - width)
        below = outside.expand(-1, -1, grid - height, grid)
        return torch.cat([torch.cat([embedding, right], dim=3), below], dim=2)

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Matrix products in `compute_dtype`; parameters, residual stream, norms and gates stay in float32.

        float32 leaves an autocast of the caller's in charge.
        """
        if self.config.compute_dtype == "float32":
            return nullcontext()
        return torch.autocast(device.type, dtype=getattr(torch, self.config.compute_dtype))

    def _check_asked(self, images: int, branch_scale: Tensor | None, features_of: Collection[int]) -> None:
        layers = self.config.layers
        if branch_scale is not None and branch_scale.shape != (images, layers, 2):
            raise ValueError(f"branch_scale of shape {tuple(branch_scale.shape)} is not one of ({images}, {layers}, 2)")
        if beyond := [layer for layer in features_of if not 1 <= layer <= layers]:
            raise ValueError(f"features_of names layer {beyond[0]}; {self.config.name} has layers 1 to {layers}")

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        step = self.size_step
        if height % step or width % step or not 0 < max(height, width) <= self.img_size or min(height, width) == 0:
            raise ValueError(
                f"input of {height} x {width} pixels: {self.config.name} takes multiples of {step} up to "
                f"{self.img_size}; Sam.preprocess pads to that"
            )

    def _init_weights(self) -> None:
        """ViT's usual start; the efficiency blocks' last projections are zero, so training starts from SAM's tokens
        with the others waiting."""
        for block in map(self._layer, range(1, self.config.layers + 1)):
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)
            if block.little is not None:
                nn.init.zeros_(block.little.attn.proj.weight)
                nn.init.zeros_(block.little.mlp.leave.weight)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)


def _block(config: ModelConfig, layer: int) -> Block:
    def table_size(*, little: bool = False) -> int:
        return config.grid if config.attends_globally(layer, little=little) else config.rel_pos_window

    little = None
    if layer in config.little_layers:
        little = LittleBlock(
            config.dim,
            inner_dim=config.little_dim,
            num_heads=config.little_heads,
            table_size=table_size(little=True),
        )
    routed = config.routed_from is not None and layer >= config.routed_from
    return Block(
        config.dim,
        num_heads=config.heads,
        table_size=table_size(),
        routed=routed,
        little=little,
        score_scaling=config.score_scaling,
    )


def _scopes(layout: WindowLayout, device: torch.device) -> dict[bool, Scope]:
    """What attention sees, by whether the layer is global."""
    return {False: WindowScope(layout, device), True: GlobalScope(layout, device)}
