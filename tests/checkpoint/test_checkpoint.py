"""Checkpoints: ours and SAM's go in and out whole, and what does not fit is refused by name."""

from __future__ import annotations

import json
import linecache
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from segment_anything import modeling as sa
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from conftest import VARIANTS
from sam_blvit import build_sam as build_default
from sam_blvit.checkpoint.format import CONFIG_KEY
from sam_blvit.checkpoint.load import (
    SHIPPED_WEIGHTS,
    CheckpointError,
    is_big_little,
    load_any,
    load_model,
    load_sam,
    read_checkpoint,
    sam_model_registry,
    save_plain_sam,
    save_sam,
)
from sam_blvit.config import MODELS, THRESHOLDS, ModelConfig, WeightsConfig, override
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.system.files import file_sha256

Config = Callable[..., ModelConfig]
OriginalSam = Callable[[ModelConfig], sa.Sam]
Randomize = Callable[[nn.Module], nn.Module]
Refused = Callable[..., Any]


@pytest.fixture
def sam(tiny: Config, randomize: Randomize) -> Sam:
    """A big.LITTLE model with nothing at zero in its encoder."""
    model = build_sam(tiny())
    randomize(model.image_encoder)
    return model


@pytest.fixture
def build_tiny(tiny: Config) -> Callable[..., Sam]:
    """`sam_model_registry["blvit_tiny"]` at the tests' size."""

    def build(checkpoint: Path, **overrides: object) -> Sam:
        config = tiny()
        fields = {field: getattr(config, field) for field in config.__dataclass_fields__ if field != "name"}
        return sam_model_registry["blvit_tiny"](checkpoint, **{**fields, **overrides})

    return build


@pytest.fixture
def plain(tiny: Config, original_sam: OriginalSam, tmp_path: Path) -> tuple[sa.Sam, Path]:
    """segment-anything's own Sam and its file."""
    theirs, path = original_sam(tiny()), tmp_path / "sam.pth"
    torch.save(theirs.state_dict(), path)
    return theirs, path


