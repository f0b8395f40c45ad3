"""A step of the optimiser: one gradient of all batches, one update, or none if it is not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import with_settings
from sam_blvit.config import FinetuneConfig, ModelConfig, compose
from sam_blvit.data.samples import Damaged, Sample, TrainingSamples
from sam_blvit.data.sources import training_source
from sam_blvit.model.build import build_sam
from sam_blvit.system.distributed import Processes
from sam_blvit.train.batches import Batch
from sam_blvit.train.loss.objective import Objective
from sam_blvit.train.optim import MovingAverage, freeze, optimizer_for
from sam_blvit.train.step import Counts, Stepper, keep_ratio_of
from synthetic import write_flat

Config = Callable[..., ModelConfig]
CPU = torch.device("cpu")


def config(root: Path, **options: Any) -> FinetuneConfig:
    settings = {"model": "blvit_tiny", "batch_size": 2, "correction_rounds": 0, "keep_ratios": (0.5,), **options}
    return compose(FinetuneConfig, data=root / "data", output=root, **settings)


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    """A square photograph with one mask, and a wide one with two."""
    write_flat(tmp_path / "data", range(1), size=(64, 64), masks=1)
    write_flat(tmp_path / "data", range(1, 2), size=(32, 64), masks=2)
    dataset = TrainingSamples(training_source(config(tmp_path).data), image_size=128, mask_side=32, masks_per_image=2)
    return [dataset[0, index] for index in range(2)]


def stepper_of(model: ModelConfig, config: FinetuneConfig) -> Stepper:
    torch.manual_seed(0)
    student = build_sam(model).train()
    freeze(student, config)
    average = MovingAverage(student, config.optimizer.ema) if config.optimizer.ema else None
    optimizer = optimizer_for(student, config)
    return Stepper(Objective(student, None, config), optimizer, config, Processes(), CPU, average)


def student_of(stepper: Stepper) -> Any:
    assert isinstance(stepper.objective, Objective)
    return stepper.objective.student


def everything(stepper: Stepper) -> list[Tensor]:
    """Copies of weights, moments and moving average."""
    moments = [value for state in stepper.optimizer.state.values() for value in state.values()]
    average = [] if stepper.average is None else list(stepper.average.values.values())
    return [value.clone() for value in [*student_of(stepper).state_dict().values(), *moments, *average]]


def learn(stepper: Stepper, *batches: Batch, step: int = 0) -> Any:
    return stepper.step(batches, stepper.plan(stepper.count(batches), step=step))


def broken(batch: Batch) -> Batch:
    """`batch` with a first photograph of which no number comes out."""
    first = batch[0]
    assert isinstance(first, Sample)
    return [replace(first, image=torch.full_like(first.image, torch.nan, dtype=torch.float32)), *batch[1:]]


# what a step holds ----------------------------------------------------------------------------------------------------


def test_masks_tokens_and_damaged_photographs_of_all_batches_are_counted(
    tiny: Config, tmp_path: Path, batch: Batch
) -> None:
    stepper = stepper_of(tiny(), config(tmp_path))
    counts = stepper.count([batch, [batch[1], Damaged(9, "gone")]])
    assert counts == Counts(masks=1 + 2 + 2, cells=64 + 32 + 32, damaged=1, asked_to_stop=False)


def test_being_asked_to_stop_is_told(tiny: Config, tmp_path: Path, batch: Batch) -> None:
    stepper = stepper_of(tiny(), config(tmp_path))
    assert stepper.count([batch], stop=True).asked_to_stop
    assert not stepper.count([batch], stop=False).asked_to_stop


def test_a_plan_carries_the_counts_and_the_steps_keep_ratio(tiny: Config, tmp_path: Path, batch: Batch) -> None:
    stepper = stepper_of(tiny(), config(tmp_path, keep_ratios=(0.25, 0.5, 1.0)))
    counts = stepper.count([batch])
    for step in range(5):
        plan = stepper.plan(counts, step=step)
        assert plan.keep_ratio == keep_ratio_of(step, stepper.config, tiny())
        assert (plan.masks, plan.cells, plan.processes) == (counts.masks, counts.cells, 1)


def test_the_first_steps_may_be_distillation_alone(tiny: Config, tmp_path: Path, batch: Batch) -> None:
    stepper = stepper_of(tiny(), config(tmp_path, teacher=tmp_path / "sam.pth", kd_only_steps=2))
    counts = stepper.count([batch])
    assert [stepper.plan(counts, step=step).with_masks for step in range(4)] == [False, False, True, True]


# keep ratios ----------------------------------------------------------------------------------------------------------


def test_a_keep_ratio_is_drawn_by_seed_and_step(tiny: Config, tmp_path: Path) -> None:
    settings = config(tmp_path, keep_ratios=(0.25, 0.5, 1.0))
    drawn = [keep_ratio_of(step, settings, tiny()) for step in range(60)]
    assert set(drawn) == {0.25, 0.5, 1.0}
    assert [keep_ratio_of(step, settings, tiny()) for step in reversed(range(60))] == drawn[::-1]
    assert [keep_ratio_of(step, with_settings(settings, seed=1), tiny()) for step in range(60)] != drawn


def test_a_keep_ratio_that_is_named_twice_comes_twice_as_often(tiny: Config, tmp_path: Path) -> None:
    settings = config(tmp_path, keep_ratios=(0.25, 0.25, 1.0))
    drawn = [keep_ratio_of(step, settings, tiny()) for step in range(600)]
    assert drawn.count(0.25) == pytest.approx(400, abs=40)


def test_a_dense_model_always_keeps_every_token(tiny_dense: Config, tmp_path: Path) -> None:
    assert {keep_ratio_of(step, config(tmp_path), tiny_dense()) for step in range(9)} == {1.0}


# the update -----------------------------------------------------------------------------------------------------------


def test_a_step_changes_what_is_trained_and_the_moving_average(tiny: Config, tmp_path: Path, batch: Batch) -> None:
    stepper = stepper_of(tiny(), config(tmp_path, ema=0.5))
    before = {name: value.clone() for name, value in student_of(stepper).named_parameters()}
    result = learn(stepper, batch)
    after = dict(student_of(stepper).named_parameters())
    name = "mask_decoder.iou_token.weight"
    assert not torch.equal(after[name], before[name])
    assert stepper.average is not None
    torch.testing.assert_close(stepper.average.values[name], (before[name] + after[name]) / 2)
    assert result.parts["loss"] > 0
    assert result.gradient_norm > 0
    frozen = [name for name in before if name.startswith("prompt_encoder")]
    assert all(torch.equal(after[name], before[name]) for name in frozen)


def test_the_gradient_is_clipped_and_its_norm_before_that_told(tiny: Config, tmp_path: Path, batch: Batch) -> None:
    norms, moments = [], []
    for clip in (1e9, 1e-3):
        stepper = stepper_of(tiny(), config(tmp_path, clip_norm=clip))
        norms.append(learn(stepper, batch).gradient_norm)
        first = [state["exp_avg"] for state in stepper.optimizer.state.values()]
        moments.append(torch.stack([value.norm() for value in first]).norm().item())
    assert norms[0] == norms[1] > 1e-3
    assert moments == pytest.approx([0.1 * norms[0], 0.1 * 1e-3], rel=1e-3)  # AdamW's first moment after one step


def test_a_gradient_that_is_no_number_leaves_everything_as_it_was_bit_for_bit(
    tiny: Config, tmp_path: Path, batch: Batch
) -> None:
    stepper = stepper_of(tiny(), config(tmp_path, ema=0.5))
    learn(stepper, batch)
    before = everything(stepper)
    result = learn(stepper, broken(batch), step=1)
    assert result.gradient_norm != result.gradient_norm
    assert all(torch.equal(one, other) for one, other in zip(everything(stepper), before, strict=True))
    assert all(value.grad is None for value in stepper.parameters)


def test_after_a_skipped_step_the_next_learns_as_if_it_had_not_been(tiny: Config, tmp_path: Path, batch: Batch) -> None:
    skipping, straight = (stepper_of(tiny(), config(tmp_path)) for _ in range(2))
    learn(skipping, broken(batch))
    learn(skipping, batch)
    learn(straight, batch)
    assert all(torch.equal(one, other) for one, other in zip(everything(skipping), everything(straight), strict=True))


def test_one_broken_batch_of_several_skips_the_whole_step(tiny: Config, tmp_path: Path, batch: Batch) -> None:
    stepper = stepper_of(tiny(), config(tmp_path, accumulate=2))
    before = everything(stepper)
    learn(stepper, broken(batch), batch)
    assert all(torch.equal(one, other) for one, other in zip(everything(stepper), before, strict=True))


def test_accumulated_batches_have_the_gradient_and_the_loss_of_one(tiny: Config, tmp_path: Path, batch: Batch) -> None:
    results = []
    for batches in ([batch], [batch[:1], batch[1:]]):
        stepper = stepper_of(tiny(), config(tmp_path))
        results.append(learn(stepper, *batches))
    assert results[1].gradient_norm == pytest.approx(results[0].gradient_norm, rel=1e-4)
    assert results[1].parts == pytest.approx(results[0].parts, rel=1e-4)


def test_damaged_photographs_are_learned_nothing_from(tiny: Config, tmp_path: Path, batch: Batch) -> None:
    alone, beside = (stepper_of(tiny(), config(tmp_path)) for _ in range(2))
    learn(alone, batch[:1])
    learn(beside, [batch[0], Damaged(9, "gone")])
    assert all(torch.equal(one, other) for one, other in zip(everything(alone), everything(beside), strict=True))


def test_parts_of_the_loss_are_joined_only_where_they_are_asked_for(tiny: Config, tmp_path: Path, batch: Batch) -> None:
    stepper = stepper_of(tiny(), config(tmp_path))
    plan = stepper.plan(stepper.count([batch]), step=0)
    assert stepper.step([batch], plan, with_parts=False).parts == {}
    assert stepper.step([batch], plan, with_parts=True).parts["loss"] > 0


def test_a_part_that_one_process_lacks_counts_as_nothing_there(
    tiny: Config, tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = stepper_of(tiny(), config(tmp_path))
    plan = stepper.plan(stepper.count([batch]), step=0)
    monkeypatch.setattr(Processes, "gathered", lambda _, item: [item, {"only there": 2.0, "dice": 1.0}])
    alone = stepper_of(tiny(), config(tmp_path))
    parts = stepper.step([batch], plan).parts
    monkeypatch.undo()
    expected = alone.step([batch], plan).parts
    assert parts == pytest.approx({**expected, "only there": 2.0, "dice": expected["dice"] + 1})


def test_what_the_routers_did_is_told_when_it_is_asked_for(tiny: Config, tmp_path: Path, batch: Batch) -> None:
    stepper = stepper_of(tiny(), config(tmp_path))
    counts = stepper.count([batch])
    assert stepper.step([batch], stepper.plan(counts, step=0)).health == {}
    health = stepper.step([batch], stepper.plan(counts, step=0, with_health=True)).health
    assert any(name.endswith("entropy") for name in health)
