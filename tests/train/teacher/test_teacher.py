"""Teachers: their embeddings, and the initial weights of students."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import with_settings
from exports import export_sam
from sam_blvit.checkpoint.load import save_plain_sam, save_sam
from sam_blvit.config import MODELS, FinetuneConfig, ModelConfig, TrainingDataConfig, compose, override
from sam_blvit.data.samples import Sample, TrainingSamples
from sam_blvit.data.sources import training_source
from sam_blvit.exported.sam import ExportedSam, load_exported
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.system.files import file_sha256
from sam_blvit.train.teacher.inherit import inherit
from sam_blvit.train.teacher.targets import (
    TEACHER_KEY,
    LiveTeacher,
    load_student_and_teacher,
    load_teacher,
    teacher_for,
    teacher_model,
    teacher_size,
)
from synthetic import write_flat

Build = Callable[[Sam], Sam]
Refused = Callable[[type[Exception], str], AbstractContextManager[Any]]
DECODERS = ("prompt_encoder.", "mask_decoder.")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(must be distilled|starts with evenly|takes prompt encoder|positions interpolated)"
)


@pytest.fixture(autouse=True)
def _tiny_models(
    monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., ModelConfig], tiny_dense: Callable[..., ModelConfig]
) -> None:
    """The registry's small models, smaller still, and a dense one of another size."""
    monkeypatch.setitem(MODELS, "blvit_tiny", tiny(name="blvit_tiny"))
    monkeypatch.setitem(MODELS, "vit_tiny", tiny_dense())
    monkeypatch.setitem(MODELS, "vit_h", tiny_dense(name="vit_h", dim=48, heads=3, layers=3, global_layers=(3,)))


@pytest.fixture
def teacher(tmp_path: Path, randomize: Build) -> Path:
    """A dense SAM of the student's size."""
    return saved(randomize(build_sam(MODELS["vit_tiny"])), tmp_path / "teacher.safetensors")


@pytest.fixture
def large(tmp_path: Path, randomize: Build) -> Path:
    """A dense SAM of another size."""
    return saved(randomize(build_sam(MODELS["vit_h"])), tmp_path / "large.safetensors")


def saved(sam: Sam, path: Path, **metadata: str) -> Path:
    save_sam(sam, path, metadata=metadata)
    return path


def config(**options: Any) -> FinetuneConfig:
    return compose(FinetuneConfig, data=Path("data"), output=Path("run"), **{"model": "blvit_tiny", **options})


def photographs(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randint(0, 256, (3, *size)).float() for size in sizes]


def seen(images: list[Tensor]) -> list[Sample]:
    """Samples of `images` without masks."""
    nothing = {"masks": torch.zeros(0, 1, 1, dtype=torch.bool), "boxes": torch.zeros(0, 4), "ann_ids": ()}
    return [Sample(epoch=0, image_id=place, image=image, valid=(1, 1), **nothing) for place, image in enumerate(images)]


def equal(one: Sam, other: Sam, prefixes: tuple[str, ...]) -> bool:
    theirs = other.state_dict()
    return all(
        torch.equal(value, theirs[name]) for name, value in one.state_dict().items() if name.startswith(prefixes)
    )


# who ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("blvit_b_t", "vit_b"), ("blvit_l_s", "vit_l"), ("blvit_tiny", "vit_tiny"), ("vit_l", "vit_l")],
)
def test_the_same_teacher_is_the_dense_model_of_the_students_size(student: str, teacher: str) -> None:
    assert teacher_model(config(model=student)) == teacher


def test_a_teacher_may_be_named() -> None:
    assert teacher_model(config(teacher=Path("sam.pth"), teacher_model="vit_h")) == "vit_h"


# student and teacher at the start -----------------------------------------------------------------------------------


def test_without_teacher_and_checkpoint_weights_are_fresh() -> None:
    torch.manual_seed(3)
    expected = build_sam(override(MODELS["blvit_tiny"], window=2)).state_dict()
    torch.manual_seed(3)
    student, teacher = load_student_and_teacher(config(window=2, options=("keep_ratio=0.5",)))
    assert teacher is None
    assert student.config == override(MODELS["blvit_tiny"], window=2, keep_ratio=0.5)
    assert all(torch.equal(value, expected[name]) for name, value in student.state_dict().items())


