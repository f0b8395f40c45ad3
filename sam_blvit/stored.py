"""What lies in a checkpoint file: tensors by name and, in ours, what they are. No model is built here.

Ours are safetensors with the model's config in the metadata. Whatever the file, nothing in it is executed.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sam_blvit.config import ModelConfig
from sam_blvit.files import first_line, write_atomically
from sam_blvit.model.sam import Sam

CONFIG_KEY = "sam_blvit.config"
WRAPPERS = ("model", "state_dict")
MOST_WRAPPINGS = 4
PREFIX = "module."
BIG_LITTLE_PARTS = (".little.", ".alpha_", ".gamma_", "image_encoder.routers.", "image_encoder.outside")
"""What the names of parameters that SAM does not have contain."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line for the person who named it."""


def write_checkpoint(
    sam: Sam,
    path: str | Path,
    *,
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    keep: Callable[[str], bool] = lambda _name: True,
) -> None:
    """Write what `keep` says of `sam`'s tensors as safetensors with its config inside, atomically.

    Matrices are stored in `dtype`; vectors and buffers stay float32. `metadata` adds further text to the file.
    """
    parameters = dict(sam.named_parameters())
    state = {
        name: value.to(dtype if name in parameters and value.dim() > 1 else torch.float32).contiguous()
        for name, value in sam.state_dict().items()
        if keep(name)
    }
    text = {**metadata, CONFIG_KEY: sam.config.to_json()}
    write_atomically(path, lambda to: save_file(state, to, metadata=text))


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], ModelConfig | None]:
    """Tensors by name, out of known wrappings, saying so; and the config if the file is one of ours.

    Raises CheckpointError, one line, if it is no checkpoint.
    """
    state, config, wrappings = read_unsaid(path)
    if wrappings:
        warnings.warn(f"{path}: unwrapped {' and '.join(wrappings)}", stacklevel=3)
    return state, config


def read_unsaid(path: str | Path) -> tuple[dict[str, Tensor], ModelConfig | None, list[str]]:
    """As `read_checkpoint`, with the wrappings instead of a word about them."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not a file")
    try:
        if _is_safetensors(path):
            return *_read_safetensors(path), []
        state, wrappings = _unwrapped(_read_pickle(path), path)
        return state, None, wrappings
    except CheckpointError:
        raise
    except Exception as error:  # the readers meet damage with anything: Unicode, index, struct, assertion errors ...
        raise CheckpointError(f"checkpoint {path} is damaged or no checkpoint ({first_line(error)})") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """What one of our files says of itself beside its config; nothing for any other file."""
    if not _is_safetensors(Path(path)):
        return {}
    with safe_open(path, framework="pt") as file:
        return {name: text for name, text in (file.metadata() or {}).items() if name != CONFIG_KEY}


def check_fit(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    what: str,
    may_lack: Callable[[str], bool] = lambda _name: False,
) -> None:
    """Raise CheckpointError, one line that starts with `what`, unless `state` has the names and shapes of `expected`.

    `may_lack` says which names need not be there.
    """
    problems = {
        "missing": [name for name in expected if name not in state and not may_lack(name)],
        "unexpected": [name for name in state if name not in expected],
        "of the wrong shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in expected
            if name in state and state[name].shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{some_of(names)} {kind}" for kind, names in problems.items() if names)
        raise CheckpointError(f"{what}: {listed}")


def some_of(names: Sequence[str], most: int = 4) -> str:
    """The first of `names`, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def is_big_little(name: str) -> bool:
    """Whether a state dict's `name` belongs to what a big.LITTLE model has beyond SAM."""
    return any(part in name for part in BIG_LITTLE_PARTS)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


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


def _unwrapped(content: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict inside `content`, and the known wrappings that were around it."""
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
    return content, found


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)