def assert_same_weights(model: nn.Module, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert set(state) == set(expected)
    assert [name for name, value in expected.items() if not torch.equal(state[name], value)] == []


# registry ------------------------------------------------------------------------------------------------------------


def test_the_registry_has_every_model() -> None:
    assert {"vit_b", "vit_l", "vit_h", "blvit_b_t", "blvit_l_s", "blvit_h_b", "blvit_tiny"} <= set(sam_model_registry)
    assert set(sam_model_registry) == {"default", *MODELS}


def test_a_name_that_the_registry_lacks_is_refused_with_those_it_has(refused: Refused) -> None:
    with refused(KeyError, match="^no model named 'vit_x'; there are default, vit_b") as error:
        sam_model_registry["vit_x"]
    assert isinstance(error.value, ValueError)
    assert sam_model_registry.get("vit_x") is None


@pytest.mark.parametrize("build", [build_default, lambda *args, **named: sam_model_registry["default"](*args, **named)])
def test_the_default_model_is_the_shipped_one_or_that_of_the_file(
    ours: Path, sam: Sam, build: Callable[..., Sam]
) -> None:
    assert build().config == read_checkpoint(SHIPPED_WEIGHTS)[1]
    assert_same_weights(build(ours), sam.state_dict())
    assert build(checkpoint=str(ours), keep_ratio=0.5).image_encoder.keep_ratio == 0.5


def test_a_plain_sam_is_no_default_model(plain: tuple[sa.Sam, Path], refused: Refused) -> None:
    with refused(CheckpointError, match="plain SAM checkpoint.*--model NAME --checkpoint FILE"):
        build_default(plain[1])


def test_a_config_in_place_of_a_file_gives_fresh_weights(tiny: Config) -> None:
    assert build_default(tiny(), keep_ratio=0.5).config == tiny(keep_ratio=0.5)


def test_a_commands_checkpoint_without_a_model_says_itself_what_it_is(ours: Path, sam: Sam) -> None:
    for load in (load_model, load_any):
        assert_same_weights(load(WeightsConfig(checkpoint=ours, device="cpu")), sam.state_dict())
        assert load(WeightsConfig(device="cpu")).config == read_checkpoint(SHIPPED_WEIGHTS)[1]


def test_a_weight_that_is_not_finite_is_refused_at_load_by_name(sam: Sam, tmp_path: Path, refused: Refused) -> None:
    with torch.no_grad():
        sam.mask_decoder.iou_token.weight[0, 3] = float("nan")
    save_sam(sam, tmp_path / "ours.safetensors")
    save_plain_sam(sam, tmp_path / "plain.pth")
    for path in (tmp_path / "ours.safetensors", tmp_path / "plain.pth"):
        with refused(CheckpointError, match=r"mask_decoder\.iou_token\.weight holds NaN, infinity"):
            sam_model_registry["blvit_tiny"](path)


def test_a_model_without_checkpoint_warns_that_its_weights_are_random() -> None:
    with pytest.warns(UserWarning, match="vit_tiny: no checkpoint given, every weight is random"):
        model = sam_model_registry["vit_tiny"](layers=1, global_layers=(1,), dim=6)
    assert isinstance(model, sa.Sam)


def test_blvit_s_t_comes_with_its_weights() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sam = sam_model_registry["blvit_s_t"]()
    own = {name: getattr(sam.config, name) for name in THRESHOLDS}
    assert sam.config == override(MODELS["blvit_s_t"], **own)
    assert sam.image_encoder.blocks[1].little.mlp.leave.weight.abs().sum() > 0
    assert SHIPPED_WEIGHTS.stat().st_size <= 64e6


def test_options_replace_the_configs_fields(sam: Sam, tmp_path: Path) -> None:
    save_sam(sam, tmp_path / "ours.safetensors")
    model = sam_model_registry["blvit_tiny"](
        checkpoint=tmp_path / "ours.safetensors", window=3, compute_dtype=torch.bfloat16, keep_ratio=0.5
    )
    assert (model.config.window, model.config.compute_dtype) == (3, "bfloat16")
    assert model.image_encoder.keep_ratio == 0.5
    assert_same_weights(model, sam.state_dict())


def test_an_unknown_option_is_refused_by_name(refused: Refused) -> None:
    with refused(ValueError, match="blvit_b_t: unknown option windw"):
        sam_model_registry["blvit_b_t"](windw=14)


# ours ----------------------------------------------------------------------------------------------------------------


def test_a_saved_model_comes_back_with_its_config_and_weights(sam: Sam, tmp_path: Path) -> None:
    save_sam(sam, tmp_path / "ours.safetensors")
    loaded = load_sam(tmp_path / "ours.safetensors")
    assert loaded.config == sam.config
    assert_same_weights(loaded, sam.state_dict())


def test_a_saved_model_loads_without_a_word(sam: Sam, tmp_path: Path) -> None:
    save_sam(sam, tmp_path / "ours.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_sam(tmp_path / "ours.safetensors")
        sam_model_registry["blvit_tiny"](tmp_path / "ours.safetensors")


def test_a_saved_dense_model_comes_back(tiny_dense: Config, randomize: Randomize, tmp_path: Path) -> None:
    dense = randomize(build_sam(tiny_dense()))
    save_sam(dense, tmp_path / "dense.safetensors")
    assert_same_weights(sam_model_registry["vit_tiny"](tmp_path / "dense.safetensors"), dense.state_dict())


def test_bfloat16_files_round_matrices_and_keep_vectors(sam: Sam, tmp_path: Path) -> None:
    save_sam(sam, tmp_path / "half.safetensors", dtype=torch.bfloat16)
    parameters = dict(sam.named_parameters())
    expected = {
        name: value.bfloat16().float() if name in parameters and value.dim() > 1 else value
        for name, value in sam.state_dict().items()
    }
    assert_same_weights(load_sam(tmp_path / "half.safetensors"), expected)


def test_bfloat16_files_have_half_the_size(sam: Sam, tmp_path: Path) -> None:
    save_sam(sam, tmp_path / "full.safetensors")
    save_sam(sam, tmp_path / "half.safetensors", dtype=torch.bfloat16)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] / sizes[1] == pytest.approx(0.5, abs=0.02)


def test_a_model_loaded_from_bfloat16_computes_in_float32(sam: Sam, tmp_path: Path) -> None:
    save_sam(sam, tmp_path / "half.safetensors", dtype=torch.bfloat16)
    assert {value.dtype for value in load_sam(tmp_path / "half.safetensors").parameters()} == {torch.float32}


def test_metadata_is_stored_beside_the_config(sam: Sam, tmp_path: Path) -> None:
    save_sam(sam, tmp_path / "ours.safetensors", metadata={"recipe": "test"})
    with safe_open(tmp_path / "ours.safetensors", framework="pt") as file:
        assert file.metadata() == {"recipe": "test", CONFIG_KEY: sam.config.to_json()}


def test_one_of_ours_under_another_name_is_refused(sam: Sam, tmp_path: Path, refused: Refused) -> None:
    save_sam(sam, tmp_path / "ours.safetensors")
    with refused(CheckpointError, match="holds a blvit_tiny, not a blvit_b_t"):
        sam_model_registry["blvit_b_t"](tmp_path / "ours.safetensors")


@pytest.mark.parametrize("missing", ["image_encoder.routers.0.score.weight", "image_encoder.blocks.1.alpha_attn"])
def test_one_of_ours_with_a_part_missing_is_no_plain_sam(
    sam: Sam, tmp_path: Path, refused: Refused, missing: str
) -> None:
    state = {name: value for name, value in sam.state_dict().items() if name != missing}
    save_file(state, tmp_path / "ours.safetensors", metadata={CONFIG_KEY: sam.config.to_json()})
    with refused(CheckpointError, match=f"does not fit blvit_tiny: {missing} missing"):
        load_sam(tmp_path / "ours.safetensors")


def test_one_of_ours_from_before_a_setting_was_added_has_its_default(sam: Sam, tmp_path: Path) -> None:
    config = {name: value for name, value in json.loads(sam.config.to_json()).items() if name != "router_scores"}
    save_file(sam.state_dict(), tmp_path / "ours.safetensors", metadata={CONFIG_KEY: json.dumps(config)})
    assert load_sam(tmp_path / "ours.safetensors").config == sam.config


@pytest.mark.parametrize("config", ["", "nonsense", "[]", "{}", '{"from_the_future": 1}'])
def test_one_of_ours_with_an_unreadable_config_is_refused(tmp_path: Path, refused: Refused, config: str) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "ours.safetensors", metadata={CONFIG_KEY: config})
    with refused(CheckpointError, match="model config that cannot be used"):
        load_sam(tmp_path / "ours.safetensors")


