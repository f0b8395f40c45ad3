"""No command writes over a file that it reads: each refuses in one line, before it writes anything.

The case of a command puts one of its inputs where it would write, and calls it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from datasets import squares, write_annotations, write_images
from sam_blvit.benchmark.command import benchmark
from sam_blvit.cli import main
from sam_blvit.commands.everything import segment_everything
from sam_blvit.commands.finetune import finetune
from sam_blvit.commands.import_weights import import_weights
from sam_blvit.commands.segment import segment
from sam_blvit.config import (
    BenchmarkConfig,
    CacheConfig,
    CalibrationConfig,
    EvaluationConfig,
    EverythingConfig,
    FinetuneConfig,
    ImportConfig,
    ReportConfig,
    SegmentConfig,
    SubsetConfig,
    compose,
)
from sam_blvit.data.draw import draw_subset
from sam_blvit.evaluate.calibrate import calibrate
from sam_blvit.evaluate.report.page import report
from sam_blvit.evaluate.run import evaluate_coco, evaluate_lvis
from sam_blvit.train.teacher.cache import cache_teacher
from synthetic import write_tar

OUT = Path("out")
PHOTO = Path("photo.png")


def _photograph() -> tuple[Path]:
    Image.new("RGB", (40, 30)).save(PHOTO)
    return (PHOTO,)


def _evaluation(**settings: object) -> EvaluationConfig:
    write_images(Path(), (1,))
    given = {"annotations": write_annotations(Path(), squares((1,)), (1,)), "images": Path(), "output": OUT}
    return EvaluationConfig(**{**given, **settings})


def _linked(output: str, given: Path) -> None:
    (OUT / output).unlink()
    os.link(given, OUT / output)


def _draw(unit: str, output: str) -> object:
    write_tar(tar := Path("data/sa_000000.tar"), range(4), size=(8, 8), masks=0)
    _linked(output, tar)
    return draw_subset(SubsetConfig(data=tar.parent, output=OUT, unit=unit, fraction=1, validation=0))


def _report() -> object:
    (run := Path("run")).mkdir()
    (run / "summary.json").write_text("{}")
    _linked("report.html", run / "summary.json")
    return report(ReportConfig(runs=(run,), output=OUT))


COMMANDS: dict[tuple[str, str], Callable[[Path], object]] = {
    ("segment", "photo.json"): lambda at: list(
        segment(_photograph(), SegmentConfig(checkpoint=at, point=("1,1",), output=OUT))
    ),
    ("segment", "photo_mask.png"): lambda at: list(
        segment((*_photograph(), at), SegmentConfig(point=("1,1",), output=OUT))
    ),
    ("everything", "photo_everything.json"): lambda at: list(
        segment_everything(_photograph(), EverythingConfig(base=at, output=OUT))
    ),
    ("convert", "sam.pth"): lambda at: main(["convert", str(at), str(at)]),
    ("convert --base", "sam.pth"): lambda at: main(["convert", "x.safetensors", str(at), "--base", str(at)]),
    ("import --encoder", "ours.safetensors"): lambda at: import_weights(
        "vit_tiny", ImportConfig(encoder=at, output=at)
    ),
    ("import --decoder", "ours.safetensors"): lambda at: import_weights(
        "vit_tiny", ImportConfig(decoder=at, output=at)
    ),
    ("benchmark", "benchmark.json"): lambda at: benchmark([str(at)], BenchmarkConfig(output=OUT)),
    ("benchmark", "side.svg"): lambda at: benchmark([f"onnx:{at},x.onnx"], BenchmarkConfig(output=OUT)),
    ("finetune --teacher", "last.safetensors"): lambda at: finetune(
        compose(FinetuneConfig, data=OUT, teacher=at, output=OUT, device="cpu")
    ),
    ("finetune --exclude", "log.jsonl"): lambda at: finetune(
        compose(FinetuneConfig, data=OUT, exclude=at, output=OUT, device="cpu")
    ),
    ("cache_teacher", "header.json"): lambda at: cache_teacher(compose(CacheConfig, data=OUT, teacher=at, output=OUT)),
    ("make_subset --unit tar", "train.tsv"): lambda _: _draw("tar", "train.tsv"),
    ("make_subset --unit image", "validation.tsv"): lambda _: _draw("image", "validation.tsv"),
    ("run_lvis", "summary.json"): lambda at: evaluate_lvis(_evaluation(checkpoint=at)),
    ("run_lvis", "instances.csv"): lambda at: evaluate_lvis(_evaluation(annotations=_moved(at))),
    ("run_lvis --keep-ratios", "keep-0.5/summary.json"): lambda at: evaluate_lvis(
        _evaluation(checkpoint=at, keep_ratios=(0.5, 1))
    ),
    ("run_coco", "results.json"): lambda at: evaluate_coco(_evaluation(checkpoint=at, boxes="gt")),
    ("calibrate", "calibration.json"): lambda at: calibrate(
        CalibrationConfig(vit_b=Path("b"), vit_h=at, annotations=Path("a"), images=OUT, output=OUT)
    ),
    ("report", "report.html"): lambda _: _report(),
}


def _moved(at: Path) -> Path:
    return write_annotations(Path(), squares((1,)), (1,)).replace(at)


@pytest.mark.parametrize(("command", "output"), COMMANDS)
def test_no_command_writes_over_its_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = OUT / output
    path.parent.mkdir(parents=True)
    path.write_bytes(b"an input")
    with pytest.raises((ValueError, SystemExit)) as refused:
        COMMANDS[command, output](path)
    line = capsys.readouterr().err if isinstance(refused.value, SystemExit) else str(refused.value)
    assert f"output {path} would replace the input " in line
    assert len(line.splitlines()) == 1
    assert [each for each in OUT.rglob("*") if each.is_file()] == [path]