def test_a_checkpoint_alone_is_gone_on_with(tmp_path: Path, randomize: Build) -> None:
    before = randomize(build_sam(MODELS["blvit_tiny"]))
    student, teacher = load_student_and_teacher(config(checkpoint=saved(before, tmp_path / "before.safetensors")))
    assert teacher is None
    assert equal(student, before, ("",))


def test_a_student_starts_from_its_teacher(teacher: Path) -> None:
    with pytest.warns(UserWarning, match="must be distilled"):
        student, its_teacher = load_student_and_teacher(config(teacher=teacher))
    assert its_teacher is not None
    assert student.config == MODELS["blvit_tiny"]
    assert its_teacher.config == MODELS["vit_tiny"]
    assert equal(its_teacher, student, ("",))


def test_settings_of_the_run_are_the_students(teacher: Path) -> None:
    settings = config(teacher=teacher, window=2, image_size=96, options=("router_scores=two_class", "keep_ratio=0.5"))
    student, its_teacher = load_student_and_teacher(settings)
    assert its_teacher is not None
    changed = {"window": 2, "image_size": 96, "router_scores": "two_class", "keep_ratio": 0.5}
    assert student.config == override(MODELS["blvit_tiny"], **changed)
    assert (its_teacher.config.window, its_teacher.config.image_size) == (4, 96)


def test_the_teachers_images_are_as_large_as_the_students(tmp_path: Path, teacher: Path) -> None:
    small = saved(build_sam(override(MODELS["vit_tiny"], image_size=64)), tmp_path / "small.safetensors")
    student, its_teacher = load_student_and_teacher(config(teacher=small))
    assert its_teacher is not None
    assert its_teacher.config.image_size == student.config.image_size == 128


def test_a_student_with_another_decoder_is_refused(tmp_path: Path, teacher: Path, refused: Callable[..., Any]) -> None:
    other = saved(build_sam(MODELS["vit_tiny"]), tmp_path / "other.safetensors")
    with refused(ValueError, r"other.safetensors has another prompt encoder or mask decoder than teacher .*start from"):
        load_student_and_teacher(config(teacher=teacher, checkpoint=other))


def test_a_student_of_this_teacher_keeps_its_own_decoder(tmp_path: Path, teacher: Path, randomize: Build) -> None:
    trained = randomize(build_sam(MODELS["blvit_tiny"]))
    path = saved(trained, tmp_path / "trained.safetensors", **{TEACHER_KEY: file_sha256(teacher)})
    student, _ = load_student_and_teacher(config(teacher=teacher, checkpoint=path))
    assert equal(student, trained, ("",))


def test_a_student_of_another_teacher_is_refused(
    tmp_path: Path, teacher: Path, randomize: Build, refused: Callable[..., Any]
) -> None:
    trained = randomize(build_sam(MODELS["blvit_tiny"]))
    path = saved(trained, tmp_path / "trained.safetensors", **{TEACHER_KEY: "0" * 64})
    with refused(ValueError, "another prompt encoder or mask decoder"):
        load_student_and_teacher(config(teacher=teacher, checkpoint=path))


# a teacher of another size ------------------------------------------------------------------------------------------


def test_a_teacher_of_another_size_lends_its_decoder(teacher: Path, large: Path) -> None:
    settings = config(teacher=large, teacher_model="vit_h", checkpoint=teacher)
    with pytest.warns(UserWarning, match="takes prompt encoder") as said:
        student, its_teacher = load_student_and_teacher(settings)
    assert its_teacher is not None
    assert equal(student, its_teacher, DECODERS)
    blocks = load_teacher(config(teacher=teacher), MODELS["blvit_tiny"])
    assert equal(blocks, student, ("image_encoder.",))
    assert not equal(blocks, student, DECODERS)
    (told,) = (str(warning.message) for warning in said if "takes prompt encoder" in str(warning.message))
    assert told.startswith(f"blvit_tiny takes prompt encoder and mask decoder of teacher {large} (vit_h)")
    assert "kd_only_steps of about 5 % of the steps" in told
    assert "\n" not in told


def test_who_distils_alone_first_needs_no_advice(teacher: Path, large: Path) -> None:
    settings = config(teacher=large, teacher_model="vit_h", checkpoint=teacher, kd_only_steps=5)
    with pytest.warns(UserWarning, match="takes prompt encoder") as said:
        load_student_and_teacher(settings)
    (told,) = (str(warning.message) for warning in said if "takes prompt encoder" in str(warning.message))
    assert told.endswith("(vit_h)")


