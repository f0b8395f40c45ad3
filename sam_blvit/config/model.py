"""The config of a model: one frozen dataclass describes any encoder that this package builds.

Needs only the standard library, so that the config of a checkpoint can be read anywhere. Layers are counted from 1
here, as in the paper; parameter names count blocks from 0, as in SAM.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from numbers import Real
from typing import Any

COMPUTE_DTYPES = ("float32", "bfloat16")
ROUTER_LEARNS = {"learned": True, "random": False}
"""Routers by name, and whether each has parameters to learn. `sam_blvit.model.variants.ROUTERS` builds them."""
ROUTER_SCORES = ("window", "two_class")
PRIMARY_KEYS = ("all", "primary", "pooled")
THRESHOLDS = ("pred_iou_thresh", "stability_score_thresh")
"""Thresholds on masks in everything mode, by SAM's names."""
PATCH_SIZE = 16
SAM_WINDOW = 14
EMBEDDING_CHANNELS = 256
"""Channels of the image embedding that SAM's mask decoder reads."""


def check_keep_ratio(keep_ratio: float) -> float:
    """Return `keep_ratio` as a float. Raises ValueError if it is not a number in [0, 1]."""
    if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, Real) or not 0 <= keep_ratio <= 1:
        raise ValueError(f"keep_ratio={keep_ratio!r} is not a number in [0, 1]; the paper's is 0.25")
    return float(keep_ratio)


