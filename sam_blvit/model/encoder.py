"""The image encoder: SAM's (dense), or big.LITTLE with a keep ratio that can be changed at any time.

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
from segment_anything.modeling.image_encoder import PatchEmbed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sam_blvit.config import EMBEDDING_CHANNELS, PATCH_SIZE, ModelConfig, check_keep_ratio
from sam_blvit.model.benefit import benefits_in
from sam_blvit.model.big_little import BigLittleLayer
from sam_blvit.model.blocks import PerformanceBlock
from sam_blvit.model.layers import build_layer, init_layer
from sam_blvit.model.neck import Enlargement, Lateral, build_neck, pad_embedding
from sam_blvit.model.plain import check_float32
from sam_blvit.model.router import Routing
from sam_blvit.model.variants import ROUTERS, route
from sam_blvit.model.windows import Scope, WindowLayout, both_scopes


@dataclass(frozen=True)
class Tokens:
    """Tokens between two layers, and how they lie."""

    x: Tensor
    """(B, N, C) window-major."""
    layout: WindowLayout
    logits: dict[int, Tensor]
    """Router logits (B, N) by the layer that the router follows, of layers already run."""
    features: dict[int, Tensor]
    """Requested outputs (B, Gh, Gw, C) by layer, of layers already run."""


@dataclass(frozen=True)
class Encoding:
    """An image embedding and how it was made."""

    embedding: Tensor
    """(B, 256, E, E) float32, what SAM's mask decoder reads."""
    routings: dict[int, Routing]
    """The choice of each router that ran, by the layer that it follows (from 1)."""
    logits: dict[int, Tensor]
    """(B, N) window-major logits of these routers."""
    features: dict[int, Tensor]
    """(B, Gh, Gw, C) tokens after each requested layer."""
    benefits: dict[int, Tensor]
    """(B, N) window-major benefit of each token, by router, if requested; see `ImageEncoder.benefits`."""
    layout: WindowLayout
    """How the tokens of a routing lie in windows."""


