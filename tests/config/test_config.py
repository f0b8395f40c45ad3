"""Configs: the registry, what a config refuses, and its JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

from sam_blvit.config import (
    MODELS,
    PRESETS,
    CacheConfig,
    CalibrationConfig,
    EvaluationConfig,
    FinetuneConfig,
    ModelConfig,
    ReportConfig,
    SubsetConfig,
    check_keep_ratio,
    compose,
    kinds_of,
    model_config,
    override,
    parts_of,
    settings_of,
)

Config = Callable[..., ModelConfig]
Refused = Callable[..., Any]


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h", "blvit_b_t", "blvit_l_s", "blvit_h_b", "blvit_tiny"])
def test_a_model_is_registered_under_its_own_name(name: str) -> None:
    assert MODELS[name].name == name


@pytest.mark.parametrize(
    ("name", "big", "little", "first_routed", "little_layers", "routers_after", "global_layers"),
    [
        ("blvit_b_t", (768, 12, 12), (192, 3), 2, range(2, 13), (1, 4, 7, 10), (3, 6, 9, 12)),
        ("blvit_h_b", (1280, 16, 32), (768, 12), 10, range(10, 33, 2), (8, 16, 24), (8, 16, 24, 32)),
        ("blvit_l_s", (1024, 16, 24), (384, 6), 7, range(7, 24, 2), (6, 12, 18), (6, 12, 18, 24)),
    ],
)
def test_the_big_little_models_are_the_designs(
    name: str,
    big: tuple[int, int, int],
    little: tuple[int, int],
    first_routed: int,
    little_layers: range,
    routers_after: tuple[int, ...],
    global_layers: tuple[int, ...],
) -> None:
    config = MODELS[name]
    assert (config.dim, config.heads, config.layers) == big
    assert (config.little_dim, config.little_heads) == little
    assert config.routed_from == first_routed
    assert config.little_layers == tuple(little_layers)
    assert config.routers_after == routers_after
    assert config.global_layers == global_layers
    assert (config.image_size, config.window, config.rel_pos_window, config.keep_ratio) == (1024, 16, 14, 0.25)


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_sams_own_models_are_dense_with_padded_windows_of_14(name: str) -> None:
    config = MODELS[name]
    assert not config.routed
    assert config.window == 14
    assert config.padded


@pytest.mark.parametrize("name", ["blvit_b_t", "blvit_l_s", "blvit_h_b", "blvit_tiny"])
def test_a_big_little_model_takes_rectangles(name: str) -> None:
    assert not MODELS[name].square_input


def test_sams_window_takes_the_square_even_where_it_divides_the_grid() -> None:
    config = override(MODELS["blvit_b_t"], window=14, image_size=224)
    assert not config.padded
    assert config.square_input


@pytest.mark.parametrize("name", ["blvit_b_t", "blvit_l_s", "blvit_h_b"])
def test_a_big_little_model_with_sams_window_takes_sams_square(name: str) -> None:
    assert model_config(name, window=14).square_input


def test_a_dense_model_takes_sams_square_even_where_the_window_divides_the_grid(tiny_dense: Config) -> None:
    config = tiny_dense(window=4)
    assert not config.padded
    assert config.square_input


def test_a_config_survives_json(tiny: Config) -> None:
    config = tiny(keep_ratio=0.5, compute_dtype="bfloat16", window=3)
    assert ModelConfig.from_json(config.to_json()) == config


def test_json_of_a_config_is_one_line(tiny: Config) -> None:
    assert "\n" not in tiny().to_json()


def test_json_with_an_unknown_field_is_refused_by_name(tiny: Config, refused: Refused) -> None:
    fields = json.loads(tiny().to_json())
    with refused(ValueError, match="from_the_future"):
        ModelConfig.from_json(json.dumps({**fields, "from_the_future": 1}))


def test_a_config_cannot_be_changed(tiny: Config) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny().window = 3  # type: ignore[misc]


def test_override_replaces_fields_and_nothing_else(tiny: Config) -> None:
    assert dataclasses.replace(override(tiny(), window=3, keep_ratio=1), window=4, keep_ratio=0.25) == tiny()
    assert override(tiny(), window=3).window == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_override_takes_a_torch_dtype_or_its_name(tiny: Config, dtype: object) -> None:
    assert override(tiny(), compute_dtype=dtype).compute_dtype == "bfloat16"


def test_override_refuses_an_unknown_option_by_name(tiny: Config, refused: Refused) -> None:
    with refused(ValueError, match="unknown option windw"):
        override(tiny(), windw=14)


def test_an_unknown_model_is_refused_with_the_names_there_are(refused: Refused) -> None:
    with refused(ValueError, match="no model named 'blvit_x'") as error:
        model_config("blvit_x")
    assert all(name in str(error.value) for name in MODELS)


@pytest.mark.parametrize("value", [0, 0.25, 1, np.float32(0.25)])
def test_a_keep_ratio_in_0_to_1_is_returned_as_a_float(value: float) -> None:
    checked = check_keep_ratio(value)
    assert checked == value
    assert type(checked) is float


@pytest.mark.parametrize("value", [math.nan, "x", True, -1, 2, math.inf, None])
def test_a_keep_ratio_that_is_no_number_in_0_to_1_is_refused(value: object, refused: Refused) -> None:
    with refused(ValueError, match=f"keep_ratio={value!r} is not"):
        check_keep_ratio(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 100),
        ("image_size", 0),
        ("image_size", -16),
        ("window", 0),
        ("window", 14.5),
        ("heads", 5),
        ("compute_dtype", "float16"),
        ("keep_ratio", 1.5),
        ("little_heads", 3),
        ("little_heads", 0),
        ("routers_after", ()),
        ("routers_after", (2, 3)),
        ("little_layers", (1, 2)),
        ("router", "grid"),
        ("router_scores", "tokens"),
        ("primary_keys", "none"),
        ("pool", 2),
        ("dim", 0),
        ("heads", 0),
        ("layers", -1),
        ("rel_pos_window", 0),
    ],
)
def test_a_config_that_makes_no_model_is_refused(tiny: Config, field: str, value: object, refused: Refused) -> None:
    with refused(ValueError, match=re.escape(f"{field}={value!r}")):
        tiny(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("routers_after", (1,)),
        ("little_layers", (1,)),
        ("router", "random"),
        ("router_scores", "two_class"),
        ("score_scaling", False),
        ("primary_keys", "primary"),
        ("pool", 2),
        ("broadcast", True),
        ("little_windowed", True),
    ],
)
def test_a_dense_config_has_no_routed_parts(tiny_dense: Config, field: str, value: object, refused: Refused) -> None:
    with refused(ValueError, match=re.escape(f"{field}={value!r}: no effect, vit_tiny is dense")):
        tiny_dense(**{field: value})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"router": "random"}, "router=random has no scores to scale by; add score_scaling=false"),
        ({"primary_keys": "primary", "window": 3}, "primary_keys=primary needs windows that divide the grid of 8"),
        ({"primary_keys": "pooled", "pool": 3}, "pool=3 does not divide window=4"),
        ({"primary_keys": "pooled", "pool": 0}, "pool=0 does not divide window=4"),
        ({"primary_keys": "primary", "pool": 2}, "pool=2: no effect without primary_keys=pooled"),
        ({"broadcast": True, "little_layers": ()}, "broadcast needs primary_keys=pooled"),
        ({"broadcast": True, "primary_keys": "pooled"}, "and little_layers empty"),
        ({"little_windowed": True, "little_layers": ()}, "little_windowed: no effect without little_layers"),
    ],
)
def test_a_variant_that_cannot_be_is_refused(
    tiny: Config, fields: dict[str, object], words: str, refused: Refused
) -> None:
    with refused(ValueError, match=re.escape(words)):
        tiny(**fields)


@pytest.mark.parametrize("field", ["global_layers", "routers_after", "little_layers"])
def test_a_layer_that_there_is_not_is_refused(tiny: Config, field: str, refused: Refused) -> None:
    with refused(ValueError, match=f"{field} names layer 9; blvit_tiny has layers 1 to 4"):
        tiny(**{field: (1, 3, 9)})


def test_a_dense_model_is_not_built_at_another_keep_ratio_than_1(tiny_dense: Config, refused: Refused) -> None:
    with refused(ValueError, match=r"keep_ratio=0.5: vit_tiny is dense, its keep_ratio is always 1"):
        override(tiny_dense(), keep_ratio=0.5)
    assert override(tiny_dense(), keep_ratio=1).keep_ratio == 1


@pytest.mark.parametrize(
    ("config_type", "seed"),
    [(EvaluationConfig, {"seeds": (0, -1)}), (CalibrationConfig, {"seed": -1}), (FinetuneConfig, {"seed": -1})],
)
def test_a_negative_seed_is_refused(config_type: type, seed: dict[str, Any], refused: Refused) -> None:
    with refused(ValueError, match="seed=-1 is negative"):
        compose(config_type, **required(config_type), **seed)


# evaluation ----------------------------------------------------------------------------------------------------------


def required(config_type: type) -> dict[str, Path]:
    """A path for each setting without a default."""
    parts = parts_of(config_type)
    found: dict[str, Path] = {}
    for field in dataclasses.fields(config_type):
        if field.name in parts:
            found |= required(parts[field.name])
        elif field.default is dataclasses.MISSING:
            found[field.name] = Path(field.name)
    return found


def evaluation(**settings: Any) -> EvaluationConfig:
    return EvaluationConfig(**required(EvaluationConfig), **settings)


def test_without_a_source_of_boxes_an_evaluation_measures_miou() -> None:
    assert not evaluation().measures_ap


@pytest.mark.parametrize("source", [{"detections": Path("boxes.json")}, {"boxes": "gt"}])
def test_with_a_source_of_boxes_an_evaluation_measures_ap(source: dict[str, Any]) -> None:
    assert evaluation(**source).measures_ap


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"select": "best"}, "select='best' is not one of argmax, single, oracle, sam"),
        ({"box_source": "mean"}, "box_source='mean' is not one of ann, mask"),
        ({"subset": "val"}, "subset='val' is not one of full, minival"),
        ({"boxes": "detr"}, "boxes='detr' is not one of gt"),
        ({"table": "json"}, "table='json' is not one of csv, parquet"),
        ({"prompts_per_batch": 0}, "prompts_per_batch=0 is not a positive number"),
        ({"boxes": "gt", "refine": -1}, "refine=-1 is negative; 0 decodes each box once"),
        ({"refine": -1}, "refine=-1 is negative"),
        ({"seeds": ()}, "seeds=() is empty or has duplicates; name each seed once, as in 0,1,2"),
        ({"seeds": (0, 1, 0)}, "seeds=(0, 1, 0) is empty or has duplicates"),
        ({"keep_ratios": (0.25, 1.5)}, "keep_ratio=1.5 is not a number in [0, 1]"),
        ({"keep_ratios": (math.nan,)}, "keep_ratio=nan is not a number in [0, 1]"),
        ({"keep_ratios": (0.25, 0.5, 0.25)}, "keep_ratios=(0.25, 0.5, 0.25): name each once"),
        ({"keep_ratios": (0.25,), "keep_ratio": 0.5}, "keep_ratios=(0.25,): name each once, and leave out keep_ratio"),
        ({"keep_ratio": 2}, "keep_ratio=2 is not a number in [0, 1]"),
        ({"device": "tpu"}, "device='tpu' is not one of auto, cpu, cuda, mps"),
        (
            {"detections": Path("boxes.json"), "boxes": "gt"},
            "detections=boxes.json and boxes=gt: choose one source of boxes",
        ),
    ],
)
def test_an_evaluation_refuses_what_makes_no_sense(settings: dict[str, Any], message: str, refused: Refused) -> None:
    with refused(ValueError, match=re.escape(message)):
        evaluation(**settings)


@pytest.mark.parametrize("source", [{"detections": Path("boxes.json")}, {"boxes": "gt"}])
@pytest.mark.parametrize(
    "setting",
    [
        {"protocol": "ritm"},
        {"box_source": "mask"},
        {"feed_mask": True},
        {"oracle": True},
        {"seeds": (0, 1)},
        {"perturb": ("dark",)},
        {"include_crowd": True},
        {"table": "parquet"},
    ],
)
def test_ap_refuses_a_setting_of_miou(source: dict[str, Any], setting: dict[str, Any], refused: Refused) -> None:
    (name,) = setting
    with refused(ValueError, match=f"^{name}: no effect when measuring AP, a setting for mIoU$"):
        evaluation(**source, **setting)


def test_miou_refuses_a_setting_of_ap(refused: Refused) -> None:
    with refused(ValueError, match="^refine: no effect when measuring mIoU, a setting for AP: add detections or boxes"):
        evaluation(refine=1)


def test_every_setting_of_the_other_task_is_named(refused: Refused) -> None:
    with refused(ValueError, match="^protocol, oracle, table: no effect"):
        evaluation(boxes="gt", table="parquet", oracle=True, protocol="ritm", select="single")


@pytest.mark.parametrize("source", [{}, {"boxes": "gt"}])
def test_settings_of_both_tasks_are_taken_by_both(source: dict[str, Any]) -> None:
    settings = {"select": "single", "subset": "minival", "keep_ratios": (0.25, 0.5), "prompts_per_batch": 1}
    config = evaluation(**source, **settings, resume=True)
    assert (config.select, config.keep_ratios) == ("single", (0.25, 0.5))


def test_a_calibration_refuses_batches_without_a_prompt(refused: Refused) -> None:
    with refused(ValueError, match="prompts_per_batch=0 is not a positive number"):
        CalibrationConfig(**required(CalibrationConfig), prompts_per_batch=0)


def test_a_calibration_needs_both_models_data_and_a_place() -> None:
    assert set(required(CalibrationConfig)) == {"vit_b", "vit_h", "annotations", "images", "output"}


def test_a_reports_words_without_a_flag_are_one_of_its_settings() -> None:
    fields = [field.name for field in dataclasses.fields(ReportConfig)]
    assert fields == ["runs", "output"]
    assert ReportConfig.positional in fields


# parts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config_type", [CacheConfig, FinetuneConfig])
def test_no_two_parts_have_a_setting_of_the_same_name(config_type: type) -> None:
    parts = [kind for name, kind in get_type_hints(config_type).items() if name in parts_of(config_type)]
    alone = len(dataclasses.fields(config_type)) - len(parts)
    assert parts
    assert len(kinds_of(config_type)) == alone + sum(len(dataclasses.fields(part)) for part in parts)


def test_a_config_of_parts_is_what_its_flat_settings_say() -> None:
    config = compose(FinetuneConfig, data=Path("d"), output=Path("o"), lr=1.0, keep_ratios=(0.5,))
    assert (config.data.data, config.run.output, config.optimizer.lr) == (Path("d"), Path("o"), 1.0)
    assert compose(FinetuneConfig, **settings_of(config)) == config


def test_an_unknown_flat_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="rate"):
        compose(FinetuneConfig, data=Path("d"), output=Path("o"), rate=1.0)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_settings_that_there_are_and_that_are_not_the_defaults(name: str) -> None:
    usual = settings_of(training())
    assert not [setting for setting, value in PRESETS[name].items() if usual[setting] == value]


WITHOUT_PACKAGES = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {*sys.stdlib_module_names, "sam_blvit"}:
            raise ImportError(f"{name} is not in the standard library")

sys.meta_path.insert(0, Refuse())
from sam_blvit.config import MODELS, FinetuneConfig, ModelConfig, compose
model = MODELS["blvit_tiny"]
assert ModelConfig.from_json(model.to_json()) == model
compose(FinetuneConfig, data="data", output="run", teacher=None)
try:
    import torch
except ImportError:
    print("alone")
"""


