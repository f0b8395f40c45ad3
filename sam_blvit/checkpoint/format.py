"""What lies in a checkpoint file: tensors by name and, in ours, what they are. No model is built here.

Ours are safetensors with the model's config in the metadata. Whatever the file, nothing in it is executed.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sam_blvit.config import ModelConfig
from sam_blvit.model.sam import Sam
from sam_blvit.system.files import first_line, write_atomically

CONFIG_KEY = "sam_blvit.config"
WRAPPERS = ("model", "state_dict", "model_state_dict")
"""Keys of a file's dictionary that a state dict may be under."""
MOST_WRAPPINGS = 4
PREFIXES = ("module.", "model.", "sam.")
"""What wrappers (DataParallel, Lightning and others) put before every name."""
COMPILED = "_orig_mod."
"""What torch.compile puts into the names of the module that it compiles."""
NUMPY_NUMBERS = "?bhilqBHILQefd"
"""Type codes of the NumPy numbers that may lie beside the weights."""
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
    """Read the tensors of a checkpoint by name, and the config if the file is one of ours.

    Known wrappings are taken off, with a warning.

    Raises:
        CheckpointError: one line, if the file is no checkpoint, or naming a tensor that `check_values` refuses.
    """
    state, config, wrappings = read_unsaid(path)
    if wrappings:
        warnings.warn(f"{path}: unwrapped {' and '.join(wrappings)}", stacklevel=3)
    return state, config


def read_unsaid(path: str | Path) -> tuple[dict[str, Tensor], ModelConfig | None, list[str]]:
    """As `read_checkpoint`, but returns the names of the wrappings instead of warning about them."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not a file")
    config: ModelConfig | None = None
    wrappings: list[str] = []
    try:
        if _is_safetensors(path):
            state, config = _read_safetensors(path)
        else:
            state, wrappings = _unwrapped(_read_pickle(path), path)
        state, prefixes = _without_prefixes(state, path)
        check_values(state, what=f"checkpoint {path}")
        return state, config, wrappings + prefixes
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


def check_values(state: Mapping[str, Tensor], *, what: str) -> None:
    """Raise CheckpointError, one line that starts with `what`, unless every tensor holds finite numbers that a weight
    can take."""
    for name, value in state.items():
        if (problem := _problem(value)) is not None:
            raise CheckpointError(f"{what}: {name} {problem}")


def first_not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The first name in `state` whose tensor holds NaN or infinity in float32; None if every number is finite.

    A sum is finite only if all its terms are, and takes a fraction of the time of a look at each of them.
    """
    for name, value in state.items():
        if not value.sum(dtype=torch.float32).isfinite() and not value.float().isfinite().all():
            return name
    return None


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
        with torch.serialization.safe_globals(_numpy_numbers()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|but got <class '(\S+)'>", str(error))
        held = f"holds a {found[1] or found[2]}" if found else "is damaged or holds more than tensors"
        raise CheckpointError(
            f"checkpoint {path} is refused: it {held}, which could run code on loading; save the tensors alone, with "
            "torch.save(model.state_dict(), FILE)"
        ) from error


def _numpy_numbers() -> list[Any]:
    """What a pickle calls to make NumPy scalars and arrays of numbers: training scripts keep scores beside weights."""
    calls: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]
    named = [(call, f"numpy.{core}.multiarray.{call.__name__}") for call in calls for core in ("core", "_core")]
    return [*named, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in NUMPY_NUMBERS}]


def _unwrapped(content: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict inside `content`, and the known containers that were around it."""
    found = []
    for _ in range(MOST_WRAPPINGS):  # a container may hold itself
        key = next((k for k in WRAPPERS if isinstance(content, dict) and isinstance(content.get(k), dict)), None)
        if key is None:
            break
        found.append(f"{key!r}")
        content = content[key]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"checkpoint {path} holds no state dict of tensors")
    if strange := [(name, value) for name, value in content.items() if not _is_weight(name, value)]:
        name, value = strange[0]
        raise CheckpointError(
            f"checkpoint {path} holds no state dict of tensors, alone or as {' or '.join(WRAPPERS)}: {name!r:.40} is a "
            f"{type(value).__name__}"
        )
    return {name: value.detach() for name, value in content.items()}, found


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _without_prefixes(state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """`state` without what compilation puts into names and wrappers put before every one, and what that was."""
    found = []
    plain = {re.sub(rf"(^|(?<=\.)){COMPILED}", "", name): value for name, value in state.items()}
    if len(plain) < len(state):
        raise CheckpointError(f"checkpoint {path} holds a tensor twice, with and without {COMPILED!r}; remove one")
    if plain.keys() != state.keys():
        found.append(f"{COMPILED!r}")
    while plain and (prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in plain)), None)):
        found.append(f"{prefix!r}")
        plain = {name.removeprefix(prefix): value for name, value in plain.items()}
    return plain, found


def _problem(value: Tensor) -> str | None:
    """Why `value` cannot be a weight, and what to do; None if it can."""
    if value.is_meta:
        return "has no values (device meta); save the model after its weights are loaded"
    if value.is_quantized:
        return "is quantized; save it as value.dequantize()"
    if value.is_nested or value.layout != torch.strided:
        return "is not a dense tensor; save it as value.to_dense()"
    if not value.is_floating_point():
        return f"is {value.dtype}, which holds no weights; save it as float32"
    if first_not_finite({"": value}) is not None:
        return "holds NaN, infinity or a number beyond float32; take a checkpoint from before it diverged"
    return None