def test_a_plain_sam_gives_the_performance_blocks(tmp_path: Path, teacher: Path, large: Path) -> None:
    plain = load_teacher(config(teacher=teacher), MODELS["blvit_tiny"])
    save_plain_sam(plain, tmp_path / "plain.pth")
    settings = config(teacher=large, teacher_model="vit_h", checkpoint=tmp_path / "plain.pth")
    with pytest.warns(UserWarning, match="must be distilled") as said:
        student, _ = load_student_and_teacher(settings)
    assert equal(plain, student, ("image_encoder.",))
    assert any("takes prompt encoder" in str(warning.message) for warning in said)


def test_a_student_of_a_teacher_of_another_size_keeps_its_own_decoder(
    tmp_path: Path, large: Path, randomize: Build
) -> None:
    trained = randomize(build_sam(MODELS["blvit_tiny"]))
    path = saved(trained, tmp_path / "trained.safetensors", **{TEACHER_KEY: file_sha256(large)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student, _ = load_student_and_teacher(config(teacher=large, teacher_model="vit_h", checkpoint=path))
    assert equal(student, trained, ("",))


def test_a_teacher_of_another_size_wants_a_checkpoint_beside_it(large: Path, refused: Callable[..., Any]) -> None:
    with refused(ValueError, "blvit_tiny does not fit into teacher vit_h .*name weights of its own size with ch"):
        load_student_and_teacher(config(teacher=large, teacher_model="vit_h"))


def test_tokens_of_another_size_cannot_be_matched(teacher: Path, large: Path, refused: Callable[..., Any]) -> None:
    settings = config(teacher=large, teacher_model="vit_h", checkpoint=teacher, distillation_layers=1.0)
    with refused(ValueError, "distillation_layers=1.0: tokens of vit_h have another size than those of the student"):
        load_student_and_teacher(settings)


# a student smaller than its teacher ---------------------------------------------------------------------------------

NARROW = ("dim=16", "heads=1")
SHALLOW = ("layers=2", "global_layers=2")


@pytest.mark.parametrize("options", [NARROW, SHALLOW, (*NARROW, *SHALLOW)])
def test_a_smaller_student_starts_with_a_part_of_its_teacher(teacher: Path, options: tuple[str, ...]) -> None:
    settings = config(model="vit_tiny", teacher=teacher, options=options)
    with pytest.warns(UserWarning, match="starts with evenly") as said:
        student, its_teacher = load_student_and_teacher(settings)
    assert its_teacher is not None
    assert its_teacher.config == MODELS["vit_tiny"]
    assert student.config == override(MODELS["vit_tiny"], **settings.student.overrides)
    assert equal(student, its_teacher, (*DECODERS, "image_encoder.neck.1"))
    expected = build_sam(student.config)
    inherit(expected, its_teacher)
    assert equal(student, expected, ("image_encoder.",))
    started, taken = (str(warning.message) for warning in said)
    assert started == f"vit_tiny starts with evenly spaced channels of the first layers of teacher {teacher} (vit_tiny)"
    assert taken.startswith("vit_tiny takes prompt encoder and mask decoder of teacher")


def test_a_smaller_routed_student_says_what_is_fresh(teacher: Path) -> None:
    with pytest.warns(UserWarning, match="its routers and efficiency blocks are untrained"):
        student, its_teacher = load_student_and_teacher(config(teacher=teacher, options=NARROW))
    assert its_teacher is not None
    assert (student.config.routed, student.config.dim, its_teacher.config.dim) == (True, 16, 32)


def test_a_smaller_student_goes_on_from_its_own_checkpoint(tmp_path: Path, teacher: Path, randomize: Build) -> None:
    settings = config(model="vit_tiny", teacher=teacher, options=NARROW)
    before = randomize(build_sam(override(MODELS["vit_tiny"], dim=16, heads=1)))
    path = saved(before, tmp_path / "narrow.safetensors", **{TEACHER_KEY: file_sha256(teacher)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student, _ = load_student_and_teacher(with_settings(settings, checkpoint=path))
    assert equal(student, before, ("",))


def test_what_only_a_student_of_the_teachers_size_can_have_is_refused_a_smaller_one(
    teacher: Path, refused: Callable[..., Any]
) -> None:
    with refused(ValueError, "distillation_layers=1.0: tokens of vit_tiny have another size than those of the student"):
        load_student_and_teacher(config(teacher=teacher, options=NARROW, distillation_layers=1.0))
    with refused(ValueError, "freeze=performance keeps all of SAM's weights"):
        load_student_and_teacher(config(teacher=teacher, options=NARROW, freeze="performance"))


# targets ------------------------------------------------------------------------------------------------------------


def test_a_target_is_what_the_teacher_makes_of_the_image_alone(randomize: Build) -> None:
    sam = randomize(build_sam(MODELS["blvit_tiny"]))  # big.LITTLE: pads to whole windows only
    images = photographs((128, 128), (60, 128), (128, 70), (50, 128))
    target = LiveTeacher(sam).targets(images, seen(images))
    assert target.features == {}
    for image, embedding in zip(images, target.embedding, strict=True):
        torch.testing.assert_close(embedding, sam.encode_images([image])[0], rtol=1e-4, atol=1e-4)
    on_the_square = sam.image_encoder(F.pad(sam.preprocess(images[1])[None], (0, 0, 0, 64)))
    assert not torch.allclose(on_the_square[0], target.embedding[1], atol=1e-2)


def test_tokens_of_layers_come_too_on_the_square(randomize: Build) -> None:
    sam = randomize(build_sam(MODELS["blvit_tiny"]))
    images = photographs((128, 128), (60, 128))
    features = LiveTeacher(sam, features_of=(2, 3)).targets(images, seen(images)).features
    assert {layer: feature.shape for layer, feature in features.items()} == dict.fromkeys((2, 3), (2, 8, 8, 32))
    alone = sam.image_encoder.encode(sam.preprocess(images[1])[None], features_of=(3,)).features[3]
    torch.testing.assert_close(features[3][1, :4], alone[0], rtol=1e-4, atol=1e-4)
    assert features[3][1, 4:].abs().sum() == 0


def test_places_of_a_target_are_those_of_the_batch(randomize: Build) -> None:
    teacher = LiveTeacher(randomize(build_sam(MODELS["vit_tiny"])), features_of=(2,))
    images = photographs((128, 128), (60, 128), (128, 30))
    target = teacher.targets(images, seen(images))
    part = target.of([2, 0])
    assert torch.equal(part.embedding, target.embedding[[2, 0]])
    assert torch.equal(part.features[2], target.features[2][[2, 0]])


def test_a_teacher_learns_nothing(randomize: Build) -> None:
    teacher = LiveTeacher(randomize(build_sam(MODELS["vit_tiny"])).train())
    images = photographs((128, 128))
    assert not teacher.targets(images, seen(images)).embedding.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.sam.parameters())
    assert not teacher.sam.training


def test_bf16_targets_are_float32_and_nearly_the_same(randomize: Build) -> None:
    sam = randomize(build_sam(MODELS["vit_tiny"]))
    images = photographs((128, 128))
    exact = LiveTeacher(sam).targets(images, seen(images)).embedding
    target = LiveTeacher(sam, precision="bf16", features_of=(2,)).targets(images, seen(images))
    assert target.embedding.dtype == target.features[2].dtype == torch.float32
    assert not torch.equal(target.embedding, exact)
    assert torch.nn.functional.cosine_similarity(target.embedding, exact, dim=1).min() > 0.98


@pytest.mark.parametrize(("weight", "layers"), [(0.0, []), (1.0, [2])])
def test_tokens_after_global_layers_but_the_last_are_matched_if_asked(
    tmp_path: Path, teacher: Path, weight: float, layers: list[int]
) -> None:
    settings = config(teacher=teacher, distillation_layers=weight)
    student, its_teacher = load_student_and_teacher(settings)
    source = training_source(TrainingDataConfig(data=write_flat(tmp_path / "data", range(1))))
    live = teacher_for(settings, student, its_teacher, source, torch.device("cpu"))
    assert isinstance(live, LiveTeacher)
    images = photographs((128, 128))
    assert list(live.targets(images, seen(images)).features) == layers
    assert teacher_for(config(), student, None, source, torch.device("cpu")) is None


# exported teachers, and input sizes of their own ----------------------------------------------------------------------


@pytest.fixture
def enlarging(monkeypatch: pytest.MonkeyPatch, tiny_dense: Callable[..., ModelConfig]) -> ModelConfig:
    """The registry's vit_s, smaller: images of 64 px, whose embedding has the 8 x 8 cells of a teacher at 128 px."""
    config = tiny_dense(name="vit_s", image_size=64, enlarge=2)
    monkeypatch.setitem(MODELS, "vit_s", config)
    return config


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """A SAM for 128 px, and the files of its encoder and decoder."""
    return export_sam(tmp_path_factory.mktemp("exported"))


def test_an_exported_teacher_lends_its_decoder_to_an_untrained_student(
    enlarging: ModelConfig, exported: tuple[Any, Path, Path]
) -> None:
    sam, encoder, _ = exported
    with pytest.warns(UserWarning, match="takes prompt encoder and mask decoder of teacher .*small_encoder.onnx"):
        student, teacher = load_student_and_teacher(config(model="vit_s", teacher=encoder))
    assert isinstance(teacher, ExportedSam)
    for name, value in sam.mask_decoder.state_dict().items():
        assert torch.equal(student.mask_decoder.state_dict()[name], value)


def test_a_student_with_its_decoder_takes_nothing(
    enlarging: ModelConfig, exported: tuple[Any, Path, Path], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    start = build_sam(enlarging)
    start.mask_decoder.load_state_dict(exported[0].mask_decoder.state_dict())
    start.prompt_encoder.load_state_dict(exported[0].prompt_encoder.state_dict())
    path = saved(start, tmp_path / "start.safetensors")
    load_student_and_teacher(config(model="vit_s", teacher=exported[1], checkpoint=path))
    assert not recwarn.list


def test_a_decoder_elsewhere_may_be_named(
    enlarging: ModelConfig, exported: tuple[Any, Path, Path], tmp_path: Path, refused: Refused
) -> None:
    alone = tmp_path / "small_encoder.onnx"
    alone.write_bytes(exported[1].read_bytes())
    with refused(ValueError, "has no decoder beside it"):
        load_teacher(config(model="vit_s", teacher=alone), enlarging)
    load_teacher(config(model="vit_s", teacher=alone, teacher_decoder=exported[2]), enlarging)


def test_an_exported_teacher_of_another_grid_is_refused(exported: tuple[Any, Path, Path], refused: Refused) -> None:
    student = override(MODELS["blvit_tiny"], image_size=64)
    with refused(ValueError, r"8 x 8 cells, blvit_tiny at image_size=64 one of 4 x 4; use image_size=128"):
        load_teacher(config(teacher=exported[1]), student)


def test_a_teacher_of_the_registry_sees_twice_the_size_of_a_student_that_enlarges(
    enlarging: ModelConfig, tmp_path: Path
) -> None:
    path = saved(build_sam(MODELS["vit_tiny"]), tmp_path / "teacher.safetensors")
    settings = config(model="vit_s", teacher=path, teacher_model="vit_tiny")
    assert teacher_size(settings, enlarging) == 128
    assert load_teacher(settings, enlarging).image_encoder.img_size == 128


def test_each_sees_the_photograph_at_its_own_size(
    enlarging: ModelConfig, exported: tuple[Any, Path, Path], tmp_path: Path
) -> None:
    write_flat(tmp_path / "data", range(2), size=(48, 96))
    source = training_source(TrainingDataConfig(data=tmp_path / "data"))
    options = {"mask_side": 32, "masks_per_image": 1, "smallest_crop": 0.5, "mirrored": 0.5}
    samples = TrainingSamples(source, image_size=64, teacher_size=128, **options)
    at_teachers = TrainingSamples(source, image_size=128, **options)
    sam, encoder, _ = exported
    for epoch in range(4):  # crops and mirror images too are the same view
        sample = samples[epoch, 0]
        assert isinstance(sample, Sample)
        assert sample.image.shape[-1] == 64
        assert torch.equal(sample.teacher_image, at_teachers[epoch, 0].image)
        target = LiveTeacher(load_exported(encoder)).targets([sample.image.float()], [sample]).embedding
        expected = sam.image_encoder(sam.preprocess(sample.teacher_image.float())[None])
        torch.testing.assert_close(target, expected.detach(), rtol=1e-4, atol=1e-5)


def test_tokens_of_an_exported_teacher_cannot_be_matched(exported: tuple[Any, Path, Path], refused: Refused) -> None:
    with refused(ValueError, "an exported teacher has only final embeddings"):
        config(teacher=exported[1], distillation_layers=1.0)
