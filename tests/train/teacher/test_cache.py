"""A teacher's embeddings on disk: real photographs, real files, real processes."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from exports import export_sam
from processes import run_in_two
from sam_blvit.checkpoint.load import save_sam
from sam_blvit.config import MODELS, CacheConfig, FinetuneConfig, ModelConfig, compose
from sam_blvit.data.samples import Damaged, Sample, TrainingSamples
from sam_blvit.data.sources import training_source
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.train.teacher import cache
from sam_blvit.train.teacher.cache import cache_teacher
from sam_blvit.train.teacher.embeddings import EmbeddingWriter
from sam_blvit.train.teacher.targets import CachedTeacher, LiveTeacher, load_student_and_teacher, teacher_for
from synthetic import write_flat

ROOT = Path(__file__).parents[3]
IMAGES = 5
SHARD = 2


@pytest.fixture(autouse=True)
def _tiny_models(
    monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., ModelConfig], tiny_dense: Callable[..., ModelConfig]
) -> None:
    """The registry's two small models, smaller still."""
    monkeypatch.setitem(MODELS, "blvit_tiny", tiny(name="blvit_tiny"))
    monkeypatch.setitem(MODELS, "vit_tiny", tiny_dense())
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Photographs of more than one shape, larger and smaller than the input."""
    write_flat(tmp_path / "data", range(1, 4), size=(48, 64))
    return write_flat(tmp_path / "data", range(4, 1 + IMAGES), size=(300, 200))


@pytest.fixture
def teacher(tmp_path: Path, randomize: Callable[[Sam], Sam]) -> Path:
    path = tmp_path / "teacher.safetensors"
    save_sam(randomize(build_sam(MODELS["vit_tiny"])), path)
    return path


@pytest.fixture
def settings(tmp_path: Path, data: Path, teacher: Path) -> dict[str, Any]:
    return {
        "data": data, "teacher": teacher, "output": tmp_path / "cache", "shard_images": SHARD, "batch_size": 3,
        "workers": 0, "device": "cpu", "precision": "fp32", "model": "blvit_tiny",
    }  # fmt: skip


@pytest.fixture
def kept(settings: dict[str, Any]) -> Path:
    """A complete cache."""
    return cache_teacher(compose(CacheConfig, **settings))


def run(settings: dict[str, Any], **options: Any) -> FinetuneConfig:
    """A run on the photographs of the cache."""
    given = {"data": settings["data"], "teacher": settings["teacher"], "teacher_cache": settings["output"]}
    return compose(
        FinetuneConfig, **{**given, "model": "blvit_tiny", "output": Path("run"), "device": "cpu", **options}
    )


def opened(config: FinetuneConfig) -> CachedTeacher:
    student, teacher = load_student_and_teacher(config)
    kept = teacher_for(config, student, teacher, training_source(config.data), torch.device("cpu"))
    assert isinstance(kept, CachedTeacher)
    return kept


def samples_of(config: FinetuneConfig) -> list[Sample]:
    source = training_source(config.data)
    samples = TrainingSamples(source, image_size=128, mask_side=32, masks_per_image=2)
    items = [samples[0, index] for index in range(len(samples))]
    return [item for item in items if isinstance(item, Sample)]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


class Killed(BaseException):
    """What no code catches."""


@pytest.fixture
def killed_after_two_shards(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache whose process died while it wrote its third shard."""
    write, written = EmbeddingWriter.write, []

    def interrupted(self: EmbeddingWriter, shard: int, embeddings: Iterable[Tensor | Damaged]) -> None:
        def until_killed() -> Iterable[Tensor | Damaged]:
            for embedding in embeddings:
                yield embedding
                if len(written) == 2:
                    raise Killed

        write(self, shard, until_killed())
        written.append(shard)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingWriter, "write", interrupted)
        with pytest.raises(Killed):
            cache_teacher(compose(CacheConfig, **settings))
    return settings["output"]


pytestmark = pytest.mark.filterwarnings("ignore:.*must be distilled", "ignore:.*positions interpolated")


# what is kept -------------------------------------------------------------------------------------------------------


