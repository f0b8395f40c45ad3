"""Checks before a long run: the report follows from real steps, and nothing is saved."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import TINY, macs_once
from sam_blvit.checkpoint.load import save_sam
from sam_blvit.commands.finetune import finetune
from sam_blvit.config import MODELS, FinetuneConfig, compose, override
from sam_blvit.cost.macs import sam_macs
from sam_blvit.data.sources import training_source
from sam_blvit.model.build import build_sam
from sam_blvit.system.distributed import Processes
from sam_blvit.train import preflight as module
from sam_blvit.train.preflight import GIB, dry_run_data, preflight
from sam_blvit.train.setup import Training, prepare
from synthetic import write_flat

DENSE = override(TINY, name="vit_tiny", routed_from=None, routers_after=(), little_layers=())
PHOTOGRAPHS = 6


@pytest.fixture(autouse=True, scope="module")
def _tiny_models() -> Iterator[None]:
    """The registry's two small models smaller still, and one measured step for each keep ratio."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "blvit_tiny", override(TINY, name="blvit_tiny"))
        patch.setitem(MODELS, "vit_tiny", DENSE)
        patch.setattr(module, "MEASURED", 1)
        patch.setattr(module, "sam_macs", macs_once)
        yield


def config(root: Path, **options: Any) -> FinetuneConfig:
    settings = {
        "batch_size": 2, "masks_per_image": 1, "mask_side": 32, "correction_rounds": 0, "workers": 0, "device": "cpu",
        "model": "blvit_tiny", "keep_ratios": (0.25, 0.25, 0.25, 1.0), "epochs": 2, **options,
    }  # fmt: skip
    (root / "run").mkdir(exist_ok=True)
    return compose(FinetuneConfig, data=root / "data", output=root / "run", **settings)


