"""A batch's loss: its parts, its independence of how a step is divided, and gradients for all that is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sam_blvit.config import FinetuneConfig, ModelConfig, compose
from sam_blvit.data.samples import Sample, TrainingSamples
from sam_blvit.data.sources import training_source
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.train.loss.objective import Objective, StepPlan, cells_along, valid_cells
from sam_blvit.train.teacher.targets import LiveTeacher
from synthetic import write_flat

Config = Callable[..., ModelConfig]
SIZES = ((64, 64), (48, 64), (64, 48))


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """A square photograph, a wide one and a tall one."""
    for number, size in enumerate(SIZES):
        write_flat(tmp_path / "data", range(number, number + 1), size=size)
    source = training_source(config(tmp_path).data)
    dataset = TrainingSamples(source, image_size=128, mask_side=32, masks_per_image=3)
    found = [dataset[0, index] for index in range(3)]
    return [sample for sample in found if isinstance(sample, Sample)]


def config(root: Path, **options: Any) -> FinetuneConfig:
    return compose(
        FinetuneConfig, data=root / "data", output=root / "run", **{"model": "blvit_tiny", "drop_path": 0.0, **options}
    )


def plan(samples: list[Sample], **options: Any) -> StepPlan:
    cells = sum(cells_along(s.image.shape[-2], 16) * cells_along(s.image.shape[-1], 16) for s in samples)
    masks = sum(len(sample.masks) for sample in samples)
    return StepPlan(**{"keep_ratio": 0.25, "masks": masks, "cells": cells, "processes": 1, **options})


def objective(root: Path, sam: Sam, teacher: Sam | None = None, **options: Any) -> Objective:
    features = (2,) if options.get("distillation_layers") else ()
    live = None if teacher is None else LiveTeacher(teacher, features_of=features)
    if teacher is not None:
        options["teacher"] = Path("teacher.pth")
    return Objective(sam.train(), live, config(root, **options))


def gradients(objective: Objective) -> dict[str, Tensor]:
    return {name: value.grad for name, value in objective.student.named_parameters() if value.grad is not None}


def test_cells_are_valid_where_more_than_half_lies_on_the_photograph() -> None:
    valid = valid_cells([torch.zeros(3, 24, 41), torch.zeros(3, 64, 64)], grid=4, cell=16)
    assert valid[0].tolist() == [[1, 1, 1, 0], [0] * 4, [0] * 4, [0] * 4]
    assert valid[1].min() == 1


@pytest.mark.parametrize("keep_ratio", [0.0, 0.25, 1.0])
def test_a_step_divided_has_the_gradient_of_the_whole(
    tmp_path: Path,
    tiny: Config,
    tiny_dense: Config,
    randomize: Callable[[Sam], Sam],
    samples: list[Sample],
    keep_ratio: float,
) -> None:
    sam, teacher = randomize(build_sam(tiny())), randomize(build_sam(tiny_dense()))
    mine = objective(
        tmp_path, sam, teacher, distillation_layers=0.5, distillation_mse=0.1, listwise_weight=0.3, drop_path=0.3
    )
    whole = plan(samples, keep_ratio=keep_ratio)
    mine(samples, whole).loss.backward()
    expected = {name: value.clone() for name, value in gradients(mine).items()}
    mine.zero_grad()
    for part in ([samples[2]], [samples[0], samples[1]]):
        mine(part, whole).loss.backward()
    for name, value in gradients(mine).items():
        # as a whole: a ReLU of the decoder that stands at 0 may fall to either side
        assert (value - expected[name]).norm() <= 1e-3 * expected[name].norm() + 1e-5, name


@pytest.mark.parametrize("keep_ratio", [0.0, 0.25, 1.0])
def test_whatever_a_keep_ratio_leaves_idle_has_a_gradient(
    tmp_path: Path, tiny: Config, samples: list[Sample], keep_ratio: float
) -> None:
    mine = objective(tmp_path, build_sam(tiny()))
    mine(samples[:1], plan(samples[:1], keep_ratio=keep_ratio)).loss.backward()
    assert set(gradients(mine)) == {name for name, _ in mine.student.named_parameters()}


def test_a_batch_without_a_sample_has_the_gradient_zero(tmp_path: Path, tiny: Config, samples: list[Sample]) -> None:
    mine = objective(tmp_path, build_sam(tiny()))
    outcome = mine([], plan(samples))
    outcome.loss.backward()
    assert outcome.loss == 0
    assert all(not value.any() for value in gradients(mine).values())


def test_the_loss_is_the_sum_of_its_weighted_parts(
    tmp_path: Path, tiny: Config, tiny_dense: Config, randomize: Callable[[Sam], Sam], samples: list[Sample]
) -> None:
    sam, teacher = randomize(build_sam(tiny())), build_sam(tiny_dense())
    parts = objective(tmp_path, sam, teacher, distillation_layers=0.5)(samples, plan(samples)).parts
    masks = 20 * parts["focal"] + parts["dice"] + parts["iou"]
    torch.testing.assert_close(parts["loss"], masks + 2.5 * parts["distillation"] + 0.5 * parts["distillation_2"])


def test_routers_are_told_what_tokens_gain_only_if_asked(
    tmp_path: Path, tiny: Config, randomize: Callable[[Sam], Sam], samples: list[Sample]
) -> None:
    sam = randomize(build_sam(tiny()))
    asked = plan(samples)
    without = objective(tmp_path, sam)(samples, asked).parts
    outcome = objective(tmp_path, sam, listwise_weight=0.5)(samples, asked)
    told = {f"listwise_{layer}": outcome.parts[f"listwise_{layer}"].item() for layer in (1, 3)}
    assert outcome.parts.keys() == without.keys() | told.keys()
    assert outcome.loss.item() == pytest.approx(without["loss"].item() + 0.5 * sum(told.values()), rel=1e-4)
    dense = objective(tmp_path, sam, listwise_weight=0.5)(samples, replace(asked, keep_ratio=1.0))
    assert not dense.parts.keys() & told.keys()


def test_distillation_alone_asks_the_decoder_nothing(
    tmp_path: Path, tiny: Config, tiny_dense: Config, samples: list[Sample]
) -> None:
    mine = objective(tmp_path, build_sam(tiny()), build_sam(tiny_dense()))
    outcome = mine(samples, plan(samples, with_masks=False))
    outcome.loss.backward()
    assert "dice" not in outcome.parts
    assert not gradients(mine)["mask_decoder.iou_token.weight"].any()
    assert gradients(mine)["image_encoder.neck.0.weight"].any()


def test_the_loss_of_one_of_several_processes_makes_up_for_their_averaging(
    tmp_path: Path, tiny: Config, samples: list[Sample]
) -> None:
    mine = objective(tmp_path, build_sam(tiny()))
    alone, of_three = (mine(samples, plan(samples, processes=count)).loss for count in (1, 3))
    torch.testing.assert_close(of_three, 3 * alone)


def test_drop_path_is_drawn_for_each_image_of_each_epoch(tmp_path: Path, tiny: Config, samples: list[Sample]) -> None:
    mine = objective(tmp_path, build_sam(tiny()), drop_path=0.5)
    scale = mine._branch_scale(samples)
    assert scale is not None
    assert scale.shape == (3, 4, 2)
    assert (scale[:, 0] == 1).all()  # the first layer is never dropped
    for layer, rate in enumerate([0, 0.5 / 3, 1 / 3, 0.5]):
        assert ((scale[:, layer] == 0) | torch.isclose(scale[:, layer], torch.tensor(1 / (1 - rate)))).all()
    torch.testing.assert_close(mine._branch_scale(samples[::-1]), scale.flip(0))
    later = mine._branch_scale([replace(sample, epoch=1) for sample in samples])
    assert not torch.equal(later, scale)  # type: ignore[arg-type]


def test_drop_path_keeps_the_mean(tmp_path: Path, tiny: Config, samples: list[Sample]) -> None:
    mine = objective(tmp_path, build_sam(tiny()), drop_path=0.4)
    many = mine._branch_scale([replace(samples[0], epoch=epoch) for epoch in range(2000)])
    assert many is not None
    torch.testing.assert_close(many.mean(dim=(0, 2)), torch.ones(4), rtol=0, atol=0.05)


def test_what_routers_do_is_looked_at_when_asked(tmp_path: Path, tiny: Config, samples: list[Sample]) -> None:
    mine = objective(tmp_path, build_sam(tiny()))
    assert mine(samples, plan(samples)).health == {}
    health = mine(samples, plan(samples, with_health=True)).health
    assert any("entropy" in name for name in health)


def test_a_teacher_is_no_part_of_what_is_trained(tmp_path: Path, tiny: Config, tiny_dense: Config) -> None:
    mine = objective(tmp_path, build_sam(tiny()), build_sam(tiny_dense()))
    assert {name.split(".")[0] for name, _ in mine.named_parameters()} == {"student"}


def test_bf16_leaves_the_loss_close(
    tmp_path: Path, tiny: Config, randomize: Callable[[Sam], Sam], samples: list[Sample]
) -> None:
    sam = randomize(build_sam(tiny(keep_ratio=1.0)))
    losses = [
        objective(tmp_path, sam, precision=precision)(samples, plan(samples, keep_ratio=1.0)).loss
        for precision in ("fp32", "bf16")
    ]
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.1, atol=0.05)
