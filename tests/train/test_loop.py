"""The trainer from end to end, in this process: what a run writes, prints and refuses, and what it survives."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from segment_anything import modeling as sa
from torch import Tensor

from conftest import TINY, with_settings
from sam_blvit.checkpoint.load import base_sha256, is_big_little, load_sam, read_metadata, sam_model_registry, save_sam
from sam_blvit.commands import finetune as finetune_module
from sam_blvit.commands.finetune import finetune
from sam_blvit.config import MODELS, FinetuneConfig, ModelConfig, compose, override
from sam_blvit.data.samples import Damaged, Sample, TrainingSamples
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.train import setup
from sam_blvit.train.batches import Batch
from sam_blvit.train.loop import BEST_FILE, MODEL_FILE, Loop, schedule_length
from sam_blvit.train.optim import schedule
from sam_blvit.train.run.failures import BAD_STEPS_FILE
from sam_blvit.train.run.state import Progress, read_progress
from sam_blvit.train.setup import Training
from sam_blvit.train.step import Stepper, StepResult, keep_ratio_of
from synthetic import write_flat, write_tar

Refused = Callable[..., Any]
Seen = list[list[tuple[int, int]]]

DENSE = override(TINY, name="vit_tiny", routed_from=None, routers_after=(), little_layers=())
PHOTOGRAPHS = 6

pytestmark = [
    pytest.mark.filterwarnings("ignore:blvit_tiny. .* is a plain SAM"),
    pytest.mark.usefixtures("counted_once"),
]


@pytest.fixture(autouse=True, scope="module")
def _tiny_models() -> Iterator[None]:
    """The registry's two small models, smaller still."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "blvit_tiny", override(TINY, name="blvit_tiny"))
        patch.setitem(MODELS, "vit_tiny", DENSE)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_tar(root / "sa_000000.tar", range(PHOTOGRAPHS))
    return root


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    torch.manual_seed(0)
    save_sam(build_sam(DENSE), path)
    return path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Samples (epoch, image id) of each step that is made from here on."""
    steps: Seen = []
    step = Stepper.step

    def watched(self: Stepper, batches: Sequence[Batch], *args: Any, **options: Any) -> StepResult:
        items = [item for batch in batches for item in batch]
        steps.append([(item.epoch, item.image_id) for item in items if isinstance(item, Sample)])
        return step(self, batches, *args, **options)

    monkeypatch.setattr(Stepper, "step", watched)
    return steps


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    """The runs that are made ready from here on."""
    trainings: list[Training] = []
    prepare = finetune_module.prepare

    def watched(*args: Any, **options: Any) -> Training:
        trainings.append(prepare(*args, **options))
        return trainings[-1]

    monkeypatch.setattr(finetune_module, "prepare", watched)
    return trainings


def config(data: Path, output: Path, **options: Any) -> FinetuneConfig:
    settings = {
        "model": "blvit_tiny", "schedule_steps": 2, "batch_size": 2, "masks_per_image": 1, "mask_side": 32,
        "workers": 0, "prompts": "evs",
        "keep_ratios": (0.25,), "drop_path": 0.0, "warmup_steps": 1, "log_every": 1, "device": "cpu", **options,
    }  # fmt: skip
    return compose(FinetuneConfig, data=data, output=output, **settings)


def log(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def progress(output: Path) -> Progress:
    """The progress in the newest checkpoint."""
    return read_progress(max((output / "checkpoints").iterdir()))


def tensors(path: Path) -> dict[str, Tensor]:
    return load_sam(path).state_dict()


# what a run writes and prints ----------------------------------------------------------------------------------------

DISTILLED = {
    "schedule_steps": 5, "max_steps": 3, "keep_ratios": (0.25, 0.5), "kd_only_steps": 1, "distillation_layers": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def distilled(data: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of five steps beside a teacher, the first of which asks for no mask."""
    output = tmp_path_factory.mktemp("distilled")
    finetune(config(data, output, teacher=teacher, **DISTILLED))
    return output


