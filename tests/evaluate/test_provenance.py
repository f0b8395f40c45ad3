"""What was measured, with what, where: hashes of the files that were used, the commit, the cost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything import modeling as sa
from torch import Tensor, nn

from sam_blvit import __version__
from sam_blvit.checkpoint.load import SHIPPED_WEIGHTS, load_any, save_sam
from sam_blvit.config import EvaluationConfig, ModelConfig
from sam_blvit.cost.macs import G, count_macs
from sam_blvit.evaluate.provenance import file_identity, gmacs, provenance
from sam_blvit.model.build import build_sam
from sam_blvit.system.files import file_sha256
from sam_blvit.system.machine import machine
from sam_blvit.system.revision import git_revision

Config = Callable[..., ModelConfig]
OriginalSam = Callable[[ModelConfig], sa.Sam]

ANNOTATIONS = {"file": "lvis.json", "sha256": "0" * 64}

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def evaluation(tmp_path: Path) -> Callable[..., EvaluationConfig]:
    """An evaluation of annotations that there are, with settings replaced."""
    annotations = tmp_path / "lvis.json"
    annotations.write_text("{}")

    def config(**settings: Any) -> EvaluationConfig:
        paths = {"annotations": annotations, "images": tmp_path, "output": tmp_path / "out"}
        return EvaluationConfig(**{**paths, "device": "cpu", **settings})

    return config


@pytest.fixture
def ours(tiny: Config, tmp_path: Path) -> Path:
    """A checkpoint of ours."""
    path = tmp_path / "ours.safetensors"
    save_sam(build_sam(tiny()), path)
    return path


# weights and data ----------------------------------------------------------------------------------------------------


def test_a_model_with_a_checkpoint_is_identified_by_its_file(
    evaluation: Callable[..., EvaluationConfig], ours: Path
) -> None:
    config = evaluation(model="blvit_tiny", checkpoint=ours)
    stated = provenance(config, load_any(config), annotations=ANNOTATIONS)
    assert stated["checkpoint"] == {"file": "ours.safetensors", "sha256": file_sha256(ours)}


def test_a_model_by_path_is_identified_by_its_file(evaluation: Callable[..., EvaluationConfig], ours: Path) -> None:
    config = evaluation(model=str(ours))
    stated = provenance(config, load_any(config), annotations=ANNOTATIONS)
    assert stated["checkpoint"] == {"file": "ours.safetensors", "sha256": file_sha256(ours)}
    assert stated["model"] == "blvit_tiny"


def test_the_shipped_model_is_identified_by_the_packages_file(evaluation: Callable[..., EvaluationConfig]) -> None:
    config = evaluation()
    stated = provenance(config, load_any(config), annotations=ANNOTATIONS)
    assert stated["checkpoint"] == {"file": "blvit_s_t.safetensors", "sha256": file_sha256(SHIPPED_WEIGHTS)}


def test_a_file_that_is_named_like_the_shipped_model_is_not_taken_for_its_weights(
    evaluation: Callable[..., EvaluationConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blvit_s_t").write_text("notes about the model")
    monkeypatch.chdir(tmp_path)
    config = evaluation()
    stated = provenance(config, load_any(config), annotations=ANNOTATIONS)
    assert stated["checkpoint"]["sha256"] == file_sha256(SHIPPED_WEIGHTS)


def test_a_foreign_model_with_a_checkpoint_is_identified_by_its_file(
    evaluation: Callable[..., EvaluationConfig], original_sam: OriginalSam, tiny_dense: Config, tmp_path: Path
) -> None:
    (tmp_path / "rival.pt").write_bytes(b"abc")
    config = evaluation(model="rival:build", checkpoint=tmp_path / "rival.pt")
    stated = provenance(config, original_sam(tiny_dense()), annotations=ANNOTATIONS)
    assert stated["checkpoint"] == file_identity(tmp_path / "rival.pt")


def test_equal_weights_without_a_file_have_one_hash_and_a_changed_one_another(
    evaluation: Callable[..., EvaluationConfig], original_sam: OriginalSam, tiny_dense: Config
) -> None:
    config, first, second = evaluation(model="rival:build"), original_sam(tiny_dense()), original_sam(tiny_dense())
    second.load_state_dict(first.state_dict())
    stated = provenance(config, first, annotations=ANNOTATIONS)["checkpoint"]
    assert stated["file"] is None
    assert stated == provenance(config, second, annotations=ANNOTATIONS)["checkpoint"]
    with torch.no_grad():
        second.mask_decoder.iou_token.weight[0, 3] += 1e-3
    assert stated != provenance(config, second, annotations=ANNOTATIONS)["checkpoint"]


# the rest of it ------------------------------------------------------------------------------------------------------


def test_a_foreign_model_goes_by_what_was_asked_for(
    evaluation: Callable[..., EvaluationConfig], original_sam: OriginalSam, tiny_dense: Config
) -> None:
    stated = provenance(evaluation(model="rival:build"), original_sam(tiny_dense()), annotations=ANNOTATIONS)
    assert stated["model"] == "rival:build"


def test_a_provenance_is_plain_json_and_complete(evaluation: Callable[..., EvaluationConfig], tiny: Config) -> None:
    sam = build_sam(tiny())
    stated = provenance(evaluation(model="vit_tiny", prompts_per_batch=5), sam, annotations=ANNOTATIONS)
    assert json.loads(json.dumps(stated)) == stated
    assert stated["parameters"] == sum(parameter.numel() for parameter in sam.parameters())
    assert stated["annotations"] == ANNOTATIONS
    expected = {"image_size": 128, "prompts_per_batch": 5, "torch": torch.__version__, "version": __version__}
    assert {name: stated[name] for name in expected} == expected


def test_the_machine_is_told_apart_from_what_was_measured(
    evaluation: Callable[..., EvaluationConfig], tiny: Config
) -> None:
    sam = build_sam(tiny())
    told = machine(sam.device)
    assert (told["device"], told["threads"]) == ("cpu", torch.get_num_threads())
    assert told["processor"]
    stated = provenance(evaluation(model="vit_tiny"), sam, annotations=ANNOTATIONS)
    assert set(told) & set(stated) == {"torch"}


@needs_git
def test_a_provenance_names_the_commit(evaluation: Callable[..., EvaluationConfig], tiny: Config) -> None:
    assert provenance(evaluation(model="vit_tiny"), build_sam(tiny()), annotations=ANNOTATIONS)["git"] == git_revision()


# cost ----------------------------------------------------------------------------------------------------------------


def as_counted(config: ModelConfig) -> Any:
    count = count_macs(config)
    macs = {
        "paper": count.total.paper,
        "full": count.total.full,
        "encoder_paper": count.encoder.paper,
        "encoder_full": count.encoder.full,
    }
    return pytest.approx({name: value / G for name, value in macs.items()}, abs=1e-4)


@pytest.mark.parametrize("window", [4, 3])
def test_the_cost_of_our_model_is_what_the_flops_command_counts(tiny: Config, window: int) -> None:
    assert gmacs(build_sam(tiny(window=window))) == as_counted(tiny(window=window))


def test_the_cost_of_segment_anythings_own_sam_is_that_of_our_dense_model(
    original_sam: OriginalSam, tiny_dense: Config
) -> None:
    assert gmacs(original_sam(tiny_dense())) == as_counted(tiny_dense())


def test_the_cost_is_that_of_the_keep_ratio_that_is_set(tiny: Config) -> None:
    sam = build_sam(tiny())
    sam.image_encoder.keep_ratio = 0.75
    assert gmacs(sam) == as_counted(tiny(keep_ratio=0.75))


class Stubborn(nn.Module):
    """An encoder that looks at its pixels' values, as kernels outside torch do."""

    def __init__(self, encoder: nn.Module, img_size: int) -> None:
        super().__init__()
        self.encoder, self.img_size = encoder, img_size

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x * float(x.mean().numpy()))


def test_the_cost_of_a_model_that_fake_tensors_do_not_run_is_unknown(
    original_sam: OriginalSam, tiny_dense: Config
) -> None:
    sam = original_sam(tiny_dense())
    sam.image_encoder = Stubborn(sam.image_encoder, 128)
    with pytest.warns(UserWarning, match="multiply-adds not counted: .+ on fake tensors"):
        assert gmacs(sam) is None


def test_a_model_that_cannot_be_counted_still_runs(original_sam: OriginalSam, tiny_dense: Config) -> None:
    sam = original_sam(tiny_dense())
    sam.image_encoder = Stubborn(sam.image_encoder, 128)
    with pytest.warns(UserWarning, match="not counted"):
        gmacs(sam)
    assert sam.image_encoder(torch.rand(1, 3, 128, 128)).shape == (1, 256, 8, 8)