def test_configs_work_where_no_other_package_can_be_imported() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_PACKAGES], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("alone\n", "")


# training ------------------------------------------------------------------------------------------------------------

TEACHER = {"teacher": Path("sam.pth")}


def training(**settings: Any) -> FinetuneConfig:
    return compose(FinetuneConfig, **required(FinetuneConfig), **settings)


def test_a_training_run_needs_data_and_a_place_alone() -> None:
    assert set(required(FinetuneConfig)) == {"data", "output"}


@pytest.mark.parametrize(
    ("preset", "batch_size", "rates", "drop_path", "keep_ratios"),
    [
        ("default", 8, (5e-4, 6.25e-5, 5e-5), 0.1, (0.0, 0.125, 0.25, 0.5, 1.0)),
        ("paper", 1, (5e-4, 5e-4, 5e-4), 0.0, (0.25,)),
    ],
)
def test_a_preset_is_a_reading_of_the_papers_line_on_optimisation(
    preset: str, batch_size: int, rates: tuple[float, ...], drop_path: float, keep_ratios: tuple[float, ...]
) -> None:
    config = training(preset=preset)
    optimizer = config.optimizer
    assert config.machine.batch_size == batch_size
    assert (optimizer.lr, optimizer.encoder_lr, optimizer.decoder_lr) == rates
    assert (optimizer.drop_path, config.student.keep_ratios) == (drop_path, keep_ratios)


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 3),
        ("lr", 0.0),
        ("encoder_lr", 0.0),
        ("decoder_lr", 1e-3),
        ("drop_path", 0.2),
        ("keep_ratios", (0.5, 0.75)),
    ],
)
def test_what_is_named_wins_over_a_preset(preset: str, name: str, value: Any) -> None:
    usual, config = settings_of(training(preset=preset)), settings_of(training(preset=preset, **{name: value}))
    assert config[name] == value
    others = {"batch_size", "lr", "encoder_lr", "decoder_lr", "drop_path", "keep_ratios"} - {name}
    assert all(config[other] == usual[other] for other in others)


