"""Loads and saves weights, SAM's files and this package's, strictly: nothing is loaded or skipped silently.

The parameter names are the contract between versions: without the big.LITTLE ones a state dict is a valid SAM state
dict. `sam_blvit.checkpoint.format` reads and writes files, `sam_blvit.checkpoint.adapter` handles adapters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam as OriginalSam
from torch import Tensor

from sam_blvit.checkpoint.adapter import base_sha256, over_base, save_adapter
from sam_blvit.checkpoint.custom import build_from_function
from sam_blvit.checkpoint.format import (
    CheckpointError,
    check_fit,
    is_big_little,
    read_checkpoint,
    read_metadata,
    write_checkpoint,
)
from sam_blvit.config import MODELS, PATCH_SIZE, ModelConfig, WeightsConfig, model_config, override
from sam_blvit.exported.sam import exported_pair, load_exported
from sam_blvit.model.build import build_sam as build_fresh
from sam_blvit.model.compiled import compile_encoder
from sam_blvit.model.sam import Sam
from sam_blvit.system.distributed import pick_device
from sam_blvit.system.files import write_atomically
from sam_blvit.system.progress import announce

__all__ = [
    "SHIPPED",
    "SHIPPED_WEIGHTS",
    "CheckpointError",
    "base_sha256",
    "build_from_registry",
    "build_sam",
    "is_big_little",
    "load_any",
    "load_model",
    "load_sam",
    "read_checkpoint",
    "read_metadata",
    "sam_model_registry",
    "save_adapter",
    "save_plain_sam",
    "save_sam",
    "weight_files",
]

SHIPPED = "blvit_s_t"
"""The model whose weights ship with the package."""
SHIPPED_WEIGHTS = Path(__file__).parents[1] / "weights" / f"{SHIPPED}.safetensors"
POSITIONS = "pos_embed"
AnySam = TypeVar("AnySam", bound=OriginalSam)


def save_sam(
    sam: Sam, path: str | Path, *, dtype: torch.dtype = torch.float32, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `sam` as safetensors with its config inside, atomically: `path` is the old file or the whole new one.

    Matrices are stored in `dtype`; vectors and buffers stay float32. `metadata` adds further text to the file.
    """
    write_checkpoint(sam, path, dtype=dtype, metadata=metadata or {})


def save_plain_sam(sam: Sam, path: str | Path) -> list[str]:
    """Write the SAM inside `sam` (performance blocks, neck, prompt encoder, decoder) as a plain SAM `.pth`, atomically.

    segment-anything loads the file strictly if the model has one of SAM's sizes.

    Returns:
        Names of the tensors that were left out.

    Raises:
        ValueError: if the neck has parts that SAM's lacks.
    """
    if sam.config.enlarge > 1 or sam.config.neck_layers:
        raise ValueError(
            f"{sam.config.name} has enlarge={sam.config.enlarge}, neck_layers={sam.config.neck_layers}, for which a "
            "plain SAM has no part; keep its own checkpoint"
        )
    state = sam.state_dict()
    plain = {name: value for name, value in state.items() if not is_big_little(name)}
    write_atomically(path, lambda to: torch.save(plain, to))
    return sorted(set(state) - set(plain))


def load_sam(path: str | Path, base: str | Path | None = None, **overrides: Any) -> Sam:
    """Load the model in a sam_blvit checkpoint, built from the config inside it.

    Args:
        path: the checkpoint.
        base: the SAM that an adapter was trained for.
        **overrides: replace fields of the config.

    Raises:
        CheckpointError: if a file cannot be used.
    """
    state, config = read_checkpoint(path)
    if config is None:
        raise CheckpointError(
            f"{path} is a plain SAM checkpoint, without a config; load it as sam_model_registry[NAME](checkpoint=...), "
            "on a command line as --model NAME --checkpoint FILE"
        )
    return _filled(override(config, **overrides), over_base(state, path, base), path)


