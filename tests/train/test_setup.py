"""Setting up a run: its parts, their order, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_blvit.checkpoint.load import save_sam
from sam_blvit.config import MODELS, FinetuneConfig, ModelConfig, compose, override
from sam_blvit.data.samples import Sample
from sam_blvit.data.sources import training_source
from sam_blvit.model.build import build_sam
from sam_blvit.system.distributed import Processes
from sam_blvit.train import setup
from sam_blvit.train.setup import Training, prepare
from synthetic import write_flat

Config = Callable[..., ModelConfig]


@pytest.fixture(autouse=True)
def _tiny_models(monkeypatch: pytest.MonkeyPatch, tiny: Config, tiny_dense: Config) -> None:
    monkeypatch.setitem(MODELS, "blvit_tiny", override(tiny(), name="blvit_tiny"))
    monkeypatch.setitem(MODELS, "vit_tiny", override(tiny_dense(), name="vit_tiny"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_flat(tmp_path / "data", range(5), masks=2)


@pytest.fixture
def teacher(tmp_path: Path, randomize: Callable[[nn.Module], Any]) -> Path:
    path = tmp_path / "teacher.safetensors"
    save_sam(randomize(build_sam(MODELS["vit_tiny"])), path)
    return path


def prepared(data: Path, *, warm: bool = False, processes: Processes | None = None, **options: Any) -> Training:
    settings = {"model": "blvit_tiny", "batch_size": 2, "workers": 0, "device": "cpu", **options}
    config = compose(FinetuneConfig, data=data, output=data.parent / "run", **settings)
    return prepare(config, training_source(config.data), processes or Processes(), warm=warm)


def weights(training: Training) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.student.state_dict().items()}


def test_fresh_weights_are_drawn_by_the_seed(data: Path) -> None:
    torch.manual_seed(5)
    one, again, other = prepared(data), prepared(data), prepared(data, seed=1)
    name = "image_encoder.neck.0.weight"
    assert torch.equal(weights(one)[name], weights(again)[name])
    assert not torch.equal(weights(one)[name], weights(other)[name])


def test_the_student_trains_and_the_teacher_does_not(data: Path, teacher: Path) -> None:
    training = prepared(data, teacher=teacher)
    assert training.teacher is not None
    assert training.student.training
    assert not training.teacher.training
    assert not any(value.requires_grad for value in training.teacher.parameters())


def test_the_optimiser_holds_what_is_not_frozen_and_nothing_else(data: Path) -> None:
    training = prepared(data, encoder_lr=0.0)
    trained = {name for name, value in training.student.named_parameters() if value.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"image_encoder", "mask_decoder"}
    assert "image_encoder.pos_embed" not in trained
    held = {id(value) for value in training.stepper.parameters}
    assert held == {id(value) for name, value in training.student.named_parameters() if name in trained}


def test_what_is_frozen_is_so_before_processes_are_joined(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []

    def watched(objective: Any, sharding: str, processes: Processes) -> Any:
        looked_at.append({name for name, value in objective.named_parameters() if value.requires_grad})
        return objective

    monkeypatch.setattr(setup, "wrapped", watched)
    prepared(data, decoder_lr=0.0)
    assert looked_at[0]
    assert not any("mask_decoder" in name for name in looked_at[0])


@pytest.mark.parametrize(("ema", "kept"), [(0.0, False), (0.9, True)])
def test_a_moving_average_is_kept_where_it_is_asked_for(data: Path, ema: float, kept: bool) -> None:
    training = prepared(data, ema=ema)
    assert (training.state.average is not None) == kept
    assert training.stepper.average is training.state.average


def test_samples_are_made_for_the_students_side_and_the_losss(data: Path) -> None:
    sample = prepared(data, image_size=64, mask_side=32, masks_per_image=1).dataset[0, 0]
    assert isinstance(sample, Sample)
    assert sample.image.shape == (3, 48, 64)
    assert sample.masks.shape == (1, 32, 32)


def test_masks_are_compared_at_the_images_side_where_no_other_is_named(data: Path) -> None:
    sample = prepared(data).dataset[0, 0]
    assert isinstance(sample, Sample)
    assert sample.masks.shape[1:] == (128, 128)


def test_a_step_takes_the_batches_of_all_processes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "wrapped", lambda objective, *_: objective)
    assert prepared(data, batch_size=3, accumulate=4, processes=Processes(rank=1, count=2)).images_a_step == 24


def test_batches_start_where_they_are_asked_to(data: Path) -> None:
    training = prepared(data, accumulate=2)
    with training.batches(start=0, steps=2) as batches:
        seen = [[item.image_id for item in batch] for batch in batches]
    assert [len(batch) for batch in seen] == [2, 2, 2, 2]
    with training.batches(start=4, steps=1) as batches:
        assert [[item.image_id for item in batch] for batch in batches] == seen[2:]


def test_the_warm_start_is_done_at_the_start_alone(
    data: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"teacher": teacher, "warm_start": "layerwise", "warm_start_images": 2, "warm_start_steps": 2}
    cold = weights(prepared(data, **options))
    assert capsys.readouterr().out == ""
    warm = weights(prepared(data, warm=True, **options))
    assert "layer 2" in capsys.readouterr().out
    differing = {name for name, value in warm.items() if not torch.equal(value, cold[name])}
    assert differing
    assert all(".little." in name for name in differing)


def test_without_the_setting_nothing_is_warmed_up(data: Path, teacher: Path) -> None:
    cold, warm = (weights(prepared(data, teacher=teacher, warm=warm)) for warm in (False, True))
    assert all(torch.equal(value, cold[name]) for name, value in warm.items())


def test_a_damaged_photograph_does_not_end_the_warm_start(data: Path, teacher: Path) -> None:
    (data / "sa_0.jpg").write_bytes(b"no picture")
    options = {"warm_start": "layerwise", "warm_start_images": 2, "warm_start_steps": 1}
    assert prepared(data, teacher=teacher, warm=True, **options).student.training


def test_compiling_compiles_each_layer_of_the_encoder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    encoder = prepared(data, compile=True).student.image_encoder
    assert compiled == list(encoder.blocks)
    compiled.clear()
    prepared(data)
    assert compiled == []


@pytest.mark.parametrize("setting", [False, True])
def test_layers_are_recomputed_where_it_is_asked_for(data: Path, setting: bool) -> None:
    assert prepared(data, checkpoint_layers=setting).student.image_encoder.checkpoint_layers is setting


def test_a_run_that_would_train_nothing_is_refused(data: Path, refused: Callable[..., Any]) -> None:
    rates = {"lr": 0.0, "encoder_lr": 0.0, "decoder_lr": 0.0}
    with refused(ValueError, "every learning rate is 0: nothing to train"):
        prepared(data, **rates)
    assert prepared(data, **{**rates, "prompt_lr": 1.0}).config.optimizer.prompt_lr == 1.0


def test_a_checkpoint_whose_router_does_not_learn_is_told_nothing(
    data: Path, tmp_path: Path, randomize: Callable[[nn.Module], Any]
) -> None:
    path = tmp_path / "random.safetensors"
    model = override(MODELS["blvit_tiny"], router="random", score_scaling=False)
    save_sam(randomize(build_sam(model)), path)
    with pytest.raises(ValueError, match=r"random\.safetensors was saved with router=random; leave it out"):
        prepared(data, checkpoint=path, listwise_weight=1.0)
