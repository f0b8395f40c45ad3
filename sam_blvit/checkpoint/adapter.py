"""Adapters: the tensors that a big.LITTLE model adds to its SAM, in a file of their own.

If training leaves the SAM's weights unchanged, only the new tensors have to be saved. The adapter carries a hash of the
SAM's tensors. File format, wrapping and tensor order of the SAM's file do not matter; every bit of its weights does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sam_blvit.checkpoint.format import CheckpointError, is_big_little, read_metadata, read_unsaid, write_checkpoint
from sam_blvit.model.sam import Sam

BASE_KEY = "sam_blvit.base_sha256"
"""In the metadata of an adapter: the hash of the SAM it was trained for."""


def save_adapter(
    sam: Sam,
    path: str | Path,
    *,
    base_sha256: str,
    dtype: torch.dtype = torch.bfloat16,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the tensors that `sam` adds to its SAM as safetensors with the config inside, atomically.

    Args:
        sam: a routed model.
        path: the file to write.
        base_sha256: `tensors_sha256` of the SAM, from before positions were interpolated to another image side.
        dtype: of matrices; vectors stay float32.
        metadata: further text for the file.

    Raises:
        ValueError: if `sam` is dense: the adapter would be empty.
    """
    if not sam.config.routed:
        raise ValueError(f"{sam.config.name} is dense: an adapter of it would be empty; save the whole model")
    text = {**(metadata or {}), BASE_KEY: base_sha256}
    write_checkpoint(sam, path, dtype=dtype, metadata=text, keep=is_big_little)


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the SAM in `state`: each tensor's name, shape and float32 values, in order of names.

    Tensors that only a big.LITTLE model has do not count.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in state if not is_big_little(name)):
        value = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().data)
    return digest.hexdigest()


def base_sha256(path: str | Path) -> str:
    """`tensors_sha256` of the SAM in the file at `path`, a plain SAM or a sam_blvit checkpoint."""
    return tensors_sha256(_base_state(path))


def over_base(state: dict[str, Tensor], path: str | Path, base: str | Path | None) -> dict[str, Tensor]:
    """The tensors of a whole model: `state`, completed by those of `base` if `path` is an adapter.

    Args:
        state: the tensors in `path`.
        path: a checkpoint or an adapter.
        base: the SAM that an adapter was trained for.

    Raises:
        CheckpointError: if an adapter lacks its SAM or gets another one, or if `base` is given for a whole model.
    """
    wanted = read_metadata(path).get(BASE_KEY)
    if wanted is None:
        if base is not None:
            raise CheckpointError(f"checkpoint {path} is no adapter but a whole model; leave out base={base}")
        return state
    if base is None:
        raise CheckpointError(f"checkpoint {path} is an adapter; name the SAM that it was trained for as base")
    beneath = _base_state(base)
    if (found := tensors_sha256(beneath)) != wanted:
        raise CheckpointError(
            f"adapter {path} was trained for a SAM with other weights than base={base} (SHA-256 of its tensors "
            f"{wanted[:12]}, here {found[:12]}); name the very SAM that its training started from"
        )
    return {**state, **beneath}


def _base_state(path: str | Path) -> dict[str, Tensor]:
    """The SAM in a file. No warning about its wrapping: the hash shows whether it is the right one."""
    state, _, _ = read_unsaid(path)
    beneath = {name: value for name, value in state.items() if not is_big_little(name)}
    if not beneath:
        raise CheckpointError(f"base={path} is an adapter itself; name the SAM that it was trained for")
    return beneath