# plain SAM -----------------------------------------------------------------------------------------------------------


def test_a_plain_sam_fills_all_it_has_weights_for(plain: tuple[sa.Sam, Path], build_tiny: Callable[..., Sam]) -> None:
    theirs, path = plain
    with pytest.warns(UserWarning, match="plain SAM"):
        state = build_tiny(path).state_dict()
    expected = theirs.state_dict()
    assert {name for name in state if not is_big_little(name)} == set(expected)
    assert [name for name, value in expected.items() if not torch.equal(state[name], value)] == []


def test_a_plain_sam_leaves_the_big_little_parts_at_their_start(
    plain: tuple[sa.Sam, Path], build_tiny: Callable[..., Sam]
) -> None:
    with pytest.warns(UserWarning, match="routers and efficiency blocks are untrained"):
        state = build_tiny(plain[1]).state_dict()
    assert all(
        state[f"image_encoder.blocks.{block}.alpha_{half}"] == 0 for block in (1, 2, 3) for half in ("attn", "mlp")
    )
    assert not state["image_encoder.blocks.1.little.attn.proj.weight"].any()


def test_the_warning_about_a_plain_sam_names_the_model_and_the_file(
    plain: tuple[sa.Sam, Path], build_tiny: Callable[..., Sam]
) -> None:
    with pytest.warns(UserWarning, match=r"blvit_tiny: .*sam\.pth is a plain SAM"):
        build_tiny(plain[1])


