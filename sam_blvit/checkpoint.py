"""Weights in and out: SAM's own files and ours, strictly, with nothing loaded or skipped in silence.

Ours are safetensors with the model's config in the metadata. The parameter names are the contract
between versions: without the big.LITTLE ones a state dict is a valid SAM state dict.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from segment_anything.modeling import Sam as OriginalSam
from torch import Tensor

from sam_blvit.config import MODELS, PATCH_SIZE, ModelConfig, WeightsConfig, model_config, override
from sam_blvit.distributed import pick_device
from sam_blvit.files import first_line, write_atomically
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam

SHIPPED = "blvit_tiny"
"""The model whose weights are inside the package."""
SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / f"{SHIPPED}.safetensors"
CONFIG_KEY = "sam_blvit.config"
WRAPPERS = ("model", "state_dict")
MOST_WRAPPINGS = 4
PREFIX = "module."
POSITIONS = "pos_embed"
SAM_PARTS = (
    "image_encoder",
    "prompt_encoder",
    "mask_decoder",
    "preprocess",
    "postprocess_masks",
    "mask_threshold",
    "device",
)
"""What is used of a Sam that is not ours."""
BIG_LITTLE_PARTS = (".little.", ".alpha_", ".gamma_", "image_encoder.routers.", "image_encoder.outside")
"""What the names of parameters that SAM does not have contain."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line for the person who named it."""


def save_sam(
    sam: Sam, path: str | Path, *, dtype: torch.dtype = torch.float32, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `sam` as safetensors with its config inside, atomically: `path` is the old file or the whole new one.

    Matrices are stored in `dtype`; vectors and buffers stay float32. `metadata` adds further text to the file.
    """
    stored = dict(sam.named_parameters())
    state = {
        name: value.to(dtype if name in stored and value.dim() > 1 else torch.float32).contiguous()
        for name, value in sam.state_dict().items()
    }
    text = {**(metadata or {}), CONFIG_KEY: sam.config.to_json()}
    write_atomically(path, lambda to: save_file(state, to, metadata=text))


def save_plain_sam(sam: Sam, path: str | Path) -> list[str]:
    """Write the SAM inside `sam` (performance blocks, neck, prompt encoder, decoder) as a plain SAM `.pth`, atomically.

    Returns the names left out. segment-anything loads the file strictly if the model has SAM's own size.
    """
    state = sam.state_dict()
    plain = {name: value for name, value in state.items() if not is_big_little(name)}
    write_atomically(path, lambda to: torch.save(plain, to))
    return sorted(set(state) - set(plain))


def load_sam(path: str | Path, **overrides: Any) -> Sam:
    """The model in one of our files, built from the config inside; `overrides` replace fields of that config."""
    state, config = read_checkpoint(path)
    if config is None:
        raise CheckpointError(
            f"{path} is a plain SAM checkpoint, without a config; load it as sam_model_registry[NAME](checkpoint=...), "
            "on a command line as --model NAME --checkpoint FILE"
        )
    return _filled(override(config, **overrides), state, path)


def build_from_registry(name: str, checkpoint: str | Path | None = None, **overrides: Any) -> Sam:
    """Build registry model `name`, in eval mode, with the weights in `checkpoint`.

    `checkpoint` is one of our files (its config counts) or a plain SAM file of the same size, which fills all but
    what only a big.LITTLE model has. None gives fresh weights, saying so, except for blvit_tiny, which ships with
    its own. `overrides` replace config fields: `window`, `image_size`, `keep_ratio`, `compute_dtype`.
    Raises CheckpointError (a ValueError) naming what is missing, unexpected or of the wrong shape.
    """
    config = model_config(name, **overrides)
    if checkpoint is None:
        if name == SHIPPED:
            return build_from_registry(name, SHIPPED_WEIGHTS, **overrides)
        warnings.warn(f"{name}: no checkpoint given, every weight is random", stacklevel=2)
        return build_sam(config)
    state, stored = read_checkpoint(checkpoint)
    if stored is None or (config.routed and not stored.routed):
        return _filled(config, state, checkpoint)
    if stored.name != name:
        raise CheckpointError(f"{checkpoint} holds a {stored.name}, not a {name}; name {stored.name} as the model")
    return _filled(override(stored, **overrides), state, checkpoint)


sam_model_registry: dict[str, Callable[..., Sam]] = {name: partial(build_from_registry, name) for name in MODELS}
"""Model builders by name, as in segment_anything: `sam_model_registry["blvit_b_t"](checkpoint="sam_vit_b.pth")`."""


def load_model(weights: WeightsConfig) -> Sam:
    """The model that a command's flags name, by registry name or by the path of a checkpoint of ours, at their keep
    ratio and on their device."""
    chosen = {"keep_ratio": weights.keep_ratio, "image_size": weights.image_size}
    overrides = {name: value for name, value in chosen.items() if value is not None}
    if weights.model not in MODELS and Path(weights.model).suffix:
        if weights.checkpoint is not None:
            raise ValueError(
                f"model={weights.model} is a checkpoint already; leave out checkpoint={weights.checkpoint}"
            )
        sam = load_sam(weights.model, **overrides)
    else:
        sam = build_from_registry(weights.model, weights.checkpoint, **overrides)
    return sam.to(pick_device(weights.device))


def load_any(weights: WeightsConfig) -> OriginalSam:
    """As `load_model`; the model may also be `module:function`, which returns a Sam in the manner of segment_anything.

    Modules of the working directory are found too. ValueError, one line, if there is no such function or what it
    returns is none.
    """
    module, _, function = weights.model.partition(":")
    if not function or Path(weights.model).is_file():
        return load_model(weights)
    if weights.keep_ratio is not None or weights.image_size is not None:
        raise ValueError(f"model={weights.model}: keep_ratio and image_size are settings of our own models alone")
    given = {} if weights.checkpoint is None else {"checkpoint": str(weights.checkpoint)}
    build = _imported(module, function)
    try:
        inspect.signature(build).bind(**given)
    except TypeError as error:
        raise ValueError(
            f"model={weights.model} cannot be called with checkpoint={weights.checkpoint} ({error})"
        ) from error
    try:
        sam = build(**given)
    except Exception as error:  # anybody's code: whatever it raises
        raise ValueError(
            f"model={weights.model} cannot be built ({type(error).__name__}: {first_line(error)})"
        ) from error
    if lacking := [part for part in SAM_PARTS if not hasattr(sam, part)]:
        raise ValueError(
            f"model={weights.model} returned a {type(sam).__name__} without {', '.join(lacking)}; a segment_anything "
            "Sam is expected"
        )
    return sam.eval().to(pick_device(weights.device))


def _imported(module: str, function: str) -> Callable[..., Any]:
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"model={module}:{function} cannot be imported ({error}); name it module:function") from error
    if not callable(found):
        raise ValueError(f"model={module}:{function} cannot be called: it is {found!r:.40}; name a function")
    return found


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], ModelConfig | None]:
    """Tensors by name, and the config if the file is one of ours. Nothing in the file is executed."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not a file")
    try:
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"
        return _read_safetensors(path) if is_safetensors else (_unwrapped(_read_pickle(path), path), None)
    except CheckpointError:
        raise
    except Exception as error:  # the readers meet damage with anything: Unicode, index, struct, assertion errors ...
        raise CheckpointError(f"checkpoint {path} is damaged or no checkpoint ({first_line(error)})") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """What one of our files says of itself beside its config; nothing for any other file."""
    if Path(path).suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return {name: text for name, text in (file.metadata() or {}).items() if name != CONFIG_KEY}