def build_from_registry(
    name: str, checkpoint: str | Path | None = None, *, base: str | Path | None = None, **overrides: Any
) -> Sam:
    """Build registry model `name`, in eval mode, with the weights in `checkpoint`.

    Args:
        name: a model of the registry.
        checkpoint: a sam_blvit checkpoint, whose config is used, or a plain SAM file of the same size, which fills
            everything except routers and efficiency blocks. None: random weights, with a warning, except for
            blvit_s_t, whose weights ship with the package.
        base: the SAM that `checkpoint` was trained for, if that is an adapter.
        **overrides: replace config fields: `window`, `image_size`, `keep_ratio`, `compute_dtype`.

    Raises:
        CheckpointError: (a ValueError) if tensors are missing, unexpected or of the wrong shape.
    """
    config = model_config(name, **overrides)
    if checkpoint is None:
        if base is not None:
            raise CheckpointError(f"base={base} needs an adapter; name that as checkpoint")
        if name == SHIPPED:
            return build_from_registry(name, SHIPPED_WEIGHTS, **overrides)
        warnings.warn(f"{name}: no checkpoint given, every weight is random", stacklevel=2)
        return build_fresh(config)
    state, stored = read_checkpoint(checkpoint)
    state = over_base(state, checkpoint, base)
    if stored is None or (config.routed and not stored.routed):
        return _filled(config, state, checkpoint)
    if stored.name != name:
        raise CheckpointError(f"{checkpoint} holds a {stored.name}, not a {name}; name {stored.name} as the model")
    return _filled(override(stored, **overrides), state, checkpoint)


def build_sam(
    checkpoint: str | Path | ModelConfig | None = None, *, base: str | Path | None = None, **overrides: Any
) -> Sam:
    """Build the model in `checkpoint`, in eval mode; by default blvit_s_t with its shipped weights.

    It replaces segment_anything's `build_sam`, which builds ViT-H. A plain SAM file needs the name of its model:
    `sam_model_registry["vit_h"](checkpoint=...)`.

    Args:
        checkpoint: a sam_blvit checkpoint, or a `ModelConfig` for that model with random weights.
        base: see `build_from_registry`.
        **overrides: see `build_from_registry`.

    Raises:
        CheckpointError: if a file cannot be used.
    """
    if isinstance(checkpoint, ModelConfig):
        return build_fresh(override(checkpoint, **overrides))
    if checkpoint is None:
        return build_from_registry(SHIPPED, base=base, **overrides)
    return load_sam(checkpoint, base, **overrides)


class UnknownModelError(KeyError, ValueError):
    """A name that is not in the registry."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would put the message in quotes


class Registry(dict[str, Callable[..., Sam]]):
    """Model builders by name."""

    def __missing__(self, name: str) -> Callable[..., Sam]:
        raise UnknownModelError(f"no model named {name!r}; there are {', '.join(self)}")


sam_model_registry = Registry({"default": build_sam, **{name: partial(build_from_registry, name) for name in MODELS}})
"""Model builders by name, as in segment_anything: `sam_model_registry["blvit_b_t"](checkpoint="sam_vit_b.pth")`.
"default" is `build_sam`."""


def load_model(weights: WeightsConfig) -> Sam:
    """Load the model that a command's flags name, with their keep ratio and device, compiled if requested."""
    chosen = {"keep_ratio": weights.keep_ratio, "image_size": weights.image_size}
    overrides = {name: value for name, value in chosen.items() if value is not None}
    if weights.model is None:
        sam = build_sam(weights.checkpoint, base=weights.base, **overrides)
    elif weights.model not in MODELS and Path(weights.model).suffix:
        if weights.checkpoint is not None:
            raise ValueError(
                f"model={weights.model} is a checkpoint already; leave out checkpoint={weights.checkpoint}"
            )
        sam = load_sam(weights.model, weights.base, **overrides)
    else:
        sam = build_from_registry(weights.model, weights.checkpoint, base=weights.base, **overrides)
    return _placed(sam, weights)


