"""The wrapped objective, and the whole student gathered from it. Real processes are in test_finetune."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_blvit.config import FinetuneConfig, ModelConfig, compose
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.system.distributed import Processes
from sam_blvit.train.loss.objective import Objective
from sam_blvit.train.optim import MovingAverage
from sam_blvit.train.parallel import gradients_join, whole, wrapped

Config = Callable[..., ModelConfig]
Randomize = Callable[[nn.Module], Any]


def objective(sam: Sam) -> Objective:
    return Objective(sam, None, compose(FinetuneConfig, data=Path("data"), output=Path("run")))


@torch.no_grad()
def embedding(sam: Sam) -> Tensor:
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    return sam.eval().image_encoder(image)


@pytest.mark.parametrize("sharding", ["ddp"])
def test_one_process_runs_the_objective_as_it_is(tiny: Config, sharding: str) -> None:
    mine = objective(build_sam(tiny()))
    assert wrapped(mine, sharding, Processes()) is mine


def test_there_is_nothing_to_divide_a_model_among_in_one_process(tiny: Config, refused: Callable[..., Any]) -> None:
    told = "sharding=fsdp needs several processes, but there is one; start with torchrun"
    with refused(ValueError, told):
        wrapped(objective(build_sam(tiny())), "fsdp", Processes())


@pytest.mark.parametrize("last", [False, True])
def test_one_process_has_no_gradients_to_join(tiny: Config, last: bool) -> None:
    mine = objective(build_sam(tiny()))
    with gradients_join(mine, last=last):
        sum(value.sum() for value in mine.student.image_encoder.neck.parameters()).backward()  # type: ignore[union-attr]
    assert all((value.grad == 1).all() for value in mine.student.image_encoder.neck.parameters())  # type: ignore[union-attr]


def test_a_student_that_is_whole_already_is_itself(tiny: Config) -> None:
    student = build_sam(tiny())
    assert whole(student, {}) is student


def test_with_its_own_weights_for_an_average_it_is_a_copy_that_answers_alike(
    tiny: Config, randomize: Randomize
) -> None:
    student: Sam = randomize(build_sam(tiny()))
    copy = whole(student, MovingAverage(student, 0.5).values)
    assert copy is not student
    assert copy.config == student.config
    assert not copy.training
    assert torch.equal(embedding(copy), embedding(student))
    assert {name: value.tolist() for name, value in copy.named_buffers()} == {
        name: value.tolist() for name, value in student.named_buffers()
    }


def test_the_average_takes_the_place_of_what_is_trained_and_nothing_else(tiny: Config, randomize: Randomize) -> None:
    student: Sam = randomize(build_sam(tiny()))
    student.prompt_encoder.requires_grad_(False)
    average = MovingAverage(student, 0.5)
    randomize(student)
    copy = whole(student, average.values).state_dict()
    trained = {name for name, value in student.named_parameters() if value.requires_grad}
    for name, value in student.state_dict().items():
        assert torch.equal(copy[name], average.values[name] if name in trained else value), name


def test_the_student_goes_on_training_as_it_was(tiny: Config, randomize: Randomize) -> None:
    student: Sam = randomize(build_sam(tiny())).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    copy = whole(student, {name: value + 1 for name, value in MovingAverage(student, 0.5).values.items()})
    with torch.no_grad():
        copy.image_encoder.pos_embed.fill_(7)
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
