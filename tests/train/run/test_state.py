"""Checkpoints: atomic writes, loading the newest that can be loaded, and which are kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sam_blvit.config import FinetuneConfig, ModelConfig, compose
from sam_blvit.model.build import build_sam
from sam_blvit.system.distributed import Processes
from sam_blvit.train.optim import MovingAverage, freeze, optimizer_for
from sam_blvit.train.run.state import Checkpoints, OtherRun, Progress, State, read_progress

Config = Callable[..., ModelConfig]
IDENTITY = {"lr": 0.1}


def fresh(tiny: Config, *, average: bool = False, seed: int = 0) -> State:
    """A model and its optimiser after one step of made-up gradients."""
    torch.manual_seed(seed)
    student = build_sam(tiny())
    config = compose(FinetuneConfig, data=Path("data"), output=Path("run"), decoder_lr=0)
    freeze(student, config)
    optimizer = optimizer_for(student, config)
    state = State(student, optimizer, MovingAverage(student, 0.9) if average else None)
    learn(state)
    return state


def learn(state: State) -> None:
    for parameter in state.student.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    state.optimizer.step()
    if state.average is not None:
        state.average.update(state.student)


def progress(step: int, **options: object) -> Progress:
    return Progress(identity=IDENTITY, origin={}, step=step, samples=8 * step, **options)  # type: ignore[arg-type]


def moments(state: State) -> list[torch.Tensor]:
    parameters = [value for group in state.optimizer.param_groups for value in group["params"]]
    return [state.optimizer.state[value][name] for value in parameters for name in ("step", "exp_avg", "exp_avg_sq")]


def assert_same(one: State, other: State) -> None:
    for name, value in one.student.state_dict().items():
        assert torch.equal(other.student.state_dict()[name], value), name
    assert all(torch.equal(a, b) for a, b in zip(moments(one), moments(other), strict=True))
    assert [g["lr"] for g in one.optimizer.param_groups] == [g["lr"] for g in other.optimizer.param_groups]
    if one.average is not None and other.average is not None:
        assert all(torch.equal(other.average.values[name], value) for name, value in one.average.values.items())


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, Processes())


@pytest.mark.parametrize("average", [False, True])
def test_a_state_comes_back_bit_for_bit(tiny: Config, checkpoints: Checkpoints, average: bool) -> None:
    state = fresh(tiny, average=average)
    checkpoints.save(state, progress(3, damaged={"7": "gone"}))
    other = fresh(tiny, average=average, seed=1)
    assert checkpoints.load_newest(other, IDENTITY) == progress(3, damaged={"7": "gone"})
    assert_same(state, other)
    learn(state)  # and continue identically
    torch.manual_seed(0)
    one, two = fresh(tiny), fresh(tiny)
    assert_same(one, two)


def test_frozen_parameters_are_in_it_too(tiny: Config, checkpoints: Checkpoints) -> None:
    state = fresh(tiny)
    with torch.no_grad():
        state.student.mask_decoder.iou_token.weight.fill_(7)
    checkpoints.save(state, progress(1))
    other = fresh(tiny, seed=1)
    checkpoints.load_newest(other, IDENTITY)
    assert (other.student.mask_decoder.iou_token.weight == 7).all()


def test_without_a_checkpoint_there_is_none_to_load(tiny: Config, checkpoints: Checkpoints) -> None:
    assert checkpoints.load_newest(fresh(tiny), IDENTITY) is None
    assert checkpoints.found() == []


def test_the_newest_two_and_the_best_are_kept(tiny: Config, checkpoints: Checkpoints) -> None:
    state = fresh(tiny)
    for step in range(1, 6):
        checkpoints.save(state, progress(step, best_step=min(step, 2)))
    assert [read_progress(path).step for path in checkpoints.found()] == [2, 4, 5]
    assert sorted(path.name for path in (checkpoints.output / "checkpoints").iterdir()) == [
        "step_00000002", "step_00000004", "step_00000005",
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "gone", "no progress"])
def test_a_damaged_checkpoint_is_passed_over_aloud(tiny: Config, checkpoints: Checkpoints, damage: str) -> None:
    state = fresh(tiny)
    checkpoints.save(state, progress(1))
    saved = fresh(tiny)
    learn(state)
    checkpoints.save(state, progress(2))
    newest = checkpoints.found()[-1]
    (tensors,) = newest.glob("*.distcp")
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[: tensors.stat().st_size // 2])
    elif damage == "gone":
        tensors.unlink()
    else:
        (newest / "run.json").write_text("{")
    other = fresh(tiny, seed=1)
    with pytest.warns(UserWarning, match="step_00000002 cannot be loaded"):
        assert checkpoints.load_newest(other, IDENTITY) == progress(1)
    assert_same(saved, other)


@pytest.mark.parametrize("where", ["student", "optimizer", "average"])
def test_a_checkpoint_with_a_number_that_is_not_finite_is_passed_over(
    tiny: Config, checkpoints: Checkpoints, where: str
) -> None:
    state = fresh(tiny, average=True)
    learn(state)
    checkpoints.save(state, progress(1))
    damaged = {
        "student": next(state.student.parameters()).data,
        "optimizer": moments(state)[-1],
        "average": next(iter((state.average.values if state.average else {}).values())),
    }[where]
    damaged.fill_(float("nan"))
    checkpoints.save(state, progress(2))
    other = fresh(tiny, average=True, seed=1)
    with pytest.warns(UserWarning, match="step_00000002 cannot be loaded .*is not finite"):
        assert checkpoints.load_newest(other, IDENTITY) == progress(1)
    assert other.first_not_finite() is None


def test_if_none_loads_the_run_does_not_start_from_scratch(tiny: Config, checkpoints: Checkpoints) -> None:
    checkpoints.save(fresh(tiny), progress(1))
    (checkpoints.found()[0] / "run.json").unlink()
    with (
        pytest.warns(UserWarning, match="cannot be loaded"),
        pytest.raises(ValueError, match=r"none of 1 checkpoints in .* can be loaded; use another output"),
    ):
        checkpoints.load_newest(fresh(tiny), IDENTITY)


def test_what_a_killed_process_left_unfinished_is_neither_found_nor_in_the_way(
    tiny: Config, checkpoints: Checkpoints
) -> None:
    state = fresh(tiny)
    checkpoints.save(state, progress(1))
    left = checkpoints.output / "checkpoints" / ".unfinished_step_00000002"
    shutil.copytree(checkpoints.found()[0], left)
    assert [path.name for path in checkpoints.found()] == ["step_00000001"]
    checkpoints.save(state, progress(2))
    assert [path.name for path in checkpoints.found()] == ["step_00000001", "step_00000002"]
    assert not left.exists()


def test_saving_the_same_step_again_changes_nothing(tiny: Config, checkpoints: Checkpoints) -> None:
    state = fresh(tiny)
    checkpoints.save(state, progress(1))
    checkpoints.save(state, progress(1))
    assert [read_progress(path).step for path in checkpoints.found()] == [1]


def test_a_run_with_other_settings_is_not_loaded(tiny: Config, checkpoints: Checkpoints) -> None:
    checkpoints.save(fresh(tiny), progress(1))
    state = fresh(tiny, seed=1)
    before = {name: value.clone() for name, value in state.student.state_dict().items()}
    with pytest.raises(OtherRun, match=r"other settings \(lr 0.1 there, 0.2 here\); use another output"):
        checkpoints.load_newest(state, {"lr": 0.2})
    assert all(torch.equal(state.student.state_dict()[name], value) for name, value in before.items())


def test_a_checkpoint_that_was_passed_over_is_put_aside(tiny: Config, checkpoints: Checkpoints) -> None:
    """Else it would count as one of the newest two, and push out what does load."""
    state = fresh(tiny)
    checkpoints.save(state, progress(1))
    for step in (3, 4):
        checkpoints.save(state, progress(step))
    (tmp,) = [path for path in checkpoints.found() if path.name.endswith("4")]
    next(tmp.glob("*.distcp")).unlink()
    with pytest.warns(UserWarning, match="step_00000004 cannot be loaded"):
        assert checkpoints.load_newest(state, IDENTITY) == progress(3)
    checkpoints.save(state, progress(4))
    assert checkpoints.load_newest(state, IDENTITY) == progress(4)


def test_before_the_first_step_nothing_counts_as_one(tiny: Config, checkpoints: Checkpoints) -> None:
    torch.manual_seed(0)
    student = build_sam(tiny())
    optimizer = optimizer_for(student, compose(FinetuneConfig, data=Path("data"), output=Path("run")))
    checkpoints.save(State(student, optimizer, None), progress(0))
    assert all(moments["step"] == 0 for moments in optimizer.state.values())


def test_a_disk_that_is_full_is_one_line_and_leaves_older_checkpoints(
    tiny: Config, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = fresh(tiny)
    checkpoints.save(state, progress(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sam_blvit.train.run.state.checkpoint.save", full)
    with pytest.raises(ValueError, match=r"step_00000002 cannot be written .*No space left.* GiB are free; make room"):
        checkpoints.save(state, progress(2))
    assert [path.name for path in (checkpoints.output / "checkpoints").iterdir()] == ["step_00000001"]
