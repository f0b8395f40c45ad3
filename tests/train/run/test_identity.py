"""The identity of a run: settings and contents of files, but not paths or the division of work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import with_settings
from sam_blvit import __version__
from sam_blvit.checkpoint.load import save_sam
from sam_blvit.config import PRESETS, FinetuneConfig, ModelConfig, compose, kinds_of
from sam_blvit.data.sources import training_source
from sam_blvit.model.build import build_sam
from sam_blvit.system.distributed import Processes
from sam_blvit.system.files import file_sha256
from sam_blvit.train.run.identity import MAY_CHANGE, run_identity, run_origin
from synthetic import write_flat

Config = Callable[..., ModelConfig]

OTHER: dict[str, Any] = {
    "holdout": 1, "seed": 1, "teacher_model": "vit_b", "model": "vit_tiny", "image_size": 64,
    "window": 3, "options": ("router_scores=two_class",), "freeze": "performance", "warm_start": "layerwise",
    "warm_start_images": 1, "warm_start_steps": 1, "masks_per_image": 1, "mask_side": 32, "point_sample": 9,
    "prompts": "evs", "correction_rounds": 1, "smallest_crop": 0.5, "flip": True, "distillation_weight": 1.0,
    "distillation_mse": 1.0, "distillation_layers": 1.0, "kd_only_steps": 1, "keep_ratios": (1.0,), "epochs": 1.0,
    "schedule_steps": 9, "lr": 1.0, "encoder_lr": 1.0, "decoder_lr": 1.0, "prompt_lr": 1.0, "layer_decay": 0.5,
    "neck_lr": 1.0, "frozen_layers": 1,
    "drop_path": 0.5, "weight_decay": 0.5, "warmup_steps": 1, "clip_norm": 2.0, "ema": 0.5, "listwise_weight": 1.0,
}  # fmt: skip
"""Another value of every setting that must not change when a run is resumed."""


@pytest.fixture
def settings(tmp_path: Path) -> FinetuneConfig:
    """A run from a file of a teacher."""
    write_flat(tmp_path / "data", range(3))
    (tmp_path / "teacher.pth").write_bytes(b"a teacher")
    return compose(FinetuneConfig, data=tmp_path / "data", output=tmp_path / "run", teacher=tmp_path / "teacher.pth")


def identity(config: FinetuneConfig) -> dict[str, Any]:
    return run_identity(config, training_source(config.data))


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of the values in which two identities differ."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def test_every_setting_either_may_change_or_makes_another_run() -> None:
    assert set(kinds_of(FinetuneConfig)) == set(MAY_CHANGE) | set(OTHER)
    assert not set(MAY_CHANGE) & set(OTHER)


@pytest.mark.parametrize("name", sorted(set(OTHER) - {"freeze"}))
def test_another_setting_is_another_run_and_named(settings: FinetuneConfig, name: str) -> None:
    other = with_settings(settings, **{name: OTHER[name]})
    assert changed(identity(settings), identity(other)) == [name]


def test_freezing_is_another_run_and_keeps_the_hash_of_the_sam_inside(
    settings: FinetuneConfig, tiny_dense: Config, tmp_path: Path
) -> None:
    save_sam(build_sam(tiny_dense()), tmp_path / "teacher.safetensors")
    trains = with_settings(settings, teacher=tmp_path / "teacher.safetensors")
    frozen = with_settings(trains, freeze="performance")
    assert changed(identity(trains), identity(frozen)) == ["freeze", "sam_blvit.base_sha256"]


def test_data_and_files_may_move_and_the_work_be_divided_otherwise(settings: FinetuneConfig, tmp_path: Path) -> None:
    before = identity(settings)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    (tmp_path / "teacher.pth").rename(tmp_path / "renamed.pth")
    moved = with_settings(
        settings,
        data=tmp_path / "elsewhere",
        teacher=tmp_path / "renamed.pth",
        output=tmp_path / "other",
        precision="bf16",
        batch_size=1,
        masks_per_image=16,
        accumulate=8,
        workers=7,
        sharding="fsdp",
        checkpoint_layers=True,
        max_steps=5,
        log_every=1,
    )
    assert identity(moved) == before


def test_another_teacher_under_the_same_name_is_another_run(settings: FinetuneConfig, tmp_path: Path) -> None:
    before = identity(settings)
    (tmp_path / "teacher.pth").write_bytes(b"another teacher")
    assert changed(before, identity(settings)) == ["teacher_sha256"]


def test_another_decoder_of_an_exported_teacher_is_another_run(settings: FinetuneConfig, tmp_path: Path) -> None:
    decoder = tmp_path / "decoder.onnx"
    decoder.write_bytes(b"a decoder")
    settings = with_settings(settings, teacher_decoder=decoder)
    before = identity(settings)
    assert json.loads(json.dumps(before)) == before
    decoder.write_bytes(b"another decoder")
    assert changed(before, identity(settings)) == ["teacher_decoder_sha256"]


def test_another_photograph_is_another_run(settings: FinetuneConfig) -> None:
    before = identity(settings)
    write_flat(settings.data.data, range(3, 4))
    assert changed(before, identity(settings)) == ["data_sha256"]


def test_a_preset_counts_by_what_it_fills_in(settings: FinetuneConfig) -> None:
    paper = with_settings(settings, **PRESETS["paper"], preset="paper", masks_per_image=16)
    assert changed(identity(settings), identity(paper)) == ["decoder_lr", "drop_path", "encoder_lr", "keep_ratios"]


def test_options_count_in_any_order(settings: FinetuneConfig) -> None:
    one = with_settings(settings, options=("dim=128", "heads=2"))
    assert identity(one) == identity(with_settings(settings, options=("heads=2", "dim=128")))


def test_an_identity_survives_json(settings: FinetuneConfig) -> None:
    settings = with_settings(settings, options=("keep_ratio=0.5",))
    assert json.loads(json.dumps(identity(settings))) == identity(settings)


def test_an_origin_says_which_code_and_which_list_of_photographs(settings: FinetuneConfig, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("0\n1\n")
    origin = run_origin(with_settings(settings, manifest=tmp_path / "train.tsv"), Processes(rank=1, count=3))
    assert origin["manifest_sha256"] == file_sha256(tmp_path / "train.tsv")
    assert (origin["processes"], origin["version"], origin["torch"]) == (3, __version__, torch.__version__)
    assert json.loads(json.dumps(origin)) == origin
    assert run_origin(settings, Processes())["manifest_sha256"] is None
