"""Built models: their parameters' names and shapes are SAM's, and beyond them exactly what the design names."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import segment_anything
import torch

from sam_blvit.checkpoint.load import is_big_little
from sam_blvit.config import MODELS, ModelConfig
from sam_blvit.model.build import build_sam

Config = Callable[..., ModelConfig]
OriginalSam = Callable[[ModelConfig], segment_anything.modeling.Sam]

PARTS_OF_ATTENTION = ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "rel_pos_h", "rel_pos_w")
PARTS_OF_LITTLE_MLP = tuple(
    f"{name}.{kind}" for name in ("enter", "lin1", "lin2", "leave") for kind in ("weight", "bias")
)


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def original_shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes(segment_anything.sam_model_registry[name]())


def our_shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes(build_sam(MODELS[name]))


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_a_dense_state_dict_is_segment_anythings(name: str) -> None:
    assert our_shapes(name) == original_shapes(name)


@pytest.mark.parametrize(("name", "plain"), [("blvit_b_t", "vit_b"), ("blvit_l_s", "vit_l"), ("blvit_h_b", "vit_h")])
def test_without_its_own_names_a_big_little_state_dict_is_segment_anythings(name: str, plain: str) -> None:
    ours = our_shapes(name)
    assert {key: shape for key, shape in ours.items() if not is_big_little(key)} == original_shapes(plain)


@pytest.mark.parametrize("name", ["blvit_b_t", "blvit_l_s", "blvit_h_b", "blvit_tiny"])
def test_the_names_beyond_sams_are_the_designs(name: str) -> None:
    config = MODELS[name]
    assert config.routed_from is not None
    expected = {"image_encoder.outside"}
    expected |= {f"image_encoder.routers.{layer - 1}.score.weight" for layer in config.routers_after}
    for layer in range(config.routed_from, config.layers + 1):
        expected |= {f"image_encoder.blocks.{layer - 1}.alpha_{half}" for half in ("attn", "mlp")}
    for layer in config.little_layers:
        block = f"image_encoder.blocks.{layer - 1}"
        expected |= {f"{block}.gamma_{half}" for half in ("attn", "mlp")}
        expected |= {f"{block}.little.norm{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")}
        expected |= {f"{block}.little.attn.{part}" for part in PARTS_OF_ATTENTION}
        expected |= {f"{block}.little.mlp.{part}" for part in PARTS_OF_LITTLE_MLP}
    assert {key for key in our_shapes(name) if is_big_little(key)} == expected


def test_an_efficiency_block_has_the_designs_shapes(tiny: Config) -> None:
    ours = shapes(build_sam(tiny()))  # C 32, Ce 16 in 2 heads, windows of 4, 8 x 8 tokens
    part = "image_encoder.blocks.2.little."
    assert ours[f"{part}attn.qkv.weight"] == (48, 32)
    assert ours[f"{part}attn.proj.weight"] == (32, 16)
    assert ours[f"{part}attn.rel_pos_h"] == (7, 8)
    assert ours["image_encoder.blocks.3.little.attn.rel_pos_h"] == (15, 8)
    assert ours[f"{part}mlp.enter.weight"] == (16, 32)
    assert ours[f"{part}mlp.lin1.weight"] == (64, 16)
    assert ours[f"{part}mlp.lin2.weight"] == (16, 64)
    assert ours[f"{part}mlp.leave.weight"] == (32, 16)
    assert ours["image_encoder.outside"] == (256,)


def test_another_window_changes_no_shape(tiny: Config) -> None:
    assert shapes(build_sam(tiny(window=3))) == shapes(build_sam(tiny(window=8))) == shapes(build_sam(tiny()))


def test_no_parameter_has_0_dimensions(tiny: Config) -> None:
    assert [name for name, shape in shapes(build_sam(tiny())).items() if not shape] == []


def test_a_fresh_models_gates_and_last_projections_wait(tiny: Config) -> None:
    state = build_sam(tiny()).state_dict()
    waiting = re.compile(r"alpha_|little\.attn\.proj\.|little\.mlp\.leave\.")
    zero = {name for name, value in state.items() if waiting.search(name)}
    assert len(zero) == 3 * (2 + 2 + 2)  # 3 routed layers: 2 alphas, 2 projections with weight and bias
    assert all(not state[name].any() for name in zero)
    assert all(state[name].item() == pytest.approx(1e-5) for name in state if "gamma_" in name)


def test_a_fresh_model_is_in_eval_mode(tiny: Config) -> None:
    assert not any(module.training for module in build_sam(tiny()).modules())


def test_pixels_are_normalised_as_segment_anything_does(tiny: Config, original_sam: OriginalSam) -> None:
    theirs, ours = original_sam(tiny()), build_sam(tiny())
    assert torch.equal(ours.pixel_mean, theirs.pixel_mean)
    assert torch.equal(ours.pixel_std, theirs.pixel_std)
