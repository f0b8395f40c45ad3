"""The trainer as users run it: real processes, killed and signalled, joined by gloo, and what they leave behind."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets import write_annotations, write_images
from processes import assert_each_once, assert_equal_models, diary, finish, gradients, kill, seen, start
from sam_blvit.checkpoint.load import save_sam
from sam_blvit.config import ModelConfig
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.train.run.interrupt import REQUEUE
from synthetic import write_tar
from trainer import LINEAR, MISCOUNTED

SETTINGS = {
    "schedule_steps": 6, "batch_size": 2, "masks_per_image": 2, "mask_side": 32, "workers": 0, "correction_rounds": 0,
    "checkpoint_every": 100, "log_every": 1, "precision": "fp32",
}  # fmt: skip

LINEAR_STEPS = {LINEAR: "1"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six photographs of two shapes."""
    write_tar(tmp_path / "data" / "sa_000000.tar", range(3))
    write_tar(tmp_path / "data" / "sa_000001.tar", range(3, 6), size=(64, 48))
    return tmp_path / "data"


@pytest.fixture
def teacher(tmp_path: Path, tiny_dense: Callable[..., ModelConfig], randomize: Callable[[Sam], Sam]) -> Path:
    path = tmp_path / "teacher.safetensors"
    save_sam(randomize(build_sam(tiny_dense())), path)
    return path


def settings(**options: Any) -> dict[str, Any]:
    return {**SETTINGS, **options}


