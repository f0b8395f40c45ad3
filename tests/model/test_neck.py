"""Necks that do more than SAM's: they enlarge the embedding, and read tokens of earlier layers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sam_blvit import SamPredictor
from sam_blvit.checkpoint.load import load_sam, save_plain_sam, save_sam
from sam_blvit.config import MODELS, ModelConfig, override
from sam_blvit.cost.macs import count_macs
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam

Config = Callable[..., ModelConfig]
Build = Callable[[Sam], Sam]
Refused = Callable[[type[Exception], str], AbstractContextManager[Any]]


@pytest.mark.parametrize("factor", [2, 4])
def test_each_cell_of_the_neck_becomes_several(tiny_dense: Config, randomize: Build, factor: int) -> None:
    sam = randomize(build_sam(tiny_dense(enlarge=factor)))
    images = torch.randn(2, 3, 128, 128)
    tokens = sam.image_encoder.encode(images, features_of=(4,)).features[4].permute(0, 3, 1, 2)
    weight, bias = sam.image_encoder.enlarge[0].weight, sam.image_encoder.enlarge[0].bias
    cells = torch.einsum("bihw,iofg->bohfwg", sam.image_encoder.neck(tokens), weight).flatten(4).flatten(2, 3)
    cells = cells.view(2, 256, 8 * factor, 8 * factor) + bias.view(-1, 1, 1)
    norm = sam.image_encoder.enlarge[1]
    expected = F.layer_norm(cells.permute(0, 2, 3, 1), (256,), norm.weight, norm.bias, norm.eps).permute(0, 3, 1, 2)
    found = sam.image_encoder(images)
    assert found.shape == (2, 256, 8 * factor, 8 * factor)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_outside_a_photograph_is_the_learned_vector(tiny: Config, randomize: Build) -> None:
    sam = randomize(build_sam(tiny(enlarge=2)))
    embedding = sam.image_encoder(torch.randn(1, 3, 64, 128))
    assert embedding.shape == (1, 256, 16, 16)
    outside = sam.image_encoder.outside[:, None, None]
    assert torch.equal(embedding[0, :, 8:], outside.expand(-1, 8, 16))
    assert not torch.equal(embedding[0, :, 7:8], outside.expand(-1, 1, 16))


def test_without_it_a_state_dict_is_sams(tiny_dense: Config) -> None:
    plain, enlarged = (build_sam(tiny_dense(enlarge=factor)).state_dict() for factor in (1, 2))
    assert enlarged.keys() - plain.keys() == {
        f"image_encoder.enlarge.{n}.{part}" for n in (0, 1) for part in ("weight", "bias")
    }


def test_the_decoder_is_built_for_the_finer_grid(tiny_dense: Config) -> None:
    sam = build_sam(tiny_dense(enlarge=2))
    assert sam.prompt_encoder.image_embedding_size == (16, 16)
    assert sam.prompt_encoder.input_image_size == (128, 128)


def test_the_embedding_starts_at_the_scale_of_sams(tiny_dense: Config) -> None:
    embedding = build_sam(tiny_dense(enlarge=2)).image_encoder(torch.randn(1, 3, 128, 128))
    assert embedding.std().item() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("model", ["tiny", "tiny_dense"])
def test_a_predictor_answers_at_the_photographs_size(request: pytest.FixtureRequest, model: str) -> None:
    predictor = SamPredictor(build_sam(request.getfixturevalue(model)(enlarge=2)))
    predictor.set_image(np.zeros((60, 100, 3), np.uint8))
    masks, iou, logits = predictor.predict(box=[10, 10, 40, 40])
    assert (masks.shape, iou.shape, logits.shape) == ((3, 60, 100), (3,), (3, 64, 64))
    again, _, _ = predictor.predict(box=[10, 10, 40, 40], mask_input=logits[:1], multimask_output=False)
    assert again.shape == (1, 60, 100)


def test_it_is_saved_with_the_model(tiny: Config, randomize: Build, tmp_path: Path) -> None:
    sam = randomize(build_sam(tiny(enlarge=2)))
    save_sam(sam, tmp_path / "sam.safetensors")
    image = torch.randn(1, 3, 128, 128)
    assert torch.equal(load_sam(tmp_path / "sam.safetensors").image_encoder(image), sam.image_encoder(image))


def test_it_has_no_place_in_a_plain_sam(tiny_dense: Config, tmp_path: Path, refused: Refused) -> None:
    with refused(ValueError, r"vit_tiny has enlarge=2, neck_layers=\(\), for which a plain SAM has no part"):
        save_plain_sam(build_sam(tiny_dense(enlarge=2)), tmp_path / "plain.pth")
    assert not (tmp_path / "plain.pth").exists()


@pytest.mark.parametrize("factor", [0, 3])
def test_a_factor_that_divides_no_token_is_refused(tiny_dense: Config, refused: Refused, factor: int) -> None:
    with refused(ValueError, f"enlarge={factor}"):
        tiny_dense(enlarge=factor)


def test_its_arithmetic_is_the_necks() -> None:
    plain, enlarged = (count_macs(override(MODELS["vit_s"], enlarge=factor)).parts["neck"] for factor in (1, 2))
    assert enlarged.full - plain.full == 4 * 256 * 256 * 32 * 32


@pytest.mark.parametrize(("name", "keep_ratio", "gmacs"), [("vit_s", 1.0, 28.9), ("blvit_s_t", 0.25, 17.1)])
def test_the_small_models_cost_what_the_design_says(name: str, keep_ratio: float, gmacs: float) -> None:
    count = count_macs(MODELS[name])
    assert count.keep_ratio == keep_ratio
    assert count.encoder.full / 1e9 == pytest.approx(gmacs, abs=1.5)


# earlier layers in the neck ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "keep_ratio"), [("tiny_dense", 1.0), ("tiny", 0.25), ("tiny", 0.0), ("tiny", 1.0)])
def test_the_neck_reads_tokens_of_earlier_layers_too(
    request: pytest.FixtureRequest, randomize: Build, model: str, keep_ratio: float
) -> None:
    sam = randomize(build_sam(request.getfixturevalue(model)(neck_layers=(1, 3))))
    encoder = sam.image_encoder
    encoder.keep_ratio = keep_ratio
    encoding = encoder.encode(images := torch.randn(1, 3, 128, 128), features_of=(1, 3, 4))
    expected = encoder.neck[0](encoding.features[4].permute(0, 3, 1, 2))
    for layer in (1, 3):
        norm, proj = encoder.laterals[str(layer - 1)]
        expected = expected + proj(norm(encoding.features[layer])).permute(0, 3, 1, 2)
    torch.testing.assert_close(encoding.embedding, encoder.neck[1:](expected), rtol=1e-4, atol=1e-4)
    assert encoder.encode(images).features == {}, "what the neck reads is not what the caller asked for"


def test_what_the_neck_reads_is_named_by_its_layer(tiny_dense: Config) -> None:
    plain, more = (build_sam(tiny_dense(neck_layers=layers)).state_dict() for layers in ((), (2,)))
    named = {
        "image_encoder.laterals.1.0.weight",
        "image_encoder.laterals.1.0.bias",
        "image_encoder.laterals.1.1.weight",
    }
    assert more.keys() - plain.keys() == named


def test_a_layer_that_is_not_there_cannot_be_read(tiny_dense: Config, refused: Refused) -> None:
    with refused(ValueError, "neck_layers names layer 5; vit_tiny has layers 1 to 4"):
        tiny_dense(neck_layers=(5,))