def is_big_little(name: str) -> bool:
    """Whether a state dict's `name` belongs to what a big.LITTLE model has beyond SAM."""
    return any(part in name for part in BIG_LITTLE_PARTS)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], ModelConfig | None]:
    with safe_open(path, framework="pt") as file:
        config = (file.metadata() or {}).get(CONFIG_KEY)
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    try:
        return state, None if config is None else ModelConfig.from_json(config)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"checkpoint {path} has a model config that cannot be used ({error})") from error


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {path} is refused: it is damaged or holds more than tensors, which could run code on loading"
        ) from error


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside `content`, out of known wrappings, saying so."""
    found = []
    for _ in range(MOST_WRAPPINGS):  # a wrapping may hold itself
        key = next((k for k in WRAPPERS if isinstance(content, dict) and isinstance(content.get(k), dict)), None)
        if key is None:
            break
        found.append(f"{key!r}")
        content = content[key]
    if not (isinstance(content, dict) and content and all(_is_weight(*item) for item in content.items())):
        raise CheckpointError(f"checkpoint {path} holds no state dict of tensors")
    if all(name.startswith(PREFIX) for name in content):
        found.append(f"{PREFIX!r}")
        content = {name.removeprefix(PREFIX): value for name, value in content.items()}
    if found:
        warnings.warn(f"{path}: unwrapped {' and '.join(found)}", stacklevel=4)
    return content


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _filled(config: ModelConfig, state: dict[str, Tensor], path: str | Path) -> Sam:
    """`config`'s model with all of `state` in it; what only big.LITTLE models have may be missing as a whole."""
    sam = build_sam(config)
    expected = sam.state_dict()
    state = _with_positions_for(config, state, expected, path)
    fresh = [name for name in expected if is_big_little(name)]
    if any(name in state for name in fresh):
        fresh = []
    missing = [name for name in expected if name not in state and name not in fresh]
    unexpected = [name for name in state if name not in expected]
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of the wrong shape": misshapen}
    if any(problems.values()):
        listed = "; ".join(f"{_some(names)} {kind}" for kind, names in problems.items() if names)
        raise CheckpointError(f"checkpoint {path} does not fit {config.name}: {listed}")
    if fresh:
        warnings.warn(
            f"{config.name}: {path} is a plain SAM; its weights fill the performance blocks, neck, prompt encoder and "
            f"decoder, while {len(fresh)} tensors of routers and efficiency blocks are fresh and want distillation",
            stacklevel=3,
        )
    sam.load_state_dict(state, strict=not fresh)
    return sam


def _with_positions_for(
    config: ModelConfig, state: dict[str, Tensor], expected: dict[str, Tensor], path: str | Path
) -> dict[str, Tensor]:
    """`state` with positions made for another image side interpolated, as in ViTDet and SAM, saying so."""
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
    for name, value in state.items():
        if name.startswith(tables) and ".rel_pos_" in name:
            resized[name] = F.interpolate(value.float().T[None], 2 * config.grid - 1, mode="linear")[0].T
    return {**state, **resized}


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
