"""Calibration measures every way there is with the numbers of an evaluation, and freezes the nearest."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datasets import squares, write_annotations, write_dataset
from sam_blvit.checkpoint.load import save_sam
from sam_blvit.config import CalibrationConfig, EvaluationConfig, ModelConfig
from sam_blvit.evaluate.calibrate import PAPER, Candidate, calibrate
from sam_blvit.evaluate.protocol.protocols import PROTOCOLS, protocol_named
from sam_blvit.evaluate.run import evaluate_lvis
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam

PROMPTS = ("box", "1pt", "3pt")

pytestmark = pytest.mark.usefixtures("counted_once")


@pytest.fixture
def config(
    tmp_path: Path, tiny_dense: Callable[..., ModelConfig], randomize: Callable[[Sam], Sam]
) -> CalibrationConfig:
    write_dataset(tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/1.png"
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "val2017").rename(tmp_path / "trainval")
    for name in ("b", "h"):
        save_sam(randomize(build_sam(tiny_dense())), tmp_path / f"{name}.safetensors")
    return CalibrationConfig(
        vit_b=tmp_path / "b.safetensors",
        vit_h=tmp_path / "h.safetensors",
        annotations=tmp_path / "annotations.json",
        images=tmp_path,
        output=tmp_path / "out",
        device="cpu",
    )


def test_every_way_has_the_numbers_of_its_own_evaluation(
    config: CalibrationConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranked = calibrate(config)
    assert len(ranked) == 5 * 4 * 2 * 3 * 2  # protocol, select, box source, average, subset
    assert len({candidate.protocol for candidate in ranked}) == len(ranked)
    assert [c.distance for c in ranked] == sorted(c.distance for c in ranked)
    by_protocol = {candidate.protocol: candidate for candidate in ranked}
    for name, select, source, subset in (
        ("blvit", "argmax", "ann", "full"),
        ("ritm", "single", "mask", "full"),
        ("sam-rand", "sam", "ann", "minival"),
        ("edge-rand", "oracle", "mask", "minival"),
    ):
        for model, checkpoint in (("vit_b", config.vit_b), ("vit_h", config.vit_h)):
            (summary,) = evaluate_lvis(
                EvaluationConfig(
                    model=str(checkpoint),
                    annotations=config.annotations,
                    images=config.images,
                    output=tmp_path / "one",
                    device="cpu",
                    protocol=name,
                    select=select,
                    box_source=source,
                    subset=subset,
                )
            )
            for average in ("instance", "image", "category"):
                protocol = replace(PROTOCOLS[name], select=select, box_source=source, subset=subset, average=average)
                assert by_protocol[protocol].miou[model] == pytest.approx(summary["miou"][average], abs=0.05)
    shown = capsys.readouterr().out
    assert "| the paper |" in shown
    assert "nearest of 240 ways frozen" in shown


def test_the_nearest_way_is_frozen_as_a_protocol(config: CalibrationConfig, tmp_path: Path) -> None:
    nearest = calibrate(config)[0]
    frozen = protocol_named(str(tmp_path / "out" / "blvit-cal.json"))
    assert frozen.name == "blvit-cal"
    assert replace(frozen, name=nearest.protocol.name) == nearest.protocol
    (summary,) = evaluate_lvis(
        EvaluationConfig(
            model=str(config.vit_b),
            annotations=config.annotations,
            images=config.images,
            output=tmp_path / "one",
            device="cpu",
            protocol=str(tmp_path / "out" / "blvit-cal.json"),
        )
    )
    assert summary["protocol_label"] == "blvit-cal"
    assert summary["miou"][frozen.average] == pytest.approx(nearest.miou["vit_b"], abs=0.05)
    table = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert table["candidates"][0]["distance"] == nearest.distance


def test_distance_is_the_root_mean_square_of_six_differences() -> None:
    exact = {model: dict(numbers) for model, numbers in PAPER.items()}
    assert Candidate(protocol=PROTOCOLS["blvit"], miou=exact).distance == 0
    exact["vit_h"]["3pt"] += 6
    assert Candidate(protocol=PROTOCOLS["blvit"], miou=exact).distance == pytest.approx((36 / 6) ** 0.5)


def test_sams_own_file_is_loaded_by_the_registry(config: CalibrationConfig, tmp_path: Path, refused: Any) -> None:
    (tmp_path / "sam_vit_h.pth").write_bytes(b"no weights")
    with refused(ValueError, "sam_vit_h.pth is damaged or no checkpoint|sam_vit_h.pth is refused"):
        calibrate(CalibrationConfig(**{**vars(config), "vit_h": tmp_path / "sam_vit_h.pth"}))


def test_a_subset_without_photographs_is_no_candidate(config: CalibrationConfig, tmp_path: Path) -> None:
    write_annotations(tmp_path, squares((1, 2)), (1, 2))
    content = (tmp_path / "annotations.json").read_text().replace("val2017", "train2017")
    (tmp_path / "annotations.json").write_text(content)
    assert {candidate.protocol.subset for candidate in calibrate(config)} == {"full"}