def test_a_kept_target_is_the_teachers_own_within_half_precision(settings: dict[str, Any], kept: Path) -> None:
    samples = samples_of(run(settings))
    images = [sample.image.float() for sample in samples]
    assert [sample.image_id for sample in samples] == [1, 2, 3, 4, 5]
    config = run(settings, teacher_cache=None)
    student, sam = load_student_and_teacher(config)
    live = teacher_for(config, student, sam, training_source(config.data), torch.device("cpu"))
    assert isinstance(live, LiveTeacher)
    expected = live.targets(images, samples).embedding
    target = opened(run(settings)).targets(images, samples)
    assert target.embedding.dtype == torch.float32
    assert target.features == {}
    torch.testing.assert_close(target.embedding, expected, rtol=2e-3, atol=2e-3)
    assert (expected[0] - expected[1]).abs().mean() > 0.1  # no two photographs are alike


def test_photographs_are_found_in_any_order(settings: dict[str, Any], kept: Path) -> None:
    teacher, samples = opened(run(settings)), samples_of(run(settings))
    images = [sample.image.float() for sample in samples]
    whole = teacher.targets(images, samples).embedding
    chosen = [4, 0, 4, 2]
    some = teacher.targets([images[i] for i in chosen], [samples[i] for i in chosen]).embedding
    assert torch.equal(some, whole[chosen])


def test_shards_are_half_precision_arrays_in_the_order_of_the_photographs(settings: dict[str, Any], kept: Path) -> None:
    shards = [np.load(path, mmap_mode="r") for path in sorted(kept.glob("shard_*.npy"))]
    assert [shard.shape for shard in shards] == [(2, 256, 8, 8), (2, 256, 8, 8), (1, 256, 8, 8)]
    assert {shard.dtype for shard in shards} == {np.dtype(np.float16)}
    assert np.load(kept / "ids.npy").tolist() == [1, 2, 3, 4, 5]
    teacher, samples = opened(run(settings)), samples_of(run(settings))
    target = teacher.targets([samples[3].image.float()], [samples[3]]).embedding
    assert np.array_equal(target[0].numpy(), shards[1][1].astype(np.float32))
    header = json.loads((kept / "header.json").read_text())
    assert (header["images"], header["dtype"], header["image_size"], header["teacher_model"]) == (
        5, "float16", 128, "vit_tiny",
    )  # fmt: skip


def test_a_part_of_the_photographs_may_be_trained_on(settings: dict[str, Any], kept: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("2\n")
    config = run(settings, exclude=tmp_path / "ids.txt")
    samples = samples_of(config)
    assert len(samples) == 4
    assert opened(config).targets([s.image for s in samples], samples).embedding.shape == (4, 256, 8, 8)


def test_a_photograph_that_was_never_there_is_named(
    settings: dict[str, Any], kept: Path, refused: Callable[..., Any]
) -> None:
    teacher = opened(run(settings))
    for absent in (0, 99):
        with refused(ValueError, f"has no photograph {absent}"):
            teacher.kept.of([1, absent])


# resuming -----------------------------------------------------------------------------------------------------------


def test_a_killed_cache_goes_on_where_it_stopped(
    settings: dict[str, Any], killed_after_two_shards: Path, tmp_path: Path
) -> None:
    directory = killed_after_two_shards
    assert (directory / "shard_00002.npy.partial").is_file()
    complete = sorted(directory.glob("shard_0000[01].*"))
    assert len(complete) == 4
    before = {path: path.stat().st_mtime_ns for path in complete}
    cache_teacher(compose(CacheConfig, **settings))
    assert {path: path.stat().st_mtime_ns for path in complete} == before
    whole = cache_teacher(compose(CacheConfig, **{**settings, "output": tmp_path / "whole", "batch_size": 2}))
    assert_same_cache(directory, whole)


def test_a_shard_without_its_mark_is_written_again(settings: dict[str, Any], kept: Path) -> None:
    before = files(kept)
    (kept / "shard_00001.json").unlink()
    (kept / "shard_00001.npy").write_bytes(b"torn")
    cache_teacher(compose(CacheConfig, **settings))
    assert files(kept) == before


def test_a_complete_cache_is_left_as_it_is(
    settings: dict[str, Any], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "load_teacher", lambda *_: pytest.fail("there is nothing to do"))
    before = files(kept)
    cache_teacher(compose(CacheConfig, **settings))
    assert files(kept) == before


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"image_size": 64}, "image_size was 128, is 64; student_image_size was 128, is 64; grid was 8, is 4"),
        ({"shard_images": 3}, "shard_images was 2, is 3"),
        ({"precision": "bf16"}, "precision was fp32, is bf16"),
        ({"mirrored": True}, "mirrored was False, is True"),
    ],
)
def test_a_cache_of_other_settings_is_not_gone_on_with(
    settings: dict[str, Any], kept: Path, refused: Callable[..., Any], changed: dict[str, Any], told: str
) -> None:
    before = files(kept)
    with refused(ValueError, rf"has embeddings of other settings \({told}\); use another output"):
        cache_teacher(compose(CacheConfig, **{**settings, **changed}))
    assert files(kept) == before