class ImageEncoder(nn.Module):
    """SAM's image encoder with routed layers (section 3). Takes and returns float32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.img_size = config.image_size  # SAM's name; its predictor and post-processing read it
        patch = (PATCH_SIZE, PATCH_SIZE)
        self.patch_embed = PatchEmbed(kernel_size=patch, stride=patch, embed_dim=config.dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid, config.grid, config.dim))
        self.blocks = nn.ModuleList(build_layer(config, layer) for layer in range(1, config.layers + 1))
        self.routers = nn.ModuleDict(
            {str(layer - 1): ROUTERS[config.router](config.dim) for layer in config.routers_after}
        )
        self.neck = build_neck(config.dim)
        self.laterals = nn.ModuleDict({str(layer - 1): Lateral(config.dim) for layer in config.neck_layers})
        self.enlarge = Enlargement(config.enlarge) if config.enlarge > 1 else None
        if config.routed:
            self.outside = nn.Parameter(torch.zeros(EMBEDDING_CHANNELS))
        self.checkpoint_layers = False
        """Whether training stores only the inputs of layers and recomputes the rest for the gradient."""
        self._keep_ratio = check_keep_ratio(config.keep_ratio) if config.routed else 1.0
        for block in self.blocks:
            init_layer(cast(PerformanceBlock, block))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ImageEncoder:
        """As `Sam._apply`: parameters stay in float32, or ValueError."""
        check_float32(fn(torch.zeros(1)).dtype, f"the image encoder of {self.config.name}")
        return super()._apply(fn, recurse)

    @property
    def keep_ratio(self) -> float:
        """Share of the tokens that performance blocks update, 0 to 1; at 1 every layer is dense."""
        return self._keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, value: float) -> None:
        value = check_keep_ratio(value)
        if not self.config.routed and value != 1:
            raise ValueError(f"keep_ratio={value}: {self.config.name} is dense, its keep_ratio is always 1")
        self._keep_ratio = value

    @property
    def size_step(self) -> int:
        """Input height and width are multiples of this, pixels: a token, or a window if windows are not padded."""
        return PATCH_SIZE if self.config.padded else PATCH_SIZE * self.config.window

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which an image of `height` x `width` is zero-padded before encoding."""
        if self.config.square_input:
            return self.img_size, self.img_size
        step = self.size_step
        return -(-height // step) * step, -(-width // step) * step

    def forward(self, images: Tensor) -> Tensor:
        """Embed normalised images.

        Args:
            images: (B, 3, H, W); H and W are multiples of `size_step`, at most `img_size`.

        Returns:
            (B, 256, E, E)

        Raises:
            ValueError: if the images have another size.
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
        """As `forward`, with the choices of the routers.

        Args:
            images: (B, 3, H, W)
            branch_scale: (B, layers, 2) factors on each image's attention and FFN update in each layer: 0 or
                1 / (1 - p) for drop path.
            features_of: layers, from 1, whose output tokens are returned.
            with_benefits: whether `benefits` are returned for each router.

        Raises:
            ValueError: if `branch_scale` has another shape, or there is no such layer or image size.
        """
        tokens = self.begin(images, branch_scale=branch_scale, features_of=features_of)
        return self.finish(tokens, branch_scale=branch_scale, features_of=features_of, with_benefits=with_benefits)

    def begin(self, images: Tensor, *, branch_scale: Tensor | None = None, features_of: Collection[int] = ()) -> Tokens:
        """The part that does not depend on the keep ratio: patches, positions and the layers before `routed_from`."""
        self._check(images, branch_scale, features_of)
        logits: dict[int, Tensor] = {}
        features: dict[int, Tensor] = {}
        with self._precision(images.device):
            x = self.patch_embed(images).float()  # (B, Gh, Gw, C)
            layout = WindowLayout((x.shape[1], x.shape[2]), self.config.window, x.device)
            x = layout.by_window(x + self.pos_embed[:, : x.shape[1], : x.shape[2]])
            scopes = both_scopes(layout, x.device)
            for layer in range(1, self._first_routed):
                x = self._run(layer, x, scopes, branch_scale=branch_scale)
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
        scopes = both_scopes(layout, x.device)
        with self._precision(x.device):
            for layer in range(self._first_routed, self.config.layers + 1):
                scored = max(after for after in self.config.routers_after if after < layer)
                if num_primary and scored not in routings:
                    logits[scored] = tokens.logits[scored] if scored in tokens.logits else self._router(scored)(x)
                    routings[scored] = route(logits[scored], config=self.config, layout=layout, num_primary=num_primary)
                    if with_benefits:
                        benefits[scored] = self.benefits(layer - 1, x, layout)
                routing = routings.get(scored)
                x = self._run(layer, x, scopes, branch_scale=branch_scale, dense=dense, routing=routing)
                if layer in features_of or layer in self.config.neck_layers:
                    features[layer] = layout.by_raster(x)
            embedding = self._to_embedding(layout.by_raster(x), features)
        return Encoding(
            embedding=embedding,
            routings=routings,
            logits=logits,
            features={layer: feature for layer, feature in features.items() if layer in features_of},
            benefits=benefits,
            layout=layout,
        )

    def benefits(self, after: int, x: Tensor, layout: WindowLayout) -> Tensor:
        """What an ideal router after layer `after` would know: how much the two blocks differ in their updates.

        Args:
            after: the layer, from 1.
            x: (B, N, C) tokens after it. Each further layer gets the tokens that performance blocks make of them.
            layout: how the tokens lie.

        Returns:
            (B, N) float32, summed over the routed layers up to the next router.
        """
        next_routers = [router for router in self.config.routers_after if router > after]
        last = min(next_routers, default=self.config.layers)
        scopes = both_scopes(layout, x.device)
        layers = ((self._layer(layer), *self._scopes_of(layer, scopes)) for layer in range(after + 1, last + 1))
        with self._precision(x.device):
            benefits = benefits_in(layers, x)
            torch.clear_autocast_cache()  # weights cast here have no gradient; later layers must not reuse them
        return benefits

    def _to_embedding(self, x: Tensor, features: dict[int, Tensor]) -> Tensor:
        """The neck: tokens `x` (B, Gh, Gw, C) and those of `neck_layers` to the embedding (B, 256, E, E), float32."""
        laterals = (
            self.laterals[str(layer - 1)](features[layer]).permute(0, 3, 1, 2) for layer in self.config.neck_layers
        )
        embedding = self.neck(x.permute(0, 3, 1, 2), *laterals)
        if self.enlarge is not None:
            embedding = self.enlarge(embedding)
        outside = self.outside if self.config.routed else embedding.new_zeros(EMBEDDING_CHANNELS)
        return pad_embedding(embedding.float(), self.config.embedding_grid, outside)

    def num_primary(self, layout: WindowLayout) -> int:
        """K, primary tokens of each window, at the current keep ratio."""
        return round(self.keep_ratio * layout.num_tokens / layout.num_windows)

    def _run(
        self,
        layer: int,
        x: Tensor,
        scopes: dict[bool, Scope],
        *,
        branch_scale: Tensor | None = None,
        dense: bool = False,
        routing: Routing | None = None,
    ) -> Tensor:
        """Tokens after `layer`, of `x` (B, N, C) before it."""
        block = self._layer(layer)
        scope, efficiency_scope = self._scopes_of(layer, scopes)
        scale = None if branch_scale is None else branch_scale[:, layer - 1]
        call: Callable[..., Tensor] = block
        if self.checkpoint_layers and self.training and torch.is_grad_enabled():  # no layer draws random numbers
            call = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
        if not isinstance(block, BigLittleLayer):
            return call(x, scope, scale=scale)
        return call(x, scope, scale=scale, dense=dense, routing=routing, efficiency_scope=efficiency_scope)

    def _scopes_of(self, layer: int, scopes: dict[bool, Scope]) -> tuple[Scope, Scope]:
        """What attention of the performance block and of the efficiency block of `layer` sees."""
        config = self.config
        return scopes[config.attends_globally(layer)], scopes[config.attends_globally(layer, little=True)]

    @property
    def _first_routed(self) -> int:
        return self.config.routed_from or self.config.layers + 1

    def _layer(self, layer: int) -> PerformanceBlock:
        return cast(PerformanceBlock, self.blocks[layer - 1])

    def _router(self, layer: int) -> nn.Module:
        return cast(nn.Module, self.routers[str(layer - 1)])  # named as SAM counts its blocks, from 0

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Matrix products in `compute_dtype`; parameters, residual stream, norms and gates stay in float32.

        With float32 the caller's autocast applies.
        """
        if self.config.compute_dtype == "float32":
            return nullcontext()
        return torch.autocast(device.type, dtype=getattr(torch, self.config.compute_dtype))

    def _check(self, images: Tensor, branch_scale: Tensor | None, features_of: Collection[int]) -> None:
        (height, width), step, layers = images.shape[-2:], self.size_step, self.config.layers
        if height % step or width % step or not 0 < max(height, width) <= self.img_size or min(height, width) == 0:
            raise ValueError(
                f"input of {height} x {width} pixels: {self.config.name} takes multiples of {step} up to "
                f"{self.img_size}; Sam.preprocess pads to that"
            )
        if branch_scale is not None and branch_scale.shape != (len(images), layers, 2):
            shape = tuple(branch_scale.shape)
            raise ValueError(f"branch_scale of shape {shape} is not one of ({len(images)}, {layers}, 2)")
        if beyond := [layer for layer in features_of if not 1 <= layer <= layers]:
            raise ValueError(f"features_of names layer {beyond[0]}; {self.config.name} has layers 1 to {layers}")