def test_distillation_writes_a_model_that_the_registry_loads(distilled: Path, teacher: Path) -> None:
    sam = sam_model_registry["blvit_tiny"](distilled / MODEL_FILE)
    assert sam.config == MODELS["blvit_tiny"]
    name = "image_encoder.pos_embed"
    assert not torch.equal(sam.state_dict()[name], tensors(teacher)[name])


def test_a_model_says_whose_student_it_is_and_after_how_many_steps(distilled: Path) -> None:
    metadata = read_metadata(distilled / MODEL_FILE)
    assert metadata["step"] == "3"
    assert metadata["teacher_sha256"] == progress(distilled).identity["teacher_sha256"]


def test_a_line_has_the_loss_and_its_parts(distilled: Path) -> None:
    for row in log(distilled)[1:]:
        masks = 20 * row["focal"] + row["dice"] + row["iou"]
        assert row["loss"] == pytest.approx(masks + 2.5 * row["distillation"] + 0.5 * row["distillation_2"], rel=1e-4)


def test_the_first_steps_are_distillation_alone(distilled: Path) -> None:
    first, second, _ = log(distilled)
    assert "dice" not in first
    assert "dice" in second
    assert first["loss"] == pytest.approx(2.5 * first["distillation"] + 0.5 * first["distillation_2"], rel=1e-4)


def test_a_line_says_where_the_run_is(distilled: Path, data: Path) -> None:
    rows = log(distilled)
    settings = config(data, distilled, **{**DISTILLED, "kd_only_steps": 0, "distillation_layers": 0})
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["epoch"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1], rel=1e-5)
    assert [row["keep_ratio"] for row in rows] == [
        keep_ratio_of(step, settings, MODELS["blvit_tiny"]) for step in range(3)
    ]
    shares = [row["rate"] / rows[0]["rate"] for row in rows]
    assert shares == pytest.approx([schedule(step, length=5, warmup=1) for step in range(3)], rel=1e-4)


def test_a_line_says_how_fast_it_goes_and_what_went_wrong(distilled: Path) -> None:
    for row in log(distilled):
        assert row["images_per_second"] > 0
        assert 0 < row["data_share"] < 1
        assert row["gradient_norm"] > 0
        assert (row["damaged"], row["bad_steps"]) == (0, 0)


def test_a_line_says_what_the_routers_did(distilled: Path) -> None:
    for row in log(distilled):
        assert any(name.startswith("router") and name.endswith("entropy") for name in row), sorted(row)


def test_lines_are_written_at_their_interval_and_at_the_end(data: Path, tmp_path: Path) -> None:
    finetune(config(data, tmp_path, schedule_steps=5, log_every=2))
    assert [row["step"] for row in log(tmp_path)] == [2, 4, 5]


def test_distillation_brings_features_closer_to_the_teacher(
    data: Path, tmp_path: Path, randomize: Callable[[Sam], Sam]
) -> None:
    save_sam(randomize(build_sam(DENSE)), tmp_path / "teacher.safetensors")
    settings = {"teacher": tmp_path / "teacher.safetensors", "kd_only_steps": 19, "encoder_lr": 1e-3, "lr": 1e-2}
    finetune(config(data, tmp_path, schedule_steps=20, **settings))
    rows = log(tmp_path)
    assert rows[-1]["distillation"] < 0.7 * rows[0]["distillation"]


