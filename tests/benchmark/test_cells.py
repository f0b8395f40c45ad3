"""What is measured: every combination that was asked for, in groups of one shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sam_blvit.benchmark.cells import DEFAULT_MODELS, Cell, Row, photograph_size, plan
from sam_blvit.checkpoint.load import save_sam
from sam_blvit.config import BenchmarkConfig, ModelConfig
from sam_blvit.model.build import build_sam

CELL = Cell(
    model="vit_b", keep_ratio=None, dtype="bfloat16", way="eager", device="cpu", allocator="tuned", threads=None,
    batch=1, side=None, aspect="square",
)  # fmt: skip


def on_cpu(**settings: Any) -> BenchmarkConfig:
    return BenchmarkConfig(devices=("cpu",), **settings)


def test_models_come_in_the_order_in_which_they_are_named() -> None:
    (group,) = plan(DEFAULT_MODELS, on_cpu())
    assert [row.cell.model for row in group.rows] == list(DEFAULT_MODELS)
    assert group.rows[0].cell == replace(CELL, model="blvit_b_t", keep_ratio=0.25)


def test_a_group_holds_every_combination_of_model_dtype_and_way() -> None:
    config = on_cpu(keep_ratios=(0.0, 0.5), dtypes=("float32", "bfloat16"), ways=("eager", "compiled"))
    (group,) = plan(["blvit_tiny", "vit_tiny"], config)
    cells = [row.cell for row in group.rows]
    assert len(cells) == len(set(cells)) == (2 + 1) * 2 * 2
    assert [cell.keep_ratio for cell in cells] == [0.0] * 4 + [0.5] * 4 + [None] * 4
    assert {(cell.dtype, cell.way) for cell in cells[:4]} == {
        (dtype, way) for dtype in ("float32", "bfloat16") for way in ("eager", "compiled")
    }


def test_each_shape_is_a_group() -> None:
    config = on_cpu(
        batches=(1, 2), sides=(512, 1024), aspects=("square", "4:3"), threads=(1, 2), allocators=("tuned", "default")
    )
    groups = plan(["vit_tiny"], config)
    assert len({group.shape for group in groups}) == len(groups) == 2**5
    assert groups[0].shape == "cpu, tuned allocator, 1 thread, batch 1, 512 pixels, square"
    assert groups[-1].shape == "cpu, default allocator, 2 threads, batch 2, 1024 pixels, 4:3"


def test_threads_and_allocators_are_a_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    config = BenchmarkConfig(devices=("cuda", "cpu"), threads=(1, 2), allocators=("tuned", "default"))
    shapes = [group.shape for group in plan(["vit_b"], config)]
    assert shapes[0] == "cuda, batch 1, each model's own side, square"
    assert len(shapes) == 1 + 4


@pytest.mark.parametrize(("has_it", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_the_dtype_that_the_device_multiplies(
    monkeypatch: pytest.MonkeyPatch, has_it: bool, dtype: str
) -> None:
    monkeypatch.setattr("sam_blvit.system.distributed.multiplies_bfloat16", lambda _: has_it)
    (group,) = plan(["vit_tiny"], BenchmarkConfig(devices=("cpu",), dtypes=("auto", dtype)))
    assert [row.cell.dtype for row in group.rows] == [dtype]


def test_an_exported_pair_is_measured_once_as_it_is() -> None:
    config = BenchmarkConfig(devices=("cpu",), dtypes=("float32", "bfloat16"), ways=("eager", "compiled"))
    (group,) = plan(["onnx:encoder.onnx,decoder.onnx"], config)
    assert [(row.cell.way, row.cell.dtype_name) for row in group.rows] == [("onnxruntime", "as exported")]


def test_a_checkpoint_says_itself_whether_it_is_routed(tmp_path: Path, tiny: Callable[..., ModelConfig]) -> None:
    save_sam(build_sam(tiny(keep_ratio=0.5)), tmp_path / "ours.safetensors")
    (group,) = plan([str(tmp_path / "ours.safetensors")], on_cpu())
    assert [row.cell.keep_ratio for row in group.rows] == [0.5]


@pytest.mark.parametrize(
    ("models", "settings", "line"),
    [
        (["vit_x"], {}, "no model named 'vit_x'; there are vit_b"),
        (["nosuch.safetensors"], {}, "nosuch.safetensors is not a file"),
        (["vit_b"], {"devices": ("mps",)}, "device=mps: not available here"),
    ],
)
def test_what_is_not_there_is_one_line(
    refused: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    models: list[str],
    settings: dict[str, Any],
    line: str,
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with refused(ValueError, line):
        plan(models, BenchmarkConfig(**{"devices": ("cpu",), **settings}))


def test_a_plain_sam_checkpoint_is_refused(tmp_path: Path, refused: Callable[..., Any]) -> None:
    torch.save({"image_encoder.weight": torch.zeros(1)}, tmp_path / "sam.pth")
    with refused(ValueError, "plain SAM checkpoint, without a config"):
        plan([str(tmp_path / "sam.pth")], on_cpu())


@pytest.mark.parametrize(("aspect", "size"), [("square", (1024, 1024)), ("4:3", (768, 1024)), ("16:9", (576, 1024))])
def test_a_photograph_lies_on_its_longer_side(aspect: str, size: tuple[int, int]) -> None:
    assert photograph_size(1024, aspect) == size


def test_the_dtype_of_a_foreign_model_is_autocasts() -> None:
    assert CELL.dtype_name == "bfloat16"
    foreign = replace(CELL, model="module:function")
    assert foreign.dtype_name == "bfloat16 autocast"
    assert replace(foreign, dtype="float32").dtype_name == "float32"


def test_a_row_keeps_every_time_and_the_last_of_all_else() -> None:
    row = Row(cell=CELL)
    row.take({"macs": 5, "input_size": [32, 64]})
    row.take({"encoder_ms": 1.0, "decoder_ms": 3.0})
    row.take({"encoder_ms": 2.0, "decoder_ms": 4.0})
    assert (row.macs, row.input_size, row.encoder_ms, row.decoder_ms) == (5, [32, 64], [1.0, 2.0], [3.0, 4.0])
