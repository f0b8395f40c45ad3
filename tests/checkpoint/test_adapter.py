"""Adapters: over any copy of the very SAM they were trained for they are the whole model, and over nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from segment_anything import modeling as sa
from torch import Tensor, nn

from sam_blvit.checkpoint.adapter import BASE_KEY, base_sha256, save_adapter, tensors_sha256
from sam_blvit.checkpoint.format import CONFIG_KEY
from sam_blvit.checkpoint.load import (
    CheckpointError,
    is_big_little,
    load_any,
    load_model,
    load_sam,
    read_metadata,
    sam_model_registry,
    save_plain_sam,
    save_sam,
)
from sam_blvit.config import MODELS, ModelConfig, WeightsConfig
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam

Config = Callable[..., ModelConfig]
OriginalSam = Callable[[ModelConfig], sa.Sam]
Randomize = Callable[[nn.Module], nn.Module]
Refused = Callable[..., Any]
Trained = Callable[..., tuple[Sam, sa.Sam]]

WINDOWS = pytest.mark.parametrize("window", [4, 3], ids=["whole", "padded"])


@pytest.fixture
def trained(tiny: Config, original_sam: OriginalSam, randomize: Randomize, tmp_path: Path) -> Trained:
    """A model whose new parameters alone are trained, and the SAM inside; `sam.pth` and `adapter.safetensors`."""

    def train(*, dtype: torch.dtype = torch.bfloat16, **overrides: Any) -> tuple[Sam, sa.Sam]:
        config = tiny(**overrides)
        theirs, ours = original_sam(config), randomize(build_sam(config))
        ours.load_state_dict(theirs.state_dict(), strict=False)
        torch.save(theirs.state_dict(), tmp_path / "sam.pth")
        sha256 = base_sha256(tmp_path / "sam.pth")
        save_adapter(ours, tmp_path / "adapter.safetensors", base_sha256=sha256, dtype=dtype)
        return ours, theirs

    return train


def assert_same_weights(model: nn.Module, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert set(state) == set(expected)
    assert [name for name, value in expected.items() if not torch.equal(state[name], value)] == []


# there and back ------------------------------------------------------------------------------------------------------


@WINDOWS
def test_in_float32_adapter_and_base_are_the_whole_model_bit_for_bit(
    trained: Trained, tmp_path: Path, window: int
) -> None:
    ours, _ = trained(dtype=torch.float32, window=window, rel_pos_window=window)
    loaded = load_sam(tmp_path / "adapter.safetensors", tmp_path / "sam.pth")
    assert loaded.config == ours.config
    assert_same_weights(loaded, ours.state_dict())


def test_in_bfloat16_only_the_adapters_matrices_are_rounded(trained: Trained, tmp_path: Path) -> None:
    ours, _ = trained()
    expected = {
        name: value.bfloat16().float() if is_big_little(name) and value.dim() > 1 else value
        for name, value in ours.state_dict().items()
    }
    assert any(not torch.equal(expected[name], value) for name, value in ours.state_dict().items())
    assert_same_weights(load_sam(tmp_path / "adapter.safetensors", tmp_path / "sam.pth"), expected)


def test_an_adapter_holds_what_sam_lacks_and_nothing_else(trained: Trained, tmp_path: Path) -> None:
    ours, theirs = trained()
    with safe_open(tmp_path / "adapter.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert names == set(ours.state_dict()) - set(theirs.state_dict())
    assert "image_encoder.outside" in names


@pytest.mark.parametrize("size", [(128, 128), (96, 128)], ids=["square", "four_to_three"])
def test_over_its_base_at_keep_ratio_1_with_padded_windows_it_is_segment_anythings_own(
    trained: Trained, tmp_path: Path, size: tuple[int, int]
) -> None:
    _, theirs = trained(window=3, rel_pos_window=3)
    ours = load_sam(tmp_path / "adapter.safetensors", tmp_path / "sam.pth", keep_ratio=1)
    record = {
        "image": torch.rand(3, *size) * 255,
        "original_size": size,
        "point_coords": torch.tensor([[[30.0, 20.0]]]),
        "point_labels": torch.tensor([[1]]),
    }
    (answer,), (expected,) = ours([record], True), theirs([record], True)
    torch.testing.assert_close(answer["low_res_logits"], expected["low_res_logits"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(answer["iou_predictions"], expected["iou_predictions"], rtol=1e-3, atol=1e-4)


def test_an_adapter_is_loaded_by_its_models_name(trained: Trained, tmp_path: Path) -> None:
    ours, _ = trained(dtype=torch.float32)
    loaded = sam_model_registry["blvit_tiny"](tmp_path / "adapter.safetensors", base=tmp_path / "sam.pth")
    assert_same_weights(loaded, ours.state_dict())


@pytest.mark.parametrize("by", ["checkpoint", "model"])
@pytest.mark.parametrize("load", [load_model, load_any])
def test_a_command_names_adapter_and_base(trained: Trained, tmp_path: Path, load: Callable[..., Sam], by: str) -> None:
    ours, _ = trained(dtype=torch.float32)
    path = tmp_path / "adapter.safetensors"
    by_checkpoint = {"model": "blvit_tiny", "checkpoint": path}
    named: dict[str, Any] = by_checkpoint if by == "checkpoint" else {"model": str(path)}
    assert_same_weights(load(WeightsConfig(**named, base=tmp_path / "sam.pth", device="cpu")), ours.state_dict())


def test_an_adapter_says_what_else_it_was_given(trained: Trained, tmp_path: Path) -> None:
    ours, theirs = trained()
    sha256 = tensors_sha256(theirs.state_dict())
    save_adapter(ours, tmp_path / "told.safetensors", base_sha256=sha256, metadata={"step": "7"})
    assert read_metadata(tmp_path / "told.safetensors") == {"step": "7", BASE_KEY: sha256}
    with safe_open(tmp_path / "told.safetensors", framework="pt") as file:
        assert file.metadata()[CONFIG_KEY] == ours.config.to_json()


def test_a_dense_model_has_no_adapter(tiny_dense: Config, refused: Refused, tmp_path: Path) -> None:
    with refused(ValueError, match="vit_tiny is dense: an adapter of it would be empty"):
        save_adapter(build_sam(tiny_dense()), tmp_path / "adapter.safetensors", base_sha256="")


# sizes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "megabytes"), [("blvit_b_t", 26), ("blvit_h_b", 255)])
def test_an_adapter_in_bfloat16_is_a_small_part_of_its_model(name: str, megabytes: float) -> None:
    with torch.device("meta"):
        parameters = dict(build_sam(MODELS[name]).named_parameters())
    size = sum(value.numel() * (2 if value.dim() > 1 else 4) for key, value in parameters.items() if is_big_little(key))
    assert size / 1e6 == pytest.approx(megabytes, rel=0.03)


# any copy of the base ------------------------------------------------------------------------------------------------


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state},
        lambda state: {"state_dict": prefixed(state), "epoch": 3},
        lambda state: dict(reversed(state.items())),
    ],
    ids=["model", "state_dict_and_module", "another_order"],
)
def test_a_copy_of_the_base_may_be_wrapped_or_in_another_order(
    trained: Trained, tmp_path: Path, wrap: Callable[[dict[str, Tensor]], dict[str, Any]]
) -> None:
    ours, theirs = trained(dtype=torch.float32)
    torch.save(wrap(dict(theirs.state_dict())), tmp_path / "copy.pth")
    assert_same_weights(load_sam(tmp_path / "adapter.safetensors", tmp_path / "copy.pth"), ours.state_dict())


def test_a_copy_of_the_base_may_be_one_of_our_dense_models(
    trained: Trained, tiny_dense: Config, tmp_path: Path
) -> None:
    ours, theirs = trained(dtype=torch.float32)
    dense = build_sam(tiny_dense())
    dense.load_state_dict(theirs.state_dict())
    save_sam(dense, tmp_path / "dense.safetensors")
    assert_same_weights(load_sam(tmp_path / "adapter.safetensors", tmp_path / "dense.safetensors"), ours.state_dict())


def test_a_copy_of_the_base_may_be_the_sam_inside_a_whole_model(trained: Trained, tmp_path: Path) -> None:
    ours, _ = trained(dtype=torch.float32)
    save_sam(ours, tmp_path / "whole.safetensors")
    save_plain_sam(ours, tmp_path / "inside.pth")
    for base in ("whole.safetensors", "inside.pth"):
        assert_same_weights(load_sam(tmp_path / "adapter.safetensors", tmp_path / base), ours.state_dict())


@pytest.mark.filterwarnings("ignore:.*is a plain SAM")
def test_an_adapter_may_be_of_another_image_side_than_its_base(
    tiny: Config, original_sam: OriginalSam, randomize: Randomize, tmp_path: Path
) -> None:
    torch.save(original_sam(tiny()).state_dict(), tmp_path / "sam.pth")
    config = tiny(image_size=64)
    fields = {field: getattr(config, field) for field in config.__dataclass_fields__ if field != "name"}
    with pytest.warns(UserWarning, match="interpolated from a side of 128 to 64"):
        ours = sam_model_registry["blvit_tiny"](tmp_path / "sam.pth", **fields)
    inside = {name: value.clone() for name, value in ours.state_dict().items() if not is_big_little(name)}
    randomize(ours.image_encoder).load_state_dict(
        {name.removeprefix("image_encoder."): value for name, value in inside.items()}, strict=False
    )
    sha256 = base_sha256(tmp_path / "sam.pth")
    save_adapter(ours, tmp_path / "adapter.safetensors", base_sha256=sha256, dtype=torch.float32)
    with pytest.warns(UserWarning, match="interpolated from a side of 128 to 64"):
        loaded = load_sam(tmp_path / "adapter.safetensors", tmp_path / "sam.pth")
    assert_same_weights(loaded, ours.state_dict())


# the hash ------------------------------------------------------------------------------------------------------------


def test_the_hash_is_of_the_base_alone(trained: Trained) -> None:
    ours, theirs = trained()
    assert tensors_sha256(ours.state_dict()) == tensors_sha256(theirs.state_dict())


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.0]), "c": torch.tensor(3.0)},
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0000002)},
        {"a": torch.tensor([2.0, 1.0]), "b": torch.tensor(3.0)},
        {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3.0)},
        {"a": torch.tensor([1.0, 2.0])},
    ],
    ids=["name", "value", "order", "shape", "missing"],
)
def test_the_hash_tells_one_base_from_another(other: dict[str, Tensor]) -> None:
    assert tensors_sha256(other) != tensors_sha256({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)})


def test_the_hash_is_of_values_whatever_holds_them() -> None:
    value = torch.tensor([[1.0, 2.5], [3.0, 4.0]])
    assert tensors_sha256({"a": value}) == tensors_sha256({"a": value.half()}) == tensors_sha256({"a": value.T.mT.T.T})


# what does not belong together ---------------------------------------------------------------------------------------


def test_an_adapter_without_its_base_is_refused(trained: Trained, tmp_path: Path, refused: Refused) -> None:
    trained()
    path = tmp_path / "adapter.safetensors"
    with refused(CheckpointError, match=r"adapter\.safetensors is an adapter; name the SAM .* as base"):
        load_sam(path)
    with refused(CheckpointError, match=r"adapter\.safetensors is an adapter; name the SAM .* as base"):
        sam_model_registry["blvit_tiny"](path)


def test_an_adapter_over_another_base_is_refused(trained: Trained, tmp_path: Path, refused: Refused) -> None:
    _, theirs = trained()
    theirs.mask_decoder.iou_token.weight.data[0, 0] += 1e-6
    torch.save(theirs.state_dict(), tmp_path / "other.pth")
    with refused(CheckpointError, match=r"was trained for a SAM with other weights than base=.*other\.pth .*; name"):
        load_sam(tmp_path / "adapter.safetensors", tmp_path / "other.pth")


def test_a_base_that_is_an_adapter_itself_is_refused(trained: Trained, tmp_path: Path, refused: Refused) -> None:
    trained()
    path = tmp_path / "adapter.safetensors"
    with refused(CheckpointError, match="is an adapter itself; name the SAM that it was trained for"):
        load_sam(path, path)


def test_a_base_that_is_no_file_is_refused(trained: Trained, tmp_path: Path, refused: Refused) -> None:
    trained()
    with refused(CheckpointError, match=r"nowhere\.pth is not a file"):
        load_sam(tmp_path / "adapter.safetensors", tmp_path / "nowhere.pth")


@pytest.mark.parametrize("kind", ["whole", "plain"])
def test_a_base_beneath_a_whole_model_is_refused(trained: Trained, tmp_path: Path, refused: Refused, kind: str) -> None:
    ours, _ = trained()
    save_sam(ours, tmp_path / "whole.safetensors")
    path = tmp_path / ("whole.safetensors" if kind == "whole" else "sam.pth")
    with refused(CheckpointError, match=f"{path.name} is no adapter but a whole model; leave out base="):
        sam_model_registry["blvit_tiny"](path, base=tmp_path / "sam.pth")


def test_a_base_without_an_adapter_is_refused(trained: Trained, tmp_path: Path, refused: Refused) -> None:
    trained()
    with refused(CheckpointError, match=r"base=.*sam\.pth needs an adapter; name that as checkpoint"):
        sam_model_registry["blvit_tiny"](base=tmp_path / "sam.pth")


def test_an_adapter_of_another_model_is_refused(trained: Trained, tmp_path: Path, refused: Refused) -> None:
    trained()
    with refused(CheckpointError, match="holds a blvit_tiny, not a blvit_b_t"):
        sam_model_registry["blvit_b_t"](tmp_path / "adapter.safetensors", base=tmp_path / "sam.pth")
