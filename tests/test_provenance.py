"""What was measured, with what, where: hashes of the files that were used, the commit, the cost."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything import modeling as sa
from torch import Tensor, nn

from sam_blvit import __version__
from sam_blvit.checkpoint import SHIPPED_WEIGHTS, load_any, save_sam
from sam_blvit.config import EvaluationConfig, ModelConfig
from sam_blvit.evaluate import provenance as module
from sam_blvit.evaluate.provenance import file_identity, git_revision, gmacs, machine, provenance
from sam_blvit.files import file_sha256
from sam_blvit.measure.flops import G, count_macs
from sam_blvit.model.build import build_sam

Config = Callable[..., ModelConfig]
OriginalSam = Callable[[ModelConfig], sa.Sam]

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
    stated = provenance(config, load_any(config))
    assert stated["checkpoint"] == {"file": "ours.safetensors", "sha256": file_sha256(ours)}


def test_a_model_by_path_is_identified_by_its_file(evaluation: Callable[..., EvaluationConfig], ours: Path) -> None:
    config = evaluation(model=str(ours))
    stated = provenance(config, load_any(config))
    assert stated["checkpoint"] == {"file": "ours.safetensors", "sha256": file_sha256(ours)}
    assert stated["model"] == "blvit_tiny"


def test_the_shipped_model_is_identified_by_the_packages_file(evaluation: Callable[..., EvaluationConfig]) -> None:
    config = evaluation()
    stated = provenance(config, load_any(config))
    assert stated["checkpoint"] == {"file": "blvit_tiny.safetensors", "sha256": file_sha256(SHIPPED_WEIGHTS)}


def test_a_file_that_is_named_like_the_shipped_model_is_not_taken_for_its_weights(
    evaluation: Callable[..., EvaluationConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blvit_tiny").write_text("notes about the model")
    monkeypatch.chdir(tmp_path)
    config = evaluation()
    assert provenance(config, load_any(config))["checkpoint"]["sha256"] == file_sha256(SHIPPED_WEIGHTS)


def test_a_foreign_model_with_a_checkpoint_is_identified_by_its_file(
    evaluation: Callable[..., EvaluationConfig], original_sam: OriginalSam, tiny_dense: Config, tmp_path: Path
) -> None:
    (tmp_path / "rival.pt").write_bytes(b"abc")
    config = evaluation(model="rival:build", checkpoint=tmp_path / "rival.pt")
    stated = provenance(config, original_sam(tiny_dense()))
    assert stated["checkpoint"] == file_identity(tmp_path / "rival.pt")


def test_equal_weights_without_a_file_have_one_hash_and_a_changed_one_another(
    evaluation: Callable[..., EvaluationConfig], original_sam: OriginalSam, tiny_dense: Config
) -> None:
    config, first, second = evaluation(model="rival:build"), original_sam(tiny_dense()), original_sam(tiny_dense())
    second.load_state_dict(first.state_dict())
    stated = provenance(config, first)["checkpoint"]
    assert stated["file"] is None
    assert stated == provenance(config, second)["checkpoint"]
    with torch.no_grad():
        second.mask_decoder.iou_token.weight[0, 3] += 1e-3
    assert stated != provenance(config, second)["checkpoint"]


def test_annotations_are_identified_by_their_content(evaluation: Callable[..., EvaluationConfig], tiny: Config) -> None:
    config, sam = evaluation(model="vit_tiny"), build_sam(tiny())
    before = provenance(config, sam)["annotations"]
    assert before == {"file": "lvis.json", "sha256": file_sha256(config.annotations)}
    config.annotations.write_text("{ }")
    assert provenance(config, sam)["annotations"] != before


# the rest of it ------------------------------------------------------------------------------------------------------


def test_a_foreign_model_goes_by_what_was_asked_for(
    evaluation: Callable[..., EvaluationConfig], original_sam: OriginalSam, tiny_dense: Config
) -> None:
    stated = provenance(evaluation(model="rival:build"), original_sam(tiny_dense()))
    assert stated["model"] == "rival:build"


def test_a_provenance_is_plain_json_and_complete(evaluation: Callable[..., EvaluationConfig], tiny: Config) -> None:
    sam = build_sam(tiny())
    stated = provenance(evaluation(model="vit_tiny", prompts_per_batch=5), sam)
    assert json.loads(json.dumps(stated)) == stated
    assert stated["parameters"] == sum(parameter.numel() for parameter in sam.parameters())
    expected = {"image_size": 128, "prompts_per_batch": 5, "torch": torch.__version__, "version": __version__}
    assert {name: stated[name] for name in expected} == expected


def test_the_machine_is_told_apart_from_what_was_measured(
    evaluation: Callable[..., EvaluationConfig], tiny: Config
) -> None:
    sam = build_sam(tiny())
    told = machine(sam)
    assert (told["device"], told["threads"]) == ("cpu", torch.get_num_threads())
    assert told["processor"]
    assert not set(told) & set(provenance(evaluation(model="vit_tiny"), sam))


@needs_git
def test_a_provenance_names_the_commit(evaluation: Callable[..., EvaluationConfig], tiny: Config) -> None:
    assert provenance(evaluation(model="vit_tiny"), build_sam(tiny()))["git"] == git_revision()


# the commit ----------------------------------------------------------------------------------------------------------


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(root), *who, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit that the package is checked out in."""
    root = tmp_path / "checkout"
    installed_in(root, monkeypatch)
    git(root, "init", "--quiet")
    git(root, "add", "sam_blvit")
    git(root, "commit", "--quiet", "--message", "All there is")
    return root


def installed_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the package lie in `root`."""
    path = root / "sam_blvit" / "evaluate" / "provenance.py"
    path.parent.mkdir(parents=True)
    path.write_text("")
    monkeypatch.setattr(module, "__file__", str(path))


@needs_git
def test_the_commit_of_this_repository_is_the_one_that_git_names() -> None:
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("these tests are not run from a checkout")
    revision = git_revision()
    assert revision is not None
    revision = revision.removesuffix("-dirty")
    assert len(revision) == 12
    assert git(root, "rev-parse", "HEAD").startswith(revision)


@needs_git
def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    assert git_revision() == git(checkout, "rev-parse", "HEAD")[:12]


@needs_git
def test_a_tag_does_not_stand_for_its_commit(checkout: Path) -> None:
    git(checkout, "tag", "--annotate", "v1", "--message", "first")
    assert git_revision() == git(checkout, "rev-parse", "HEAD")[:12]


@needs_git
def test_a_checkout_with_a_changed_file_is_dirty(checkout: Path) -> None:
    Path(module.__file__).write_text("changed = True\n")
    assert git_revision() == git(checkout, "rev-parse", "HEAD")[:12] + "-dirty"


def test_a_package_outside_git_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_in(tmp_path / "site-packages", monkeypatch)
    assert git_revision() is None


@needs_git
def test_a_package_installed_inside_somebody_elses_repository_has_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_in(checkout / "venv" / "site-packages", monkeypatch)
    assert git_revision() is None


@needs_git
def test_a_repository_without_a_commit_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_in(tmp_path / "new", monkeypatch)
    git(tmp_path / "new", "init", "--quiet")
    assert git_revision() is None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_in(tmp_path / "checkout", monkeypatch)
    (tmp_path / "checkout" / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision() is None


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