def test_a_cache_of_other_photographs_is_not_gone_on_with(
    settings: dict[str, Any], kept: Path, data: Path, refused: Callable[..., Any]
) -> None:
    write_flat(data, range(6, 7))
    with refused(ValueError, r"\(images was 5, is 6; ids_sha256 was .*, is .*\)"):
        cache_teacher(compose(CacheConfig, **settings))


def test_a_disk_that_is_too_small_is_named_before_anything_is_computed(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, refused: Callable[..., Any]
) -> None:
    needed = IMAGES * 256 * 8 * 8 * 2
    monkeypatch.setattr(cache, "load_teacher", lambda *_: pytest.fail("computing"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, needed - 1))
    with refused(ValueError, r"cache: 5 embeddings need 0.0 GiB, and 0.0 GiB are free; make room"):
        cache_teacher(compose(CacheConfig, **settings))


def test_a_disk_that_fills_up_is_named_and_complete_shards_are_kept(
    settings: dict[str, Any], refused: Callable[..., Any]
) -> None:
    one_image = 256 * 8 * 8 * 2
    cache_teacher(compose(CacheConfig, **{**settings, "shard_images": 1}))
    (settings["output"] / "shard_00004.json").unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (one_image // 2, hard))
    try:
        with refused(
            ValueError, r"shard_00004.npy.partial: cannot be written \(.*\); complete shards are kept: make room"
        ):
            cache_teacher(compose(CacheConfig, **{**settings, "shard_images": 1}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(list(settings["output"].glob("shard_*.json"))) == 4


def test_room_is_wanted_for_what_is_missing_alone(
    settings: dict[str, Any], killed_after_two_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 256 * 8 * 8 * 2))
    cache_teacher(compose(CacheConfig, **settings))
    assert (killed_after_two_shards / "shard_00002.json").is_file()


# damaged photographs ------------------------------------------------------------------------------------------------


def test_a_damaged_photograph_is_counted_and_left_out(
    settings: dict[str, Any], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    refused: Callable[..., Any], tmp_path: Path,
) -> None:  # fmt: skip
    (data / "sa_2.jpg").write_bytes(b"no picture")
    monkeypatch.setattr(cache, "MAX_BAD_SHARE", 0.2)
    cache_teacher(compose(CacheConfig, **settings))
    assert "4 embeddings, damaged photographs: 1\ndamaged, left out: 2 (" in capsys.readouterr().out
    with refused(
        ValueError,
        r"cache: 1 of the 5 photographs of this run were damaged when it was written, first 2 \(.*\); "
        "name their ids in a file for exclude$",
    ):
        opened(run(settings))
    (tmp_path / "ids.txt").write_text("2\n")
    config = run(settings, exclude=tmp_path / "ids.txt")
    teacher, samples = opened(config), samples_of(config)
    assert [sample.image_id for sample in samples] == [1, 3, 4, 5]
    embeddings = teacher.targets([sample.image for sample in samples], samples).embedding
    assert (embeddings.abs().amax((1, 2, 3)) > 0).all()
    with refused(ValueError, "photograph 2 was damaged when it was written"):
        teacher.kept.of([1, 2])


def test_more_than_one_damaged_photograph_in_a_thousand_ends_it_soon(
    settings: dict[str, Any], data: Path, refused: Callable[..., Any]
) -> None:
    (data / "sa_2.jpg").write_bytes(b"no picture")
    with refused(ValueError, r"1 of 5 photographs are damaged, first 2 \(.*\); exclude or fix them"):
        cache_teacher(compose(CacheConfig, **settings))
    assert not (settings["output"] / "shard_00001.npy").exists()


def test_started_again_too_many_damaged_photographs_are_not_forgotten(
    settings: dict[str, Any], data: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., Any]
) -> None:
    (data / "sa_5.jpg").write_bytes(b"no picture")
    with monkeypatch.context() as patch:
        patch.setattr(cache, "MAX_BAD_SHARE", 0.2)
        cache_teacher(compose(CacheConfig, **settings))
    with refused(ValueError, r"1 of 5 photographs are damaged, first 5"):
        cache_teacher(compose(CacheConfig, **settings))


# what a run refuses -------------------------------------------------------------------------------------------------


def test_the_cache_of_another_teacher_is_refused(
    settings: dict[str, Any], kept: Path, teacher: Path, refused: Callable[..., Any]
) -> None:
    save_sam(build_sam(MODELS["vit_tiny"]), teacher)
    with refused(ValueError, r"embeddings of other settings \(teacher_sha256 was .*, is .*\); write it again"):
        opened(run(settings))


def test_a_shard_whose_mark_cannot_be_read_is_named(
    settings: dict[str, Any], kept: Path, refused: Callable[..., Any]
) -> None:
    path = next(kept.glob("*[0-9].json"))
    line = rf"{path.name} does not list its shard's damaged photographs \(.*\); delete it and start "
    for mark in ("{", "[" * 100_000, "[]", "{}", '{"damaged": {"x": ""}}'):
        path.write_text(mark)
        with refused(ValueError, line):
            opened(run(settings))


def test_the_cache_of_another_image_size_is_refused(
    settings: dict[str, Any], kept: Path, refused: Callable[..., Any]
) -> None:
    with refused(ValueError, r"\(image_size was 128, is 64; grid was 8, is 4\)"):
        opened(run(settings, image_size=64))


@pytest.mark.parametrize(("name", "value"), [("transform", "another"), ("dtype", "float32"), ("format", 0)])
def test_a_cache_made_in_another_way_is_refused(
    settings: dict[str, Any], kept: Path, refused: Callable[..., Any], name: str, value: object
) -> None:
    header = json.loads((kept / "header.json").read_text())
    (kept / "header.json").write_text(json.dumps({**header, name: value}))
    with refused(ValueError, rf"\({name} was {value}, is .*\)"):
        opened(run(settings))


def test_a_cache_that_is_not_complete_is_refused(
    settings: dict[str, Any], killed_after_two_shards: Path, refused: Callable[..., Any]
) -> None:
    with refused(
        ValueError, r"is not complete: 1 of 3 shards are missing, first 2; start tools/cache_teacher.py again"
    ):
        opened(run(settings))


def test_a_cache_that_lacks_photographs_of_the_run_is_refused(
    settings: dict[str, Any], kept: Path, data: Path, refused: Callable[..., Any]
) -> None:
    write_flat(data, range(6, 8))
    with refused(ValueError, r"lacks 2 of the 7 photographs of this run, first 6; write it with the same data"):
        opened(run(settings))


def test_a_directory_without_a_header_is_no_cache(
    settings: dict[str, Any], tmp_path: Path, refused: Callable[..., Any]
) -> None:
    with refused(ValueError, r"has no header.json; name a directory of tools/cache_teacher.py"):
        opened(run(settings, teacher_cache=tmp_path))


@pytest.mark.parametrize("text", ["{", "[1]", '{"images": 3}'])
def test_a_damaged_header_is_named(
    settings: dict[str, Any], kept: Path, refused: Callable[..., Any], text: str
) -> None:
    (kept / "header.json").write_text(text)
    with refused(ValueError, r"header.json is not a valid header \(.*\); delete the directory"):
        opened(run(settings))


# processes ----------------------------------------------------------------------------------------------------------

TOGETHER = """
import sys
from pathlib import Path
from sam_blvit.checkpoint.load import read_checkpoint
from sam_blvit.config import MODELS, CacheConfig, compose
from sam_blvit.train.teacher.cache import cache_teacher

data, teacher, output = map(Path, sys.argv[1:])
MODELS["vit_tiny"] = read_checkpoint(teacher)[1]
config = compose(
    CacheConfig,
    data=data, teacher=teacher, output=output, model="vit_tiny", shard_images=2, batch_size=3, workers=0, device="cpu",
    precision="fp32",
)
cache_teacher(config)
"""


def test_two_processes_write_what_one_writes(settings: dict[str, Any], kept: Path, tmp_path: Path) -> None:
    together = tmp_path / "together"
    said = run_in_two(TOGETHER, settings["data"], settings["teacher"], together)
    assert "5 embeddings, damaged photographs: 0" in said[0]
    assert said[1] == ""
    assert_same_cache(together, kept)


def assert_same_cache(one: Path, other: Path) -> None:
    """The same but for what the company of a batch does to the last bits."""
    assert files(one).keys() == files(other).keys()
    for name, content in files(one).items():
        if name.startswith("shard") and name.endswith(".npy"):
            torch.testing.assert_close(
                torch.from_numpy(np.load(one / name)), torch.from_numpy(np.load(other / name)), rtol=2e-3, atol=2e-3
            )
        else:
            assert content == (other / name).read_bytes()


# mirrored photographs -----------------------------------------------------------------------------------------------


def test_a_mirrored_photograph_meets_the_embedding_of_its_mirror_image(
    settings: dict[str, Any], kept: Path, tmp_path: Path
) -> None:
    mirrored = cache_teacher(compose(CacheConfig, **{**settings, "output": tmp_path / "mirrored", "mirrored": True}))
    config = run(settings, teacher_cache=kept, mirrored_cache=mirrored, flip=True)
    source = training_source(config.data)
    dataset = TrainingSamples(source, image_size=128, mask_side=32, masks_per_image=2, mirrored=0.5)
    samples = [item for place in range(5) if isinstance(item := dataset[place, place], Sample)]
    assert {sample.mirrored for sample in samples} == {False, True}
    images = [sample.image.float() for sample in samples]
    live = run(settings, teacher_cache=None)
    student, teacher = load_student_and_teacher(live)
    expected = teacher_for(live, student, teacher, source, torch.device("cpu")).targets(images, samples).embedding
    found = opened(config).targets(images, samples).embedding
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(("names", "told"), [
    (("kept", "kept"), "mirrored was False, is True"),
    (("mirrored", "mirrored"), "mirrored was True, is False"),
])  # fmt: skip
def test_the_two_caches_are_not_mistaken_for_each_other(
    settings: dict[str, Any], kept: Path, tmp_path: Path, names: tuple[str, str], told: str
) -> None:
    mirrored = cache_teacher(compose(CacheConfig, **{**settings, "output": tmp_path / "mirrored", "mirrored": True}))
    plain, turned = ({"kept": kept, "mirrored": mirrored}[name] for name in names)
    with pytest.raises(ValueError, match=told):
        opened(run(settings, teacher_cache=plain, mirrored_cache=turned, flip=True))


# a teacher of another size ------------------------------------------------------------------------------------------


def test_an_exported_teacher_is_kept_at_its_own_size(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_dense: Callable[..., ModelConfig]
) -> None:
    student = tiny_dense(name="vit_s", image_size=64, enlarge=2)
    monkeypatch.setitem(MODELS, "vit_s", student)
    sam, encoder, _ = export_sam(tmp_path)
    settings = {**settings, "teacher": encoder, "model": "vit_s"}
    kept = cache_teacher(compose(CacheConfig, **settings))
    header = json.loads((kept / "header.json").read_text())
    assert (header["image_size"], header["student_image_size"], header["grid"]) == (128, 64, 8)
    assert (header["teacher_model"], header["precision"]) == ("small_encoder.onnx", "as exported")
    save_sam(build_sam(student), tmp_path / "start.safetensors")
    config = run(settings, model="vit_s", checkpoint=tmp_path / "start.safetensors")
    with pytest.warns(UserWarning, match="takes prompt encoder"):
        teacher = opened(config)
    samples = samples_of(config)
    images = [sample.image.float() for sample in samples]  # of 128 px, as the teacher saw them
    expected = torch.cat([sam.image_encoder(sam.preprocess(image)[None]) for image in images]).detach()
    found = teacher.targets(images, samples).embedding
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