@pytest.mark.parametrize(("batch_size", "masks"), [(1, 64), (2, 32), (4, 16), (8, 16)])
def test_masks_are_64_a_step_of_a_process_and_at_least_16_an_image(batch_size: int, masks: int) -> None:
    assert training(batch_size=batch_size).masks_per_image == masks
    assert training(batch_size=batch_size, masks_per_image=5).masks_per_image == 5


@pytest.mark.parametrize(
    ("settings", "validates"),
    [
        ({}, False),
        ({"holdout": 2}, True),
        ({"val_manifest": Path("val.tsv")}, True),
        ({"val_annotations": Path("lvis.json"), "val_images": Path("val2017")}, True),
    ],
)
def test_a_run_validates_where_there_is_something_to_validate_with(settings: dict[str, Any], validates: bool) -> None:
    assert training(**settings).validates is validates


@pytest.mark.parametrize(
    "name",
    [
        "accumulate", "batch_size", "checkpoint_every", "log_every", "masks_per_image", "mask_side", "max_bad_steps",
        "max_steps", "schedule_steps", "val_limit", "warm_start_images", "warm_start_steps", "window",
    ],
)  # fmt: skip
def test_what_must_be_positive_is_refused_at_0(name: str, refused: Refused) -> None:
    with refused(ValueError, f"^{name}=0 is not a positive number$"):
        training(**{name: 0})
    assert settings_of(training(**{name: 1}))[name] == 1