def test_one_of_our_dense_models_fills_a_big_little_one(
    tiny_dense: Config, build_tiny: Callable[..., Sam], tmp_path: Path
) -> None:
    dense = build_sam(tiny_dense())
    save_sam(dense, tmp_path / "dense.safetensors")
    with pytest.warns(UserWarning, match="plain SAM"):
        state = build_tiny(tmp_path / "dense.safetensors").state_dict()
    assert [name for name, value in dense.state_dict().items() if not torch.equal(state[name], value)] == []


def test_a_plain_sam_needs_its_models_name(plain: tuple[sa.Sam, Path], refused: Refused) -> None:
    with refused(CheckpointError, match="is a plain SAM checkpoint, without a config; load it as sam_model_registry"):
        load_sam(plain[1])


def test_a_plain_sam_written_by_us_loads_strictly_in_segment_anything(
    sam: Sam, tiny: Config, original_sam: OriginalSam, tmp_path: Path
) -> None:
    save_plain_sam(sam, tmp_path / "plain.pth")
    theirs = original_sam(tiny())
    theirs.load_state_dict(torch.load(tmp_path / "plain.pth", weights_only=True), strict=True)
    ours = sam.state_dict()
    assert_same_weights(theirs, {name: value for name, value in ours.items() if not is_big_little(name)})


def test_writing_a_plain_sam_tells_what_it_left_out(sam: Sam, tmp_path: Path) -> None:
    left_out = save_plain_sam(sam, tmp_path / "plain.pth")
    assert left_out == sorted(name for name in sam.state_dict() if is_big_little(name))
    assert "image_encoder.outside" in left_out


def test_every_warning_points_at_the_line_that_loads(
    plain: tuple[sa.Sam, Path], build_tiny: Callable[..., Sam]
) -> None:
    theirs, path = plain
    torch.save({"model": theirs.state_dict()}, path)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        build_tiny(path, image_size=64)
    messages = " ".join(str(warning.message) for warning in warned)
    assert all(part in messages for part in ("unwrapped", "interpolated", "plain SAM"))
    lines = {linecache.getline(warning.filename, warning.lineno).strip() for warning in warned}
    assert len(lines) == 1
    assert 'sam_model_registry["blvit_tiny"](checkpoint' in lines.pop()


# what does not fit ---------------------------------------------------------------------------------------------------


def refit(path: Path, **changes: Tensor | None) -> None:
    """Change the plain checkpoint at `path`: None removes a name."""
    state = {**torch.load(path, weights_only=True), **changes}
    torch.save({name: value for name, value in state.items() if value is not None}, path)


def test_a_missing_weight_is_named(
    plain: tuple[sa.Sam, Path], build_tiny: Callable[..., Sam], refused: Refused
) -> None:
    refit(plain[1], **{"image_encoder.blocks.0.attn.qkv.bias": None})
    with refused(CheckpointError, match=r"does not fit blvit_tiny: image_encoder\.blocks\.0\.attn\.qkv\.bias missing$"):
        build_tiny(plain[1])


def test_an_unexpected_weight_is_named(
    plain: tuple[sa.Sam, Path], build_tiny: Callable[..., Sam], refused: Refused
) -> None:
    refit(plain[1], **{"image_encoder.adapter.weight": torch.zeros(3)})
    with refused(CheckpointError, match=r"does not fit blvit_tiny: image_encoder\.adapter\.weight unexpected$"):
        build_tiny(plain[1])