def load_any(weights: WeightsConfig) -> OriginalSam:
    """Like `load_model`, but also accepts functions and ONNX files.

    The model may also be `module:function`, which returns a segment_anything Sam, or a pair of exported files,
    `onnx:ENCODER,DECODER`. Modules in the working directory are found too.

    Raises:
        ValueError: if the function cannot be imported or called, or does not return a Sam.
    """
    if weights.model is None:
        return load_model(weights)
    if (files := exported_pair(weights.model)) is not None:
        _check_no_settings(weights, "checkpoint", "keep_ratio", "image_size", "base", "compile")
        return load_exported(*files).to(pick_device(weights.device))
    if not weights.model.partition(":")[2] or Path(weights.model).is_file():
        return load_model(weights)
    _check_no_settings(weights, "keep_ratio", "image_size", "base")
    sam = build_from_function(weights.model, weights.checkpoint)
    return _placed(sam.eval(), weights)


def weight_files(weights: WeightsConfig) -> list[str | Path | None]:
    """The files that `weights` may name, for `check_inputs_stay`."""
    pair = None if weights.model is None else exported_pair(weights.model)
    return [weights.model, weights.checkpoint, weights.base, *(pair or ())]


def _check_no_settings(weights: WeightsConfig, *names: str) -> None:
    """Raise ValueError if a setting is given that only models of this package have."""
    if given := [f"{name}={getattr(weights, name)}" for name in names if getattr(weights, name) not in (None, False)]:
        raise ValueError(f"model={weights.model} has no such setting ({', '.join(given)}); leave it out")


def _placed(sam: AnySam, weights: WeightsConfig) -> AnySam:
    """Move `sam` to the device that `weights` names, and compile it if requested."""
    sam.to(pick_device(weights.device))
    if weights.compile:
        announce("compiling the encoder for each new image size, a minute or more each ...")
        compile_encoder(sam.image_encoder)
    return sam


def _filled(config: ModelConfig, state: dict[str, Tensor], path: str | Path) -> Sam:
    """Build `config`'s model and load `state`; routers and efficiency blocks may be missing, but only all of them."""
    sam = build_fresh(config)
    expected = sam.state_dict()
    state = _with_positions_for(config, state, expected, path)
    fresh = [name for name in expected if is_big_little(name)]
    if any(name in state for name in fresh):
        fresh = []
    check_fit(state, expected, what=f"checkpoint {path} does not fit {config.name}", may_lack=set(fresh).__contains__)
    if fresh:
        warnings.warn(
            f"{config.name}: {path} is a plain SAM; its weights fill the performance blocks, neck, prompt encoder and "
            f"decoder, while {len(fresh)} tensors of routers and efficiency blocks are untrained and must be distilled",
            stacklevel=3,
        )
    sam.load_state_dict(state, strict=not fresh)
    return sam


def _with_positions_for(
    config: ModelConfig, state: dict[str, Tensor], expected: dict[str, Tensor], path: str | Path
) -> dict[str, Tensor]:
    """`state` with positions of another image side interpolated, with a warning, as in ViTDet and SAM."""
    position = state.get(f"image_encoder.{POSITIONS}")
    wanted = expected[f"image_encoder.{POSITIONS}"]
    if position is None or position.dim() != 4 or position.shape[1:3] == wanted.shape[1:3]:
        return state
    warnings.warn(
        f"{path}: positions interpolated from a side of {position.shape[1] * PATCH_SIZE} to {config.image_size} pixels",
        stacklevel=4,
    )
    grid = F.interpolate(position.float().permute(0, 3, 1, 2), wanted.shape[1:3], mode="bicubic")
    resized = {f"image_encoder.{POSITIONS}": grid.permute(0, 2, 3, 1)}
    tables = tuple(f"image_encoder.blocks.{layer - 1}." for layer in config.global_layers)
    for name, value in state.items():  # an efficiency block may keep a window's table there
        if name.startswith(tables) and ".rel_pos_" in name and name in expected and len(value) != len(expected[name]):
            resized[name] = F.interpolate(value.float().T[None], len(expected[name]), mode="linear")[0].T
    return {**state, **resized}