@pytest.mark.parametrize(
    "name",
    [
        "correction_rounds", "decoder_lr", "distillation_weight", "encoder_lr", "holdout", "lr", "picture_every",
        "listwise_weight", "point_sample", "prompt_lr", "warmup_steps", "weight_decay", "workers",
    ],
)  # fmt: skip
def test_what_may_be_0_is_refused_below(name: str, refused: Refused) -> None:
    with refused(ValueError, f"^{name}=-1 is negative$"):
        training(**{name: -1})
    assert settings_of(training(**{name: 0}))[name] == 0


@pytest.mark.parametrize("name", ["distillation_mse", "distillation_layers", "kd_only_steps", "validate_every"])
def test_what_may_be_0_and_needs_another_setting_is_refused_below(name: str, refused: Refused) -> None:
    with refused(ValueError, f"^{name}=-1 is negative$"):
        training(**TEACHER, holdout=1, **{name: -1})


@pytest.mark.parametrize("name", ["lr", "weight_decay", "distillation_weight"])
def test_a_number_that_is_none_is_refused(name: str, refused: Refused) -> None:
    with refused(ValueError, f"^{name}=nan is not a number from 0 up$"):
        training(**{name: math.nan})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "sam"}, "preset='sam' is not one of default, paper"),
        ({"device": "tpu"}, "device='tpu' is not one of auto, cpu, cuda, mps"),
        ({"freeze": "encoder"}, "freeze='encoder' is not one of none, performance"),
        ({"precision": "fp16"}, "precision='fp16' is not one of auto, fp32, bf16"),
        ({"prompts": "sam2"}, "prompts='sam2' is not one of mixed, sam11, evs"),
        ({"listwise_weight": 1.0, "sharding": "fsdp"}, "listwise_weight=1.0 needs whole layers"),
        (
            {**TEACHER, "warm_start": "layerwise", "options": ("little_layers=",)},
            "warm_start=layerwise: no effect, the model has no efficiency blocks",
        ),
        ({"model": "vit_tiny", "listwise_weight": 1.0}, "listwise_weight: no effect, vit_tiny is dense"),
        (
            {"options": ("router=random", "score_scaling=false"), "listwise_weight": 1.0},
            "listwise_weight=1.0: no effect with router=random",
        ),
        ({"options": ("router_scores=sigmoid",)}, "router_scores='sigmoid' is not one of window, two_class"),
        ({"options": ("dim",)}, "options: 'dim' is not NAME=VALUE"),
        ({"options": ("dim=100",)}, "dim=100 does not divide into heads=6"),
        ({"model": "blvit_x"}, "no model named 'blvit_x'"),
        ({"sharding": "zero"}, "sharding='zero' is not one of ddp, fsdp"),
        ({"warm_start": "all"}, "warm_start='all' is not one of none, layerwise"),
        ({"resume": "always"}, "resume='always' is not one of auto, never"),
        ({"epochs": 0}, "epochs=0 is not a positive number; the paper's is 10"),
        ({"epochs": math.nan}, "epochs=nan is not a positive number"),
        ({"clip_norm": 0}, "clip_norm=0 is not a positive number"),
        ({"smallest_crop": 0}, "smallest_crop=0 is outside (0, 1]"),
        ({"smallest_crop": 1.5}, "smallest_crop=1.5 is outside (0, 1]"),
        ({"layer_decay": 0}, "layer_decay=0 is outside (0, 1]"),
        ({"drop_path": 1}, "drop_path=1 is outside [0, 1)"),
        ({"drop_path": -0.1}, "drop_path=-0.1 is outside [0, 1)"),
        ({"ema": 1}, "ema=1 is outside [0, 1)"),
        ({"ema": math.nan}, "ema=nan is outside [0, 1)"),
        ({"keep_ratios": ()}, "keep_ratios is empty; the paper's is 0.25"),
        ({"keep_ratios": (0.25, 1.5)}, "keep_ratio=1.5 is not a number in [0, 1]"),
        (
            {"annotations": Path("coco.json"), "manifest": Path("train.tsv")},
            "manifest=train.tsv lists photographs in SA-1B's layout; with annotations, leave it out",
        ),
        (
            {"annotations": Path("coco.json"), "val_manifest": Path("val.tsv")},
            "val_manifest=val.tsv lists photographs of SA-1B; with annotations, use holdout",
        ),
        (
            {"kd_only_steps": 5, "distillation_mse": 0.1},
            "distillation_mse, kd_only_steps: no effect without a teacher; name its checkpoint with teacher",
        ),
        ({"teacher_cache": Path("cache")}, "teacher_cache: no effect without a teacher"),
        ({"distillation_layers": 1.0}, "distillation_layers: no effect without a teacher"),
        (
            {**TEACHER, "teacher_cache": Path("cache"), "flip": True},
            "flip: teacher_cache holds embeddings of unmirrored photographs; write another cache with --mirrored and "
            "name it with mirrored_cache, or leave out flip",
        ),
        (
            {**TEACHER, "teacher_cache": Path("cache"), "smallest_crop": 0.5},
            "teacher_cache holds embeddings of whole photographs; leave out smallest_crop",
        ),
        (
            {**TEACHER, "teacher_cache": Path("cache"), "mirrored_cache": Path("mirrored")},
            "mirrored_cache: no effect without teacher_cache and flip; name both, or leave it out",
        ),
        (
            {**TEACHER, "mirrored_cache": Path("mirrored"), "flip": True},
            "mirrored_cache: no effect without teacher_cache and flip; name both, or leave it out",
        ),
        (
            {**TEACHER, "teacher_cache": Path("cache"), "distillation_layers": 1.0},
            "teacher_cache holds only final embeddings; leave out distillation_layers",
        ),
        (
            {"val_annotations": Path("lvis.json")},
            "val_annotations=lvis.json needs its photographs; add val_images",
        ),
        (
            {"validate_every": 100},
            "validate_every=100: no validation data; add holdout, val_manifest or val_annotations",
        ),
        ({"clip_norm": math.nan}, "clip_norm=nan is not a finite number"),
        ({"lr": math.inf}, "lr=inf is not a finite number"),
        ({"epochs": math.inf}, "epochs=inf is not a finite number"),
        ({"distillation_weight": math.inf}, "distillation_weight=inf is not a finite number"),
        (
            {"teacher_model": "vit_h"},
            "teacher_model: no effect without a teacher; name its checkpoint with teacher",
        ),
        (
            {**TEACHER, "kd_only_steps": 5, "distillation_weight": 0},
            "kd_only_steps=5: these steps have no loss, because distillation_weight, distillation_mse and "
            "distillation_layers are 0; set one of them",
        ),
        (
            {"base": Path("sam.pth")},
            "base=sam.pth: no effect without an adapter; name the adapter with checkpoint",
        ),
        (
            {**TEACHER, "model": "vit_b", "warm_start": "layerwise", "freeze": "performance"},
            "warm_start, freeze: no effect, vit_b is dense; name a big.LITTLE model with model",
        ),
        ({"model": "vit_tiny", "options": ("keep_ratio=0.5",)}, "keep_ratio=0.5: vit_tiny is dense, its keep_ratio is"),
        ({"window": 33}, "window=33 exceeds the 32 tokens along a side of blvit_s_t at image_size=512; choose a"),
        (
            {"model": "vit_b", "window": 5, "image_size": 64},
            "window=5 exceeds the 4 tokens along a side of vit_b at image_size=64; choose a smaller window",
        ),
        ({"val_images": Path("val2017")}, "val_images=val2017: no effect without val_annotations; add it"),
        ({"warm_start": "layerwise"}, "warm_start: needs a trained SAM to start from; name teacher or checkpoint"),
        (
            {"freeze": "performance", "warm_start": "layerwise"},
            "warm_start, freeze: needs a trained SAM to start from; name teacher or checkpoint",
        ),
    ],
)
def test_a_training_run_refuses_what_makes_no_sense(settings: dict[str, Any], message: str, refused: Refused) -> None:
    with refused(ValueError, f"^{re.escape(message)}"):
        training(**settings)