def training(root: Path, **options: Any) -> Training:
    write_flat(root / "data", range(PHOTOGRAPHS), masks=1)
    settings = config(root, **options)
    return prepare(settings, training_source(settings.data), Processes(), warm=False)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What was found out about a run beside a teacher, one photograph of which is damaged, and what was printed."""
    root, said = tmp_path_factory.mktemp("checked"), io.StringIO()
    save_sam(build_sam(DENSE), root / "teacher.safetensors")
    mine = training(root, teacher=root / "teacher.safetensors", accumulate=3)
    (root / "data" / "sa_3.jpg").write_bytes(b"no picture")
    with redirect_stdout(said):
        return preflight(mine), said.getvalue()


def test_steps_and_hours_follow_from_the_measured_seconds(checked: tuple[dict[str, Any], str]) -> None:
    report, _ = checked
    assert report["images_a_step"] == 6
    assert report["steps"] == 2  # 2 epochs of 6 photographs
    seconds = {row["keep_ratio"]: row["seconds"] for row in report["at_keep_ratios"]}
    assert list(seconds) == [0.25, 1.0]
    assert min(seconds.values()) > 0
    assert report["seconds_a_step"] == pytest.approx(0.75 * seconds[0.25] + 0.25 * seconds[1.0])
    assert report["hours"] == pytest.approx(2 * report["seconds_a_step"] / 3600)


def test_arithmetic_is_the_encoders_three_passes_and_the_teachers_one(checked: tuple[dict[str, Any], str]) -> None:
    report, _ = checked
    teacher = sam_macs(build_sam(DENSE))[0].full
    for row in report["at_keep_ratios"]:
        student = sam_macs(build_sam(override(TINY, keep_ratio=row["keep_ratio"])))[0].full
        assert row["teraflops"] * row["seconds"] * 1e12 == pytest.approx(2 * (3 * student + teacher) * 6)


def test_damaged_photographs_are_told(checked: tuple[dict[str, Any], str]) -> None:
    report, printed = checked
    assert (report["photographs"], report["looked_at"]) == (PHOTOGRAPHS, PHOTOGRAPHS)
    (reason,) = report["damaged"]
    assert "sa_3" in reason
    assert "6 photographs; 1 of 6 checked are damaged" in printed
    assert reason in printed


def test_the_report_is_printed(checked: tuple[dict[str, Any], str]) -> None:
    report, printed = checked
    assert f"run: {report['steps']} steps of 6 images, {report['seconds_a_step']:.3f} s each" in printed
    assert f"{report['hours']:.2f} hours with 1 process(es)" in printed
    assert f"checkpoints take up to {report['checkpoints_gib']:.2f} GiB" in printed
    for row in report["at_keep_ratios"]:
        assert f"| {row['keep_ratio']:g} | {row['seconds']:.3f} | {row['peak_gib']:.2f} |" in printed


def test_the_schedule_counts_and_not_where_the_run_stops(tmp_path: Path) -> None:
    assert preflight(training(tmp_path, schedule_steps=1000, max_steps=10, keep_ratios=(1.0,)))["steps"] == 1000


def test_a_dense_model_is_measured_once(tmp_path: Path) -> None:
    (row,) = preflight(training(tmp_path, model="vit_tiny"))["at_keep_ratios"]
    assert row["keep_ratio"] == 1.0
    assert row["peak_gib"] > 0


def test_only_so_many_photographs_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOKED_AT", 2)
    report = preflight(training(tmp_path, keep_ratios=(1.0,)))
    assert (report["photographs"], report["looked_at"]) == (PHOTOGRAPHS, 2)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_room_is_wanted_for_what_a_run_writes(tmp_path: Path, ema: float) -> None:
    """At most four checkpoints at once - two kept, the best, one in writing - and two models."""
    mine = training(tmp_path, ema=ema, decoder_lr=0.0, keep_ratios=(1.0,))
    values = list(mine.student.parameters())
    weights = 4 * sum(value.numel() for value in values)
    trained = 4 * sum(value.numel() for value in values if value.requires_grad)
    assert trained < weights
    checkpoint = weights + (3 if ema else 2) * trained
    assert preflight(mine)["checkpoints_gib"] * GIB == pytest.approx(4 * checkpoint + 2 * weights)


def test_a_disk_without_room_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., Any]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    told = re.escape(f"output {tmp_path / 'run'}: checkpoints need 0.") + ".* GiB, the disk has 0.0 GiB free"
    with refused(ValueError, told):
        preflight(training(tmp_path, keep_ratios=(1.0,)))


def test_reading_is_told_in_images_a_second_of_a_worker_and_its_share_of_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "READ", 2)
    report = dry_run_data(training(tmp_path, workers=2))
    assert report["images_per_second"] == pytest.approx(2 * report["images_per_second_per_worker"])
    assert 0 < report["data_share"] < 1
    printed = capsys.readouterr().out
    assert f"data: {report['images_per_second']:.2f} images/s" in printed
    assert f"{report['images_per_second_per_worker']:.2f} images/s for each of 2 worker(s)" in printed
    assert f"{100 * report['data_share']:.1f} % is spent waiting for data" in printed


def test_every_accumulated_batch_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ", 2)
    read = []
    monkeypatch.setattr(module, "tqdm", lambda batches, **_: [read.append(len(batch)) or batch for batch in batches])
    dry_run_data(training(tmp_path, accumulate=2))
    assert read == [2, 2, 2, 2]


@pytest.mark.parametrize("instead", ["preflight", "dry_run_data"])
def test_neither_leaves_anything_behind(
    tmp_path: Path, instead: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "READ", 1)
    write_flat(tmp_path / "data", range(PHOTOGRAPHS), masks=1)
    finetune(config(tmp_path, keep_ratios=(1.0,), **{instead: True}))
    assert list((tmp_path / "run").iterdir()) == []
    assert {"preflight": "hours with 1 process(es)", "dry_run_data": "waiting for data"}[instead] in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(("terminal", "shown"), [(True, True), (False, False)])
def test_progress_is_shown_on_a_terminal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, shown: bool
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("sys.stderr", stream)
    preflight(training(tmp_path))
    assert ("preflight" in stream.getvalue()) is shown