def test_the_model_of_every_checkpoint_loads(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    save = Loop.save

    def watched(self: Loop) -> None:
        save(self)
        exported, student = tensors(tmp_path / MODEL_FILE), self.training.student.state_dict()
        assert all(torch.equal(value, exported[name]) for name, value in student.items())
        steps.append((progress(tmp_path).step, read_metadata(tmp_path / MODEL_FILE)["step"]))

    monkeypatch.setattr(Loop, "save", watched)
    finetune(config(data, tmp_path, schedule_steps=5, checkpoint_every=2))
    assert steps == [(2, "2"), (4, "4"), (5, "5")]


def test_the_moving_average_is_what_is_saved(data: Path, tmp_path: Path, prepared: list[Training]) -> None:
    finetune(config(data, tmp_path, ema=0.5))
    (training,) = prepared
    assert training.state.average is not None
    saved, average = tensors(tmp_path / MODEL_FILE), training.state.average.values
    weights = training.student.state_dict()
    assert all(torch.equal(saved[name], average.get(name, value)) for name, value in weights.items())
    assert any(not torch.equal(saved[name], value) for name, value in weights.items())


def test_pictures_are_drawn_at_their_interval(data: Path, tmp_path: Path) -> None:
    finetune(config(data, tmp_path, schedule_steps=3, picture_every=2))
    (picture,) = (tmp_path / "pictures").iterdir()
    assert picture.name == "step_00000002.png"
    with Image.open(picture) as image:
        assert image.getextrema() != ((0, 0),) * 3


def test_a_dense_model_trains_from_scratch(data: Path, tmp_path: Path) -> None:
    finetune(config(data, tmp_path, model="vit_tiny", prompt_lr=1e-3))
    assert load_sam(tmp_path / MODEL_FILE).config == DENSE
    assert {row["keep_ratio"] for row in log(tmp_path)} == {1.0}


def test_bf16_trains_float32_weights(data: Path, teacher: Path, tmp_path: Path) -> None:
    finetune(config(data, tmp_path, teacher=teacher, precision="bf16"))
    before, after = tensors(teacher), tensors(tmp_path / MODEL_FILE)
    name = "image_encoder.blocks.0.mlp.lin1.weight"
    assert after[name].dtype == torch.float32
    assert not torch.equal(after[name], before[name])
    assert all(value.isfinite().all() for value in after.values())


def test_a_rate_of_zero_leaves_what_was_there_as_it_was(data: Path, teacher: Path, tmp_path: Path) -> None:
    finetune(config(data, tmp_path, teacher=teacher, encoder_lr=0, decoder_lr=0))
    before, after = tensors(teacher), tensors(tmp_path / MODEL_FILE)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after["image_encoder.blocks.1.little.mlp.leave.weight"].abs().sum() > 0


# resuming -------------------------------------------------------------------------------------------------------------


def test_other_settings_are_refused_by_their_names(
    data: Path, teacher: Path, distilled: Path, refused: Refused
) -> None:
    differing = "(flip False there, True here, lr 0.0005 there, 1e-05 here)"
    with refused(ValueError, re.escape(f"{distilled} contains a run with other settings {differing}; use another")):
        finetune(config(data, distilled, teacher=teacher, **{**DISTILLED, "lr": 1e-5, "flip": True}))
    assert progress(distilled).step == 3


def test_resume_never_refuses_a_directory_with_a_run(
    data: Path, teacher: Path, distilled: Path, refused: Refused
) -> None:
    with refused(ValueError, f"resume=never: {re.escape(str(distilled))} contains a run; use another output"):
        finetune(config(data, distilled, teacher=teacher, **DISTILLED, resume="never"))


def test_resume_never_starts_where_there_is_none(data: Path, tmp_path: Path) -> None:
    finetune(config(data, tmp_path, resume="never", schedule_steps=1))
    assert progress(tmp_path).step == 1


def test_a_run_that_was_moved_goes_on_divided_otherwise(
    data: Path, teacher: Path, distilled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved, photographs, brought = tmp_path / "moved", tmp_path / "photographs", tmp_path / "renamed.safetensors"
    shutil.copytree(distilled, moved)
    shutil.copytree(data, photographs)
    shutil.copy(teacher, brought)
    others = {"batch_size": 1, "accumulate": 2, "workers": 1, "max_steps": None, "checkpoint_every": 1, "log_every": 2}
    finetune(config(photographs, moved, teacher=brought, **{**DISTILLED, **others}))
    assert "resumed after step 3" in capsys.readouterr().out
    assert [row["step"] for row in log(moved)] == [1, 2, 3, 4, 5]
    assert progress(moved).step == 5


def test_a_finished_run_trains_nothing_more(
    data: Path, tmp_path: Path, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(config(data, tmp_path))
    before = tensors(tmp_path / MODEL_FILE)
    assert len(seen) == 2
    finetune(config(data, tmp_path))
    assert len(seen) == len(log(tmp_path)) == 2
    assert "resumed after step 2" in capsys.readouterr().out
    assert all(torch.equal(value, before[name]) for name, value in tensors(tmp_path / MODEL_FILE).items())


def test_more_steps_go_on_where_a_run_stopped(data: Path, tmp_path: Path, seen: Seen) -> None:
    for most in (1, 3):
        finetune(config(data, tmp_path, schedule_steps=3, max_steps=most))
        assert progress(tmp_path).step == most
    assert len(seen) == 3
    assert sorted(sample for step in seen for sample in step) == [(0, i) for i in range(PHOTOGRAPHS)]


def test_with_other_batches_the_epochs_end_after_another_number_of_steps(
    data: Path, tmp_path: Path, seen: Seen
) -> None:
    epochs = {"epochs": 2.0, "schedule_steps": None}
    finetune(config(data, tmp_path, **epochs, max_steps=3))
    finetune(config(data, tmp_path, **epochs, batch_size=3))
    assert [len(step) for step in seen] == [2, 2, 2, 3, 3]
    samples = [sample for step in seen for sample in step]
    assert sorted(samples) == [(epoch, i) for epoch in range(2) for i in range(PHOTOGRAPHS)]


@pytest.mark.parametrize(
    ("options", "done", "length"),
    [
        ({"epochs": 2.0}, {}, 4),  # 20 images, 6 a step
        ({"epochs": 0.5}, {}, 1),
        ({"epochs": 2.0}, {"step": 3, "samples": 18}, 4),
        ({"epochs": 2.0}, {"step": 9, "samples": 9}, 11),  # of one image each
        ({"epochs": 2.0}, {"step": 30, "samples": 21}, 30),
        ({"epochs": 2.0, "schedule_steps": 100}, {"step": 30, "samples": 21}, 100),
    ],
)
def test_a_schedule_lasts_until_the_epochs_are_over_or_as_long_as_it_is_told(
    options: dict[str, Any], done: dict[str, Any], length: int
) -> None:
    settings = with_settings(config(Path("data"), Path("run")), **{"schedule_steps": None, **options})
    assert schedule_length(settings, 10, 6, Progress({}, {}, **done)) == length


# what goes wrong ------------------------------------------------------------------------------------------------------


def without_numbers(image_id: int) -> type[TrainingSamples]:
    """Samples of which photograph `image_id` yields no number."""

    class Spoilt(TrainingSamples):
        def __getitem__(self, place: tuple[int, int]) -> Sample | Damaged:
            item = super().__getitem__(place)
            if isinstance(item, Sample) and item.image_id == image_id:
                return replace(item, image=torch.full_like(item.image, torch.nan, dtype=torch.float32))
            return item

    return Spoilt


def test_a_step_without_a_number_is_skipped_counted_and_written_down(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "TrainingSamples", without_numbers(3))
    with pytest.warns(UserWarning, match=r"step \d skipped: its gradient's norm is nan"):
        finetune(config(data, tmp_path, schedule_steps=3))  # one epoch
    (line,) = (tmp_path / BAD_STEPS_FILE).read_text().splitlines()
    assert 3 in (told := json.loads(line))["images"]
    assert len(told["images"]) == 2
    rows = log(tmp_path)
    assert [row["step"] for row in rows if row["gradient_norm"] == "nan"] == [told["step"]]
    assert [row["bad_steps"] for row in rows] == [int(row["step"] >= told["step"]) for row in rows]
    assert progress(tmp_path).bad_steps == 1
    assert all(value.isfinite().all() for value in tensors(tmp_path / MODEL_FILE).values())


def test_too_many_steps_without_a_number_end_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setattr(setup, "TrainingSamples", without_numbers(3))
    with pytest.warns(UserWarning, match="skipped"), refused(ValueError, "2 steps had a gradient that was not finite"):
        finetune(config(data, tmp_path, schedule_steps=9, max_bad_steps=2))
    assert len((tmp_path / BAD_STEPS_FILE).read_text().splitlines()) == 2
    assert progress(tmp_path).bad_steps == 2  # what was learnt until then is kept


@pytest.fixture
def one_damaged(tmp_path: Path) -> Path:
    """Three photographs, one of which is none."""
    write_flat(tmp_path / "flat", range(3))
    (tmp_path / "flat" / "sa_1.jpg").write_bytes(b"no picture")
    return tmp_path / "flat"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_photograph_is_counted_once_and_the_run_goes_on(
    one_damaged: Path, tmp_path: Path, seen: Seen, workers: int
) -> None:
    with pytest.warns(UserWarning, match=r"left out: .*sa_1.jpg") as said:
        finetune(config(one_damaged, tmp_path, schedule_steps=6, batch_size=1, workers=workers))  # two epochs
    assert len([warning for warning in said if "left out" in str(warning.message)]) == 1
    assert list(progress(tmp_path).damaged) == ["1"]
    assert [row["damaged"] for row in log(tmp_path)][2:] == [1] * 4
    assert sorted(sample for step in seen for sample in step) == [(0, 0), (0, 2), (1, 0), (1, 2)]


def test_more_damaged_photographs_than_one_in_a_thousand_end_the_run(
    one_damaged: Path, tmp_path: Path, refused: Refused
) -> None:
    (one_damaged / "sa_2.json").write_text("{")
    with pytest.warns(UserWarning, match="left out"), refused(ValueError, "2 of 3 photographs cannot be used"):
        finetune(config(one_damaged, tmp_path, batch_size=1, schedule_steps=3))
    assert set(progress(tmp_path).damaged) == {"1", "2"}  # what was learnt until then is kept


def test_what_is_excluded_is_not_trained_on(
    data: Path, tmp_path: Path, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_text("1\n4\n99\n")
    finetune(config(data, tmp_path, exclude=tmp_path / "ids.txt"))
    assert {image_id for step in seen for _, image_id in step} == {0, 2, 3, 5}
    assert "4 photographs of" in (printed := capsys.readouterr().out)
    assert "2 left out" in printed


# validation -----------------------------------------------------------------------------------------------------------


def test_the_best_model_and_its_checkpoint_are_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([1.0, 3.0, 2.0, 3.0, 0.5])
    weights = []

    def validate(sam: Sam) -> dict[str, float]:
        weights.append({name: value.clone() for name, value in sam.state_dict().items()})
        return {"val/held/box": 50.0, "score": next(scores)}

    monkeypatch.setattr(finetune_module.Validation, "of", lambda *_, **__: validate)
    finetune(config(data, tmp_path, schedule_steps=5, validate_every=1, holdout=1))
    assert (progress(tmp_path).best_score, progress(tmp_path).best_step) == (3.0, 2)
    best = tensors(tmp_path / BEST_FILE)
    assert all(torch.equal(value, weights[1][name]) for name, value in best.items())
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step_00000002", "step_00000004", "step_00000005"]
    assert [row["score"] for row in log(tmp_path) if "score" in row] == [1.0, 3.0, 2.0, 3.0, 0.5]


def test_held_out_photographs_are_measured_on_and_not_trained_on(
    data: Path, teacher: Path, tmp_path: Path, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(config(data, tmp_path, teacher=teacher, holdout=2, schedule_steps=3))
    assert len({image_id for step in seen for _, image_id in step}) == 4
    (row,) = [row for row in log(tmp_path) if "score" in row]
    assert row["step"] == 3
    assert 0 <= row["val/held/box"] <= 100
    table = (tmp_path / "comparison.md").read_text()
    assert "| before | vit_tiny |" in table
    assert "| after | blvit_tiny | 0.25 |" in table
    assert table.strip() in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:vit_tiny (starts with evenly|takes prompt)")
def test_a_dense_student_smaller_than_its_teacher_goes_on_and_is_compared(
    data: Path, teacher: Path, tmp_path: Path, refused: Refused
) -> None:
    narrow = {"model": "vit_tiny", "teacher": teacher, "options": ("dim=16", "heads=1"), "holdout": 2}
    finetune(config(data, tmp_path / "whole", **narrow))
    finetune(config(data, tmp_path / "parts", **narrow, max_steps=1))
    finetune(config(data, tmp_path / "parts", **narrow))
    whole = tensors(tmp_path / "whole" / MODEL_FILE)
    assert all(torch.equal(value, whole[name]) for name, value in tensors(tmp_path / "parts" / MODEL_FILE).items())
    assert load_sam(tmp_path / "parts" / MODEL_FILE).config == override(DENSE, dim=16, heads=1)
    table = (tmp_path / "whole" / "comparison.md").read_text()
    assert [line.split("|")[1:4] for line in table.splitlines() if "vit_tiny" in line] == [
        [" before ", " vit_tiny ", " 1 "],
        [" after ", " vit_tiny ", " 1 "],
    ]
    with refused(ValueError, "contains a run with other settings .*options"):
        finetune(config(data, tmp_path / "parts", **narrow | {"options": ("dim=32", "layers=2", "global_layers=2")}))


# --freeze performance -------------------------------------------------------------------------------------------------


@pytest.fixture
def frozen(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepared: list[Training],
    original_sam: Callable[[ModelConfig], sa.Sam],
) -> tuple[sa.Sam, Training]:
    """segment-anything's own model with padded windows, and a run that freezes it; `sam.pth` and `run`."""
    monkeypatch.setitem(MODELS, "blvit_tiny", override(TINY, name="blvit_tiny", rel_pos_window=3))
    monkeypatch.setitem(MODELS, "vit_tiny", override(DENSE, window=3, rel_pos_window=3))
    theirs = original_sam(MODELS["vit_tiny"])
    torch.save(theirs.state_dict(), tmp_path / "sam.pth")
    settings = {"window": 3, "freeze": "performance", "keep_ratios": (0.25, 1.0), "lr": 1e-2}
    finetune(config(data, tmp_path / "run", teacher=tmp_path / "sam.pth", schedule_steps=3, **settings))
    return theirs, prepared[0]


def test_frozen_performance_blocks_neck_prompt_encoder_and_decoder_stay_bit_for_bit(
    frozen: tuple[sa.Sam, Training],
) -> None:
    theirs, training = frozen
    trained = training.student.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in theirs.state_dict().items())
    fresh = build_sam(training.student.config).state_dict()
    new = [name for name in trained if name not in theirs.state_dict()]
    assert new
    assert any(not torch.equal(trained[name], fresh[name]) for name in new)


def test_a_frozen_run_writes_an_adapter_that_over_its_base_is_the_student(
    frozen: tuple[sa.Sam, Training], tmp_path: Path
) -> None:
    _, training = frozen
    path = tmp_path / "run" / MODEL_FILE
    assert read_metadata(path)["sam_blvit.base_sha256"] == base_sha256(tmp_path / "sam.pth")
    loaded = load_sam(path, tmp_path / "sam.pth").state_dict()
    for name, value in training.student.state_dict().items():
        stored = value.bfloat16().float() if is_big_little(name) and value.dim() > 1 else value
        assert torch.equal(loaded[name], stored), name
    assert path.stat().st_size < 0.2 * (tmp_path / "sam.pth").stat().st_size


@torch.no_grad()
def test_what_was_frozen_is_still_segment_anythings_model_at_keep_ratio_1(
    frozen: tuple[sa.Sam, Training], tmp_path: Path
) -> None:
    theirs, _ = frozen
    ours = load_sam(tmp_path / "run" / MODEL_FILE, tmp_path / "sam.pth", keep_ratio=1.0)
    assert ours.config.padded
    image = torch.randn(2, 3, 128, 128)
    torch.testing.assert_close(ours.image_encoder(image), theirs.image_encoder(image), rtol=1e-4, atol=1e-4)
    ours.image_encoder.keep_ratio = 0.25
    assert (ours.image_encoder(image) - theirs.image_encoder(image)).abs().max() > 1e-2


def test_fewer_steps_than_a_run_has_made_are_refused(data: Path, tmp_path: Path) -> None:
    finetune(config(data, tmp_path, schedule_steps=3, max_steps=2))
    with pytest.raises(ValueError, match=r"max_steps=1: the run in .* has already made 2 steps"):
        finetune(config(data, tmp_path, schedule_steps=3, max_steps=1))
    finetune(config(data, tmp_path, schedule_steps=3, max_steps=2))