@pytest.mark.parametrize("start", ["teacher", "checkpoint"])
def test_freezing_and_warming_up_start_from_a_teacher_or_a_checkpoint(start: str) -> None:
    assert (
        training(freeze="performance", warm_start="layerwise", **{start: Path("sam.pth")}).student.freeze
        == "performance"
    )


def test_embeddings_are_kept_of_a_teacher_alone(refused: Refused) -> None:
    with refused(ValueError, "teacher is not given: name the checkpoint of the SAM whose embeddings are to be cached"):
        compose(CacheConfig, **required(CacheConfig))
    assert compose(CacheConfig, **required(CacheConfig), **TEACHER).shard_images == 500


@pytest.mark.parametrize(
    "settings",
    [
        {"window": 32},
        {"window": 40, "image_size": 640},
        {**TEACHER, "kd_only_steps": 8, "schedule_steps": 9},
        {**TEACHER, "kd_only_steps": 8, "distillation_weight": 0, "distillation_mse": 1.0},
        {"base": Path("sam.pth"), "checkpoint": Path("adapter.safetensors")},
        {**TEACHER, "teacher_model": "vit_h"},
        {"prompts": "sam11"},
    ],
)
def test_a_training_run_takes_what_has_its_effect(settings: dict[str, Any]) -> None:
    found = settings_of(training(**settings))
    assert all(found[name] == value for name, value in settings.items())


def test_a_shard_without_images_is_refused(refused: Refused) -> None:
    with refused(ValueError, "shard_images=0 is not a positive number"):
        compose(CacheConfig, **required(CacheConfig), **TEACHER, shard_images=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unit": "mask"}, "unit='mask' is not one of tar, image"),
        ({"fraction": 0.0}, "fraction=0.0 is outside (0, 1]; the paper's is 0.02"),
        ({"fraction": 1.5}, "fraction=1.5 is outside (0, 1]"),
        ({"validation": -1}, "validation=-1 is negative"),
        ({"seed": -1}, "seed=-1 is negative"),
    ],
)
def test_a_subset_refuses_what_makes_no_sense(settings: dict[str, Any], message: str, refused: Refused) -> None:
    with refused(ValueError, re.escape(message)):
        SubsetConfig(**required(SubsetConfig), **settings)