def wait_for_step(output: Path, step: int, seconds: float = 120) -> None:
    """Return once the run has made `step` steps."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if len(diary(output)) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {step} steps within {seconds} s")


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, data: Path, teacher: Path) -> None:
    options = settings(teacher=teacher, ema=0.5, drop_path=0.3, workers=1, checkpoint_every=1)
    finish(start(tmp_path / "whole", data, **options))
    killed = start(tmp_path / "killed", data, **options)
    wait_for_step(tmp_path / "killed", 3)
    kill(killed)
    said = finish(start(tmp_path / "killed", data, **options))
    assert "resumed after step" in said
    assert_equal_models(tmp_path / "whole", tmp_path / "killed")
    assert_each_once(seen(tmp_path / "killed"))
    assert seen(tmp_path / "killed") == seen(tmp_path / "whole")


def test_photographs_alone_are_distilled(tmp_path: Path, teacher: Path) -> None:
    write_images(tmp_path / "photographs", (1, 2, 3))
    annotations = write_annotations(tmp_path, [], (1, 2, 3))
    options = settings(teacher=teacher, annotations=annotations, schedule_steps=2)
    finish(start(tmp_path / "run", tmp_path / "photographs", **options))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(line["distillation"] > 0 for line in lines if "distillation" in line)
    assert any("distillation" in line for line in lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_asks_to_be_started_again(tmp_path: Path, data: Path, number: signal.Signals) -> None:
    options = settings(schedule_steps=40, workers=1)
    run = start(tmp_path / "run", data, **options)
    wait_for_step(tmp_path / "run", 2)
    kill(run, number)
    said = finish(run, code=REQUEUE)
    assert f"stopped by {number.name} after step" in said
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    steps = len(diary(tmp_path / "run"))
    assert saved.name == f"step_{steps:08d}"  # not one step was lost
    assert steps < 40


@pytest.mark.parametrize("distils_first", [False, True])
def test_a_stop_at_max_steps_goes_on_bit_for_bit(
    tmp_path: Path, data: Path, teacher: Path, distils_first: bool
) -> None:
    options = settings(schedule_steps=4, **({"teacher": teacher, "kd_only_steps": 3} if distils_first else {}))
    finish(start(tmp_path / "whole", data, **options))
    finish(start(tmp_path / "parts", data, **options, max_steps=2))
    assert len(seen(tmp_path / "parts")) == 2
    assert "resumed after step 2" in finish(start(tmp_path / "parts", data, **options))
    assert_equal_models(tmp_path / "whole", tmp_path / "parts")


def soak(root: Path, data: Path, *, kills: int, seed: int) -> str:
    """Kill a run, of one process or two, at random moments until it was killed `kills` times; let it end; what came
    of it."""
    rng = random.Random(seed)
    output, length = root / "run", 10 * kills
    options = settings(schedule_steps=length, workers=1, checkpoint_every=1)
    ended_early = 0
    for _ in range(kills):
        ranks = rng.choice([1, 2])
        before = len(diary(output))
        run = start(output, data, ranks=ranks, **{**options, "batch_size": 2 // ranks})
        wait_for_step(output, before + ranks * rng.randint(1, 4))
        time.sleep(rng.uniform(0, 0.5))  # in the middle of a step, of a checkpoint, of an export
        ended_early += any(not process.is_alive() for process in run.processes)
        kill(run)
    finish(start(output, data, **options), seconds=900)
    steps = seen(output)
    assert list(steps) == list(range(length))
    assert all(len(samples) == 2 for samples in steps.values()), "a step made twice saw other samples"
    assert_each_once(steps)
    made = len({(step, tuple(samples)) for step, samples in diary(output)})
    redone = len(diary(output)) - made
    return f"{kills} kills, {ended_early} of them after the end; {length} steps, {redone} made twice; none lost"


def test_a_run_killed_at_random_moments_never_fails_to_go_on(tmp_path: Path, data: Path) -> None:
    kills = int(os.environ.get("KILLS", "3"))  # make soak: 30
    print(soak(tmp_path, data, kills=kills, seed=0))


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_learn_what_one_would_from_the_same_batch(
    tmp_path: Path, data: Path, teacher: Path, ranks: int
) -> None:
    options = settings(teacher=teacher, schedule_steps=2, drop_path=0.3, environment=LINEAR_STEPS)
    finish(start(tmp_path / "one", data, **{**options, "batch_size": 6}))
    finish(start(tmp_path / "many", data, ranks=ranks, **{**options, "batch_size": 6 // ranks}))
    assert seen(tmp_path / "one") == seen(tmp_path / "many")
    assert_same_learning(tmp_path / "one", tmp_path / "many")


def test_processes_that_divide_by_their_own_counts_would_be_noticed(tmp_path: Path, teacher: Path) -> None:
    data = tmp_path / "uneven"
    write_tar(data / "sa_000000.tar", range(3), masks=1)
    write_tar(data / "sa_000001.tar", range(3, 6), size=(64, 48), masks=2)
    options = settings(teacher=teacher, schedule_steps=1, environment=LINEAR_STEPS)
    finish(start(tmp_path / "one", data, **{**options, "batch_size": 6}))
    wrong = {**options, "batch_size": 3, "environment": {**LINEAR_STEPS, MISCOUNTED: "1"}}
    finish(start(tmp_path / "many", data, ranks=2, **wrong))
    with pytest.raises(AssertionError):
        assert_same_gradients(tmp_path / "one", tmp_path / "many")


def test_accumulated_batches_are_one_large_batch(tmp_path: Path, data: Path, teacher: Path) -> None:
    options = settings(teacher=teacher, schedule_steps=2, drop_path=0.3, environment=LINEAR_STEPS)
    finish(start(tmp_path / "large", data, **{**options, "batch_size": 6}))
    finish(start(tmp_path / "parts", data, **{**options, "batch_size": 2, "accumulate": 3}))
    assert seen(tmp_path / "large") == seen(tmp_path / "parts")
    assert_same_learning(tmp_path / "large", tmp_path / "parts")


def test_fsdp_learns_what_one_process_would(tmp_path: Path, data: Path, teacher: Path) -> None:
    options = settings(teacher=teacher, schedule_steps=3, keep_ratios=(0.0, 0.25, 1.0), environment=LINEAR_STEPS)
    finish(start(tmp_path / "one", data, **{**options, "batch_size": 4}))
    sharded = {**options, "batch_size": 2, "sharding": "fsdp"}  # photographs of two shapes: not every rank has both
    finish(start(tmp_path / "two", data, ranks=2, **sharded))
    assert_same_learning(tmp_path / "one", tmp_path / "two")


def test_fsdp_goes_on_where_it_stopped(tmp_path: Path, data: Path, teacher: Path) -> None:
    options = settings(teacher=teacher, schedule_steps=3, keep_ratios=(0.0, 0.25, 1.0), sharding="fsdp")
    finish(start(tmp_path / "whole", data, ranks=2, **options))
    finish(start(tmp_path / "parts", data, ranks=2, **options, max_steps=2))
    said = finish(start(tmp_path / "parts", data, ranks=2, **options))
    assert "resumed after step 2" in said
    assert_same_losses(tmp_path / "whole", tmp_path / "parts")
    assert_equal_models(tmp_path / "whole", tmp_path / "parts")


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, data: Path) -> None:
    options = {**settings(epochs=2, batch_size=1), "schedule_steps": None}
    finish(start(tmp_path / "run", data, ranks=2, **options, max_steps=2))
    finish(start(tmp_path / "run", data, ranks=1, **options, max_steps=5))
    finish(start(tmp_path / "run", data, ranks=3, **options))
    samples = [sample for step in seen(tmp_path / "run").values() for sample in step]
    epochs = {epoch: sorted(image for e, image in samples if e == epoch) for epoch, _ in samples}
    assert epochs[0] == epochs[1] == list(range(6))
    assert_each_once(seen(tmp_path / "run"))


def assert_same_learning(one: Path, other: Path) -> None:
    """Two runs had the same losses and gradients in every step, but for rounding."""
    assert_same_losses(one, other)
    assert_same_gradients(one, other)


def assert_same_losses(one: Path, other: Path) -> None:
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, other)]
    for first, second in zip(*logs, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
        assert first["gradient_norm"] == pytest.approx(second["gradient_norm"], rel=1e-3)


def assert_same_gradients(one: Path, other: Path) -> None:
    """Every parameter's gradient is the same in every step, relative to its norm; the rounding of one that is next to
    nothing is measured by the norm of all.

    The IoU head learns true IoUs, which are counts of pixels: on some CPUs a logit next to 0 falls on either side, and
    a pixel of some hundred is worth 0.005 of the head's gradient.
    """
    for first, second in zip(gradients(one), gradients(other), strict=True):
        assert set(first) == set(second)
        whole = torch.stack([value.norm() for value in first.values()]).norm()
        for name, value in first.items():
            apart = (value - second[name]).norm()
            share = 1e-2 if "iou_prediction_head" in name else 3e-3
            assert apart <= share * value.norm() + 1e-6 * whole, f"{name}: {apart / value.norm():.2g} of its norm"
