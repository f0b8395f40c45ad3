import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sam_blvit.checkpoint import build_from_registry, load_sam, save_sam
from sam_blvit.config import MODELS, FinetuneConfig, ModelConfig, override
from sam_blvit.data.sa1b import Sample
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.train import loop
from sam_blvit.train.loop import Batches, finetune, keep_ratio_of
from sam_blvit.train.objective import training_loss
from synthetic import write_flat, write_tar


@pytest.fixture(autouse=True)
def _tiny_models(
    monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., ModelConfig], tiny_dense: Callable[..., ModelConfig]
) -> None:
    """The registry's two small models, smaller still."""
    monkeypatch.setitem(MODELS, "blvit_tiny", override(tiny(), name="blvit_tiny"))
    monkeypatch.setitem(MODELS, "vit_tiny", override(tiny_dense(), name="vit_tiny"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_tar(tmp_path / "data" / "sa_000000.tar", range(6))
    return tmp_path / "data"


def config(data: Path, output: Path, **options: object) -> FinetuneConfig:
    settings = {
        "steps": 4, "batch_size": 2, "masks_per_image": 2, "mask_side": 32, "workers": 0,
        "warmup_steps": 1, "log_every": 1, "device": "cpu", **options,
    }  # fmt: skip
    return FinetuneConfig(data=data, output=output, **settings)  # type: ignore[arg-type]


@pytest.fixture
def teacher(tmp_path: Path, randomize: Callable[[Sam], Sam]) -> Path:
    path = tmp_path / "teacher.safetensors"
    save_sam(randomize(build_sam(MODELS["vit_tiny"])), path)
    return path


def test_distillation_writes_a_model_that_the_registry_loads(data: Path, teacher: Path, tmp_path: Path) -> None:
    path = finetune(config(data, tmp_path / "run", teacher=teacher))
    sam = build_from_registry("blvit_tiny", path)
    assert sam.config == MODELS["blvit_tiny"]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert log[0]["loss"] == pytest.approx(log[0]["mask"] + 2.5 * log[0]["distillation"], abs=1e-4)


def test_distillation_brings_features_closer_to_the_teacher(data: Path, teacher: Path, tmp_path: Path) -> None:
    options = {"teacher": teacher, "steps": 30, "encoder_lr": 1e-3, "lr": 1e-2, "distillation_weight": 100.0}
    finetune(config(data, tmp_path / "run", **options))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["distillation"] < 0.7 * log[0]["distillation"]


def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"teacher": teacher, "keep_ratios": (0.25, 0.5, 1.0), "save_every": 2, "steps": 5}
    whole = load_sam(finetune(config(data, tmp_path / "whole", **options)))
    stopped = config(data, tmp_path / "stopped", **options)
    with monkeypatch.context() as patch:
        steps = []

        def interrupted(*args: object, **kwargs: object) -> object:
            steps.append(1)
            if len(steps) == 4:
                raise KeyboardInterrupt
            return training_loss(*args, **kwargs)  # type: ignore[arg-type]

        patch.setattr(loop, "training_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune(stopped)
    resumed = load_sam(finetune(stopped))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


def test_a_run_with_other_settings_is_not_gone_on_with(data: Path, teacher: Path, tmp_path: Path) -> None:
    finetune(config(data, tmp_path / "run", teacher=teacher))
    with pytest.raises(ValueError, match="holds a run with other settings; name another --output"):
        finetune(config(data, tmp_path / "run", teacher=teacher, lr=1e-5))


def test_a_rate_of_zero_leaves_the_performance_blocks_as_they_were(data: Path, teacher: Path, tmp_path: Path) -> None:
    path = finetune(config(data, tmp_path / "run", teacher=teacher, encoder_lr=0, decoder_lr=0))
    before, after = load_sam(teacher).state_dict(), load_sam(path).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after["image_encoder.blocks.1.little.mlp.leave.weight"].abs().sum() > 0


def test_a_student_with_another_decoder_than_its_teacher_is_refused(data: Path, teacher: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_sam(build_sam(MODELS["vit_tiny"]), other)
    with pytest.raises(ValueError, match="another prompt encoder or mask decoder than teacher"):
        finetune(config(data, tmp_path / "run", teacher=teacher, checkpoint=other))


def test_a_student_goes_on_under_the_teacher_it_was_distilled_from(data: Path, teacher: Path, tmp_path: Path) -> None:
    first = finetune(config(data, tmp_path / "first", teacher=teacher, decoder_lr=1e-3))
    second = finetune(config(data, tmp_path / "second", teacher=teacher, checkpoint=first))
    assert load_sam(second).config == MODELS["blvit_tiny"]


def test_a_teacher_made_for_another_side_is_brought_to_the_students(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "small_teacher.safetensors"
    save_sam(build_sam(override(MODELS["vit_tiny"], image_size=64)), path)
    assert load_sam(finetune(config(data, tmp_path / "run", teacher=path))).config.image_size == 128


def test_bf16_trains_float32_weights(data: Path, teacher: Path, tmp_path: Path) -> None:
    path = finetune(config(data, tmp_path / "run", teacher=teacher, precision="bf16"))
    before, after = load_sam(teacher).state_dict(), load_sam(path).state_dict()
    name = "image_encoder.blocks.0.mlp.lin1.weight"
    assert after[name].dtype == torch.float32
    assert not torch.equal(after[name], before[name])
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_photograph_ends_the_run_with_one_line(data: Path, tmp_path: Path, workers: int) -> None:
    write_flat(tmp_path / "flat", range(2))
    (tmp_path / "flat" / "sa_1.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^sa_1 in .*sa_1.jpg is damaged") as error:
        finetune(config(tmp_path / "flat", tmp_path / "run", model="vit_tiny", workers=workers))
    assert "\n" not in str(error.value)


def test_leaving_every_image_out_leaves_none_to_train_on(data: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("\n".join(map(str, range(6))))
    with pytest.raises(ValueError, match=r"all 6 images of .* are in .*ids.txt: none is left"):
        finetune(config(data, tmp_path / "run", model="vit_tiny", exclude=tmp_path / "ids.txt"))


def test_images_left_out_are_not_trained_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = set()

    def watched(student: Sam, teacher: Sam | None, samples: list[Sample], **options: object) -> dict[str, torch.Tensor]:
        seen.update(sample.image_id for sample in samples)
        return training_loss(student, teacher, samples, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "training_loss", watched)
    (tmp_path / "ids.txt").write_text("1\n4\n99\n")
    finetune(config(data, tmp_path / "run", model="vit_tiny", exclude=tmp_path / "ids.txt"))
    assert seen == {0, 2, 3, 5}
    assert "4 images of" in (printed := capsys.readouterr().out)
    assert "2 kept out" in printed


def test_a_dense_model_trains_from_scratch(data: Path, tmp_path: Path) -> None:
    path = finetune(config(data, tmp_path / "run", model="vit_tiny", prompt_lr=1e-3))
    assert load_sam(path).config.name == "vit_tiny"


def test_a_loss_that_is_no_number_ends_the_run_naming_the_images(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "training_loss", lambda *_, **__: {"loss": torch.tensor(torch.nan)})
    with pytest.raises(ValueError, match=r"the loss is nan at step 0, images \d, \d; try a lower --lr"):
        finetune(config(data, tmp_path / "run", model="vit_tiny"))


def test_each_epoch_holds_every_image_once_and_a_later_start_changes_nothing() -> None:
    batches = list(Batches(10, 4, first=0, last=5, seed=0))
    places = [place for batch in batches for place in batch]
    assert sorted(places) == [(epoch, i) for epoch in range(2) for i in range(10)]
    assert [i for e, i in places if e == 0] != [i for e, i in places if e == 1]
    assert list(Batches(10, 4, first=3, last=5, seed=0)) == batches[3:]


def test_keep_ratios_are_drawn_by_seed_and_step(tmp_path: Path) -> None:
    settings = config(tmp_path, tmp_path, keep_ratios=(0.25, 0.5, 1.0))
    drawn = [keep_ratio_of(step, settings) for step in range(50)]
    assert set(drawn) == {0.25, 0.5, 1.0}
    assert drawn == [keep_ratio_of(step, settings) for step in range(50)]
    assert keep_ratio_of(0, config(tmp_path, tmp_path, model="vit_tiny")) == 1.0
