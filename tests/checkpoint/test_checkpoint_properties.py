"""Any state dict, wrapped or damaged in any way: the model equals the good one, or one line names the tensor."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from conftest import TINY
from sam_blvit.checkpoint.load import CheckpointError, build_from_registry, is_big_little
from sam_blvit.config import override
from sam_blvit.model.build import build_sam

SMALL = {"layers": 1, "global_layers": (1,), "routed_from": None, "routers_after": (), "little_layers": ()}
DENSE = override(TINY, name="vit_tiny", **SMALL)
FIELDS = {field: getattr(DENSE, field) for field in DENSE.__dataclass_fields__ if field not in ("name", "keep_ratio")}
PREFIXES = ("module.", "model.", "sam.", "_orig_mod.")
CONTAINERS = ("model", "state_dict", "model_state_dict")
LOSSLESS = (torch.float32, torch.float64)

FEW = settings(max_examples=settings().max_examples // 6)
"""Each case writes and loads a model."""

pytestmark = [pytest.mark.property, pytest.mark.filterwarnings("ignore")]


@lru_cache(maxsize=1)
def good() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: value.clone() for name, value in build_sam(DENSE).state_dict().items()}


NAMES = st.sampled_from([name for name in build_sam(DENSE).state_dict() if not is_big_little(name)])


def load(content: dict[str, Any], *, safetensors: bool = False) -> dict[str, Tensor]:
    """The state dict of the model that a file with `content` gives."""
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(directory) / "sam.weights"
        save_file(content, path) if safetensors else torch.save(content, path)
        return build_from_registry("vit_tiny", path, **FIELDS).state_dict()


def assert_good(state: dict[str, Tensor]) -> None:
    assert state.keys() == good().keys()
    assert [name for name, value in good().items() if not torch.equal(state[name], value)] == []


@given(
    prefixes=st.lists(st.sampled_from(PREFIXES), max_size=4),
    inner=st.sampled_from(["", "image_encoder.", "image_encoder.blocks.0."]),
    containers=st.lists(st.sampled_from(CONTAINERS), max_size=3),
    dtype=st.sampled_from(LOSSLESS),
    safetensors=st.booleans(),
)
@FEW
def test_a_good_state_dict_loads_however_it_is_wrapped(
    prefixes: list[str], inner: str, containers: list[str], dtype: torch.dtype, safetensors: bool
) -> None:
    content: dict[str, Any] = {}
    for name, value in good().items():
        if inner and name.startswith(inner):
            name = f"{inner}_orig_mod.{name.removeprefix(inner)}"
        content["".join(prefixes) + name] = value.to(dtype)
    for key in [] if safetensors else containers:
        content = {key: content, "epoch": 3, "optimizer": {"state": {}}}
    assert_good(load(content, safetensors=safetensors))


@given(name=NAMES, layout=st.sampled_from(["transposed", "strided", "shared", "parameter"]))
@FEW
def test_a_tensor_loads_however_it_lies_in_memory(name: str, layout: str) -> None:
    value = good()[name]
    laid: dict[str, Callable[[], Tensor]] = {
        "transposed": lambda: value.transpose(0, -1).contiguous().transpose(0, -1),
        "strided": lambda: torch.stack([value, value], dim=-1)[..., 0],
        "shared": lambda: torch.cat([value.flatten(), torch.zeros(9)])[: value.numel()].view(value.shape),
        "parameter": lambda: torch.nn.Parameter(value),
    }
    assert_good(load({**good(), name: laid[layout]()}))


DAMAGE: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda value: value.index_fill(0, torch.tensor([0]), float("nan")),
    "infinite": lambda value: value.index_fill(0, torch.tensor([len(value) - 1]), -float("inf")),
    "beyond float32": lambda value: value.double().fill_(1e39),
    "whole numbers": lambda value: value.int(),
    "booleans": lambda value: value.bool(),
    "complex": lambda value: value.to(torch.complex64),
    "sparse": lambda value: value.to_sparse(),
    "quantized": lambda value: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
    "meta": lambda value: value.to("meta"),
    "one more": lambda value: torch.cat([value, value[:1]]),
    "none": lambda value: value[:0],
}


@given(name=NAMES, damage=st.sampled_from(sorted(DAMAGE)), prefix=st.sampled_from(["", *PREFIXES]))
@FEW
def test_a_damaged_tensor_is_named_in_one_line(name: str, damage: str, prefix: str) -> None:
    state = {**good(), name: DAMAGE[damage](good()[name])}
    with pytest.raises(CheckpointError, match=re.escape(name)) as error:
        load({prefix + each: value for each, value in state.items()})
    assert "\n" not in str(error.value)


@given(name=NAMES, extra=st.booleans(), safetensors=st.booleans())
@FEW
def test_a_missing_or_further_tensor_is_named_in_one_line(name: str, extra: bool, safetensors: bool) -> None:
    state = dict(good())
    value = state.pop(name)
    if extra:
        state |= {name: value, (name := f"{name}.more"): value.clone()}
    with pytest.raises(CheckpointError, match=re.escape(name)) as error:
        load(state, safetensors=safetensors)
    assert "\n" not in str(error.value)