def check_threshold(name: str, value: float) -> None:
    """Raise ValueError if a threshold of everything mode is not a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r} is outside [0, 1]")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A SAM whose image encoder is dense (`routed_from` is None) or big.LITTLE."""

    name: str
    """Registry name."""
    dim: int
    """Channels of a token (C)."""
    heads: int
    """Attention heads of a performance block."""
    layers: int
    """Number of layers."""
    global_layers: tuple[int, ...]
    """Layers that attend over all tokens. All other layers attend within windows."""
    image_size: int = 1024
    """Longest side of the encoder's input, pixels."""
    enlarge: int = 1
    """Factor by which a learned upsampling after SAM's neck enlarges each side of the embedding. 1: no upsampling.
    2 gives 512-pixel input the 64 x 64 embedding that SAM's decoder was trained on."""
    window: int = SAM_WINDOW
    """Side of a window, tokens. If it does not divide the grid, windowed attention pads as in SAM."""
    neck_layers: tuple[int, ...] = ()
    """Earlier layers whose tokens the neck reads, along with the last layer's. They keep detail that is lost later."""
    rel_pos_window: int = SAM_WINDOW
    """Window size of the relative-position tables, which have 2 * rel_pos_window - 1 rows."""
    routed_from: int | None = None
    """First routed layer. All layers before it are dense. None: every layer is dense."""
    routers_after: tuple[int, ...] = ()
    """Layers followed by a router. Its primary tokens are used until the next router."""
    little_layers: tuple[int, ...] = ()
    """Routed layers with an efficiency block."""
    little_dim: int = 0
    """Channels of an efficiency block (Ce)."""
    little_heads: int = 0
    """Attention heads of an efficiency block."""
    keep_ratio: float = 0.25
    """Share of the tokens that performance blocks update. Can be changed at run time."""
    compute_dtype: str = "float32"
    """dtype of matrix products inside the encoder: float32 or bfloat16."""
    pred_iou_thresh: float = 0.88
    """Default of everything mode: masks need at least this predicted IoU. The value is SAM's. Trained models differ in
    how reliable their predicted IoU is, so a checkpoint may store another value."""
    stability_score_thresh: float = 0.95
    """Default of everything mode: masks need at least this stability score. The value is SAM's."""
    router: str = "learned"
    """How primary tokens are chosen: learned, or random (by a hash of the token, as a baseline)."""
    router_scores: str = "window"
    """Softmax of the router: window (over the tokens of a window) or two_class (primary or not, for each token)."""
    score_scaling: bool = True
    """Whether scores scale the performance block's updates. The router learns through this product."""
    primary_keys: str = "all"
    """What primary tokens attend to: all (all tokens; semi-cross attention), primary (only each other), or pooled (each
    other and means of the other tokens)."""
    pool: int = 4
    """With pooled keys: side of the squares over which tokens that are not primary are averaged. If it is a whole
    window, the mean is EViT's fused token."""
    broadcast: bool = False
    """With pooled keys and no efficiency blocks: performance blocks also update the means, and every other token gets
    the update of its mean, as in Evo-ViT."""
    little_windowed: bool = False
    """Whether efficiency blocks attend within windows in every layer."""

    def __post_init__(self) -> None:
        words = {
            "compute_dtype": COMPUTE_DTYPES,
            "router": tuple(ROUTER_LEARNS),
            "router_scores": ROUTER_SCORES,
            "primary_keys": PRIMARY_KEYS,
        }
        for name, choices in words.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(choices)}")
        if self.image_size < PATCH_SIZE or self.image_size % PATCH_SIZE:
            raise ValueError(f"image_size={self.image_size} is not a positive multiple of {PATCH_SIZE}")
        if not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"window={self.window!r} is not a positive whole number of tokens")
        for name in ("dim", "heads", "layers", "rel_pos_window", "enlarge"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is not a positive number")
        for name in ("global_layers", "routers_after", "little_layers", "neck_layers"):
            if beyond := [layer for layer in getattr(self, name) if not 1 <= layer <= self.layers]:
                raise ValueError(f"{name} names layer {beyond[0]}; {self.name} has layers 1 to {self.layers}")
        if PATCH_SIZE % self.enlarge:
            raise ValueError(f"enlarge={self.enlarge} does not divide the {PATCH_SIZE} pixels of a token's side")
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} does not divide into heads={self.heads}")
        check_keep_ratio(self.keep_ratio)
        for name in THRESHOLDS:
            check_threshold(name, getattr(self, name))
        if self.routed_from is None:
            self._check_dense()
            return
        if self.little_layers and (not self.little_heads or self.little_dim % self.little_heads):
            raise ValueError(f"little_dim={self.little_dim} does not divide into little_heads={self.little_heads}")
        if not self.routers_after or min(self.routers_after) >= self.routed_from:
            raise ValueError(
                f"routed_from={self.routed_from} needs a router after an earlier layer; "
                f"routers_after={self.routers_after}"
            )
        if self.little_layers and min(self.little_layers) < self.routed_from:
            raise ValueError(f"little_layers={self.little_layers} start before routed_from={self.routed_from}")
        self._check_routing()

    def _check_dense(self) -> None:
        of_routing = ("routers_after", "little_layers", "router", "router_scores", "score_scaling", "primary_keys")
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        for name in (*of_routing, "pool", "broadcast", "little_windowed"):
            if getattr(self, name) != fields[name]:
                raise ValueError(f"{name}={getattr(self, name)!r}: no effect, {self.name} is dense; leave it out")

    def _check_routing(self) -> None:
        if self.score_scaling and not self.router_learns:
            raise ValueError(f"router={self.router} has no scores to scale by; add score_scaling=false")
        if self.primary_keys != "all" and self.padded:
            raise ValueError(
                f"primary_keys={self.primary_keys} needs windows that divide the grid of {self.grid}; "
                f"window={self.window} does not"
            )
        if self.primary_keys == "pooled" and (self.pool < 1 or self.window % self.pool):
            raise ValueError(f"pool={self.pool} does not divide window={self.window}; choose a side that does")
        if self.primary_keys != "pooled" and self.pool != ModelConfig.pool:
            raise ValueError(f"pool={self.pool}: no effect without primary_keys=pooled")
        if self.broadcast and (self.primary_keys != "pooled" or self.little_layers):
            raise ValueError("broadcast needs primary_keys=pooled and little_layers empty: one update per token")
        if self.little_windowed and not self.little_layers:
            raise ValueError("little_windowed: no effect without little_layers")

    @property
    def grid(self) -> int:
        """Tokens along each side of the square input (G)."""
        return self.image_size // PATCH_SIZE

    @property
    def embedding_grid(self) -> int:
        """Cells along each side of the image embedding (E). One cell covers `cell` pixels of the input."""
        return self.grid * self.enlarge

    @property
    def cell(self) -> int:
        """Side of a cell of the image embedding, pixels of the input."""
        return PATCH_SIZE // self.enlarge

    @property
    def routed(self) -> bool:
        """Whether any layer is routed."""
        return self.routed_from is not None

    @property
    def router_learns(self) -> bool:
        """Whether routers have parameters and can be trained."""
        return ROUTER_LEARNS[self.router]

    def attends_globally(self, layer: int, *, little: bool = False) -> bool:
        """Whether `layer` (with `little`: its efficiency block) attends over all tokens instead of within windows."""
        return layer in self.global_layers and not (little and self.little_windowed)

    @property
    def padded(self) -> bool:
        """Whether windowed attention pads the grid (SAM's windows of 14 in a grid of 64)."""
        return self.grid % self.window != 0

    @property
    def square_input(self) -> bool:
        """Whether photographs are padded to a square, as in SAM.

        True for dense models and for big.LITTLE models with SAM's windows, which are SAM at keep ratio 1. Other
        big.LITTLE models pad to whole windows only.
        """
        return self.padded or not self.routed or self.window == SAM_WINDOW

    def to_json(self) -> str:
        """Return the config as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read a config written by `to_json`. Raises ValueError if it has fields that this version does not know."""
        try:
            fields: dict[str, Any] = json.loads(text)
        except RecursionError as error:
            raise ValueError("JSON is nested too deeply") from error
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown model config fields {unknown}: written by a newer sam_blvit; update to read it")
        lists_to_tuples: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return cls(**lists_to_tuples)