def test_a_weight_of_the_wrong_shape_is_named_with_both_shapes(
    plain: tuple[sa.Sam, Path], build_tiny: Callable[..., Sam], refused: Refused
) -> None:
    refit(plain[1], **{"image_encoder.blocks.0.attn.qkv.bias": torch.zeros(7)})
    with refused(CheckpointError, match=r"attn\.qkv\.bias \(7,\) instead of \(96,\) of the wrong shape$"):
        build_tiny(plain[1])


def test_many_misfits_are_counted_instead_of_listed(plain: tuple[sa.Sam, Path], refused: Refused) -> None:
    with refused(CheckpointError, match="and [0-9]+ more missing; .* and [0-9]+ more of the wrong shape") as error:
        sam_model_registry["vit_tiny"](plain[1], image_size=128)
    assert len(str(error.value)) < 1500


# another image side --------------------------------------------------------------------------------------------------


def test_another_image_side_interpolates_positions_as_segment_anything_does(
    tiny_dense: Config, original_sam: OriginalSam, tmp_path: Path
) -> None:
    stored = original_sam(tiny_dense())
    torch.save(stored.state_dict(), tmp_path / "128.pth")
    small = original_sam(tiny_dense(image_size=64))
    # segment-anything interpolates tables that do not match its grid when it runs
    for ours, theirs in zip(small.image_encoder.blocks, stored.image_encoder.blocks, strict=True):
        ours.attn.rel_pos_h, ours.attn.rel_pos_w = theirs.attn.rel_pos_h, theirs.attn.rel_pos_w
    state = stored.state_dict()
    position = state["image_encoder.pos_embed"].permute(0, 3, 1, 2)
    state["image_encoder.pos_embed"] = F.interpolate(position, (4, 4), mode="bicubic").permute(0, 2, 3, 1)
    small.load_state_dict(state)

    config = tiny_dense(image_size=64)
    fields = {
        field: getattr(config, field) for field in config.__dataclass_fields__ if field not in ("name", "keep_ratio")
    }
    with pytest.warns(UserWarning, match="positions interpolated from a side of 128 to 64 pixels"):
        model = sam_model_registry["vit_tiny"](tmp_path / "128.pth", **fields)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.image_encoder(x), small.image_encoder(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("image_size", [64, 192])
def test_one_of_ours_loads_at_another_image_side(sam: Sam, tmp_path: Path, image_size: int) -> None:
    save_sam(sam, tmp_path / "ours.safetensors")
    with pytest.warns(UserWarning, match=f"positions interpolated from a side of 128 to {image_size} pixels"):
        other = load_sam(tmp_path / "ours.safetensors", image_size=image_size)
    image = torch.rand(1, 3, image_size, image_size)
    assert other.image_encoder(image).shape == (1, 256, image_size // 16, image_size // 16)


@pytest.mark.filterwarnings("ignore:.*positions interpolated")
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_loads_at_another_image_side(tiny: Config, tmp_path: Path, variant: str) -> None:
    sam = build_sam(tiny(**VARIANTS[variant]))
    save_sam(sam, tmp_path / "sam.safetensors")
    loaded = load_sam(tmp_path / "sam.safetensors", image_size=256)
    assert loaded.config == override(sam.config, image_size=256)
    assert loaded.image_encoder(torch.zeros(1, 3, 256, 256)).shape == (1, 256, 16, 16)


def test_another_image_side_keeps_all_but_the_positions(sam: Sam, tmp_path: Path) -> None:
    save_sam(sam, tmp_path / "ours.safetensors")
    with pytest.warns(UserWarning, match="positions interpolated"):
        state = load_sam(tmp_path / "ours.safetensors", image_size=64).state_dict()
    changed = {name for name, value in sam.state_dict().items() if not torch.equal(state[name], value)}
    tables = {
        f"image_encoder.blocks.{block}.{part}attn.rel_pos_{axis}"
        for block in (1, 3)  # the global layers, counted from 0
        for part in ("", "little.")
        for axis in "hw"
    }
    assert changed == {"image_encoder.pos_embed"} | tables


# files ---------------------------------------------------------------------------------------------------------------


def test_a_models_file_is_written_atomically(sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ours.safetensors"
    save_sam(sam, path)
    before = file_sha256(path)

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("sam_blvit.checkpoint.format.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_sam(sam, path)
    assert file_sha256(path) == before
    assert list(tmp_path.iterdir()) == [path]


# what commands name --------------------------------------------------------------------------------------------------


@pytest.fixture
def ours(sam: Sam, tmp_path: Path) -> Path:
    """A checkpoint of ours, in the working directory of a test that has one."""
    path = tmp_path / "ours.safetensors"
    save_sam(sam, path)
    return path


@pytest.mark.parametrize("by", ["checkpoint", "model"])
def test_a_commands_flags_choose_keep_ratio_and_input_side(ours: Path, tiny: Config, by: str) -> None:
    named: dict[str, Any] = {"model": "blvit_tiny", "checkpoint": ours} if by == "checkpoint" else {"model": str(ours)}
    with pytest.warns(UserWarning, match="interpolated from a side of 128 to 64 pixels"):
        changed = load_model(WeightsConfig(**named, keep_ratio=0.5, image_size=64, device="cpu"))
    assert changed.image_encoder.keep_ratio == 0.5
    assert changed.image_encoder.img_size == 64
    assert load_model(WeightsConfig(**named, device="cpu")).config == tiny()


def test_a_commands_flag_compiles_the_encoder(ours: Path, graphs: CompileCounter) -> None:
    sam = load_model(WeightsConfig(model=str(ours), device="cpu", compile=True))
    with torch.no_grad():
        sam.image_encoder(torch.zeros(1, 3, 128, 128))
    assert graphs.frame_count == 1


def test_a_model_may_be_the_path_of_one_of_ours(sam: Sam, ours: Path) -> None:
    assert_same_weights(load_model(WeightsConfig(model=str(ours), device="cpu")), sam.state_dict())


def test_a_model_by_path_takes_no_checkpoint_beside_it(ours: Path, tmp_path: Path, refused: Refused) -> None:
    with refused(ValueError, match=r"ours\.safetensors is a checkpoint already; leave out checkpoint=.*other\.pth"):
        load_model(WeightsConfig(model=str(ours), checkpoint=tmp_path / "other.pth", device="cpu"))


def test_a_plain_sam_is_no_model_by_path(plain: tuple[sa.Sam, Path], refused: Refused) -> None:
    with refused(CheckpointError, match="is a plain SAM checkpoint, without a config"):
        load_model(WeightsConfig(model=str(plain[1]), device="cpu"))


def test_a_file_that_is_named_like_a_model_does_not_stand_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blvit_s_t").write_text("notes about the model")
    monkeypatch.chdir(tmp_path)
    assert load_model(WeightsConfig(model="blvit_tiny", device="cpu")).config == MODELS["blvit_tiny"]


def test_a_path_that_is_neither_model_nor_file_is_refused(refused: Refused) -> None:
    with refused(ValueError, match=r"checkpoint nowhere\.safetensors is not a file"):
        load_model(WeightsConfig(model="nowhere.safetensors", device="cpu"))


# models that are not ours --------------------------------------------------------------------------------------------

RIVAL = """
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

NUMBER = 3


def build(checkpoint=None):
    transformer = TwoWayTransformer(depth=1, embedding_dim=16, num_heads=2, mlp_dim=16)
    sam = Sam(
        ImageEncoderViT(img_size=32, embed_dim=8, depth=1, num_heads=2, out_chans=16, window_size=2),
        PromptEncoder(embed_dim=16, image_embedding_size=(2, 2), input_image_size=(32, 32), mask_in_chans=4),
        MaskDecoder(transformer_dim=16, transformer=transformer),
    )
    if checkpoint is not None:
        assert isinstance(checkpoint, str)
        sam.load_state_dict(torch.load(checkpoint, weights_only=True))
    return sam.train()


def half():
    sam = build()
    del sam.prompt_encoder, sam.mask_decoder
    return sam


def nothing():
    return None
"""


@pytest.fixture
def rival(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the working directory that builds somebody's Sam."""
    name = "rival_of_these_tests"
    (tmp_path / f"{name}.py").write_text(RIVAL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def test_a_model_may_be_a_function_of_a_module_in_the_working_directory(rival: str) -> None:
    model = load_any(WeightsConfig(model=f"{rival}:build", device="cpu"))
    assert type(model) is sa.Sam
    assert model.image_encoder.img_size == 32


def test_a_foreign_model_is_measured_in_eval_mode(rival: str) -> None:
    model = load_any(WeightsConfig(model=f"{rival}:build", device="cpu"))
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("content", [{"other": torch.zeros(1)}, "no weights"])
def test_a_builder_that_fails_is_one_line(rival: str, tmp_path: Path, content: Any, refused: Refused) -> None:
    torch.save(content, tmp_path / "rival.pth")
    with refused(ValueError, match=f"model={rival}:build cannot be built "):
        load_any(WeightsConfig(model=f"{rival}:build", checkpoint=tmp_path / "rival.pth", device="cpu"))


def test_a_foreign_model_is_given_its_checkpoint(rival: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = load_any(WeightsConfig(model=f"{rival}:build", device="cpu"))
    torch.save(first.state_dict(), tmp_path / "rival.pth")
    second = load_any(WeightsConfig(model=f"{rival}:build", checkpoint=tmp_path / "rival.pth", device="cpu"))
    assert_same_weights(second, first.state_dict())


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("half", r"returned a Sam without prompt_encoder, mask_decoder; a segment_anything Sam is expected"),
        ("nothing", r"returned a NoneType without image_encoder, .*; a segment_anything Sam is expected"),
    ],
)
def test_what_is_no_sam_is_refused_with_what_it_lacks(rival: str, refused: Refused, function: str, told: str) -> None:
    with refused(ValueError, match=f"model={rival}:{function} {told}"):
        load_any(WeightsConfig(model=f"{rival}:{function}", device="cpu"))


@pytest.mark.parametrize("function", ["nosuch", "NUMBER"])
def test_a_function_that_there_is_not_is_refused(rival: str, refused: Refused, function: str) -> None:
    with refused(ValueError, match=f"model={rival}:{function}"):
        load_any(WeightsConfig(model=f"{rival}:{function}", device="cpu"))


@pytest.mark.parametrize("model", ["nosuch_module:build", "rival_of_these_tests.py:build", "../rival:build", ":build"])
def test_a_module_that_there_is_not_is_refused(rival: str, refused: Refused, model: str) -> None:
    with refused(ValueError, match=re.escape(f"model={model}")):
        load_any(WeightsConfig(model=model, device="cpu"))


def test_a_module_that_lacks_another_says_which(rival: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / f"{rival}.py").write_text("import nosuch_kernels\n" + RIVAL)
    with refused(ValueError, match=f"model={rival}:build cannot be imported .*nosuch_kernels"):
        load_any(WeightsConfig(model=f"{rival}:build", device="cpu"))


@pytest.mark.parametrize("setting", [{"keep_ratio": 0.5}, {"image_size": 64}, {"base": Path("sam.pth")}])
def test_a_foreign_model_takes_none_of_our_settings(rival: str, refused: Refused, setting: dict[str, Any]) -> None:
    with refused(ValueError, match=f"model={rival}:build has no such setting"):
        load_any(WeightsConfig(model=f"{rival}:build", device="cpu", **setting))


def test_ours_is_any_model_too(sam: Sam, ours: Path, tmp_path: Path) -> None:
    with_colon = ours.rename(tmp_path / "step:9.safetensors")
    for model in (
        load_any(WeightsConfig(model=str(with_colon), device="cpu")),
        load_any(WeightsConfig(model="blvit_tiny", checkpoint=with_colon, device="cpu")),
    ):
        assert isinstance(model, Sam)
        assert_same_weights(model, sam.state_dict())
