"""Boxes become masks as segment-anything's own predictor makes them, and judges read what is written."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from segment_anything import SamPredictor

import fakes
from datasets import SIZES, squares, write_annotations, write_dataset
from sam_blvit.checkpoint.load import load_sam, save_sam
from sam_blvit.config import EvaluationConfig, ModelConfig
from sam_blvit.evaluate.run import evaluate_coco, evaluate_lvis
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam

BOXES = [
    {"image_id": 2, "category_id": 1, "bbox": [3.5, 7.25, 20.0, 30.0], "score": 0.5},
    {"image_id": 1, "category_id": 3, "bbox": [5.0, 6.0, 41.0, 39.0], "score": 0.9, "segmentation": "ignored"},
    {"image_id": 2, "category_id": 2, "bbox": [-4.0, 100.0, 60.0, 80.0], "score": 0.25},
    {"image_id": 1, "category_id": 2, "bbox": [60.0, 10.0, 30.0, 50.0], "score": 0.75},
]
Configured = Callable[..., EvaluationConfig]

pytestmark = pytest.mark.usefixtures("counted_once")


@pytest.fixture
def config(tmp_path: Path, tiny: Callable[..., ModelConfig], randomize: Callable[[Sam], Sam]) -> Configured:
    write_dataset(tmp_path, (1, 2, 3))
    save_sam(randomize(build_sam(tiny())), tmp_path / "tiny.safetensors")
    (tmp_path / "boxes.json").write_text(json.dumps(BOXES))

    def configured(**fields: Any) -> EvaluationConfig:
        usual = {
            "model": str(tmp_path / "tiny.safetensors"),
            "annotations": tmp_path / "annotations.json",
            "images": tmp_path,
            "output": tmp_path / "out",
            "detections": tmp_path / "boxes.json",
            "device": "cpu",
        }
        return EvaluationConfig(**{**usual, **fields})

    return configured


def by_the_predictor(sam: Sam, root: Path, box: list[float], image_id: int, *, best: bool, refine: int) -> np.ndarray:
    """One box's mask by way of segment-anything's own class."""
    predictor = SamPredictor(sam)
    predictor.set_image(np.array(Image.open(root / "val2017" / f"{image_id}.png")))
    corners = np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]])
    logits = None
    for _ in range(refine):
        _, predicted, low = predictor.predict(box=corners, mask_input=logits, multimask_output=True)
        logits = low[predicted.argmax()][None]
    masks, predicted, _ = predictor.predict(box=corners, mask_input=logits, multimask_output=best)
    return masks[predicted.argmax()]


@pytest.mark.parametrize(
    ("fields", "best", "refine"),
    [
        ({}, False, 0),
        ({"select": "argmax"}, True, 0),
        ({"refine": 1}, False, 1),
        ({"refine": 2, "select": "argmax", "prompts_per_batch": 1}, True, 2),
        ({"select": "sam"}, False, 0),
    ],
)
def test_masks_are_those_of_segment_anythings_predictor(
    config: Configured, tmp_path: Path, fields: dict[str, Any], best: bool, refine: int
) -> None:
    evaluate_coco(config(**fields))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    sam = load_sam(tmp_path / "tiny.safetensors")
    order = [1, 3, 0, 2]  # by image, as the detector gave them
    assert [entry["score"] for entry in results] == [BOXES[i]["score"] for i in order]
    for entry, box in zip(results, (BOXES[i] for i in order), strict=True):
        assert set(entry) == {"image_id", "category_id", "score", "segmentation"}
        assert (entry["image_id"], entry["category_id"]) == (box["image_id"], box["category_id"])
        assert tuple(entry["segmentation"]["size"]) == SIZES[box["image_id"]]
        expected = by_the_predictor(sam, tmp_path, box["bbox"], box["image_id"], best=best, refine=refine)
        mask = coco_mask.decode(entry["segmentation"]).astype(bool)
        assert (mask != expected).mean() < 1e-3
        assert 0 < mask.mean() < 1


def test_refining_and_selecting_change_the_masks(config: Configured, tmp_path: Path) -> None:
    written = set()
    for fields in ({}, {"refine": 1}, {"refine": 2}, {"select": "argmax"}):
        evaluate_coco(config(**fields))
        written.add((tmp_path / "out" / "results.json").read_text())
    assert len(written) == 4


def test_cocos_own_code_says_of_our_file_what_we_print(
    config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(fakes.ANNOTATIONS, str(tmp_path / "annotations.json"))
    monkeypatch.setenv(fakes.IMAGES, str(tmp_path))
    wrong = [{**annotation, "bbox": [1, 1, 9, 9], "score": 0.8} for annotation in squares((3,))]
    found = [{**annotation, "score": 0.6} for annotation in squares((1, 2, 3))]
    (tmp_path / "boxes.json").write_text(json.dumps([*wrong, *found]))
    (summary,) = evaluate_coco(config(model="fakes:box_filler"))
    truth = COCO(str(tmp_path / "annotations.json"))
    judge = COCOeval(truth, truth.loadRes(str(tmp_path / "out" / "results.json")), "segm")
    with contextlib.redirect_stdout(io.StringIO()):
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert summary["ap"]["AP"] == pytest.approx(100 * judge.stats[0], abs=1e-9)
    assert 30 < summary["ap"]["AP"] < 100
    assert f"| {summary['ap']['AP']:.1f} |" in capsys.readouterr().out


def test_photographs_without_boxes_count_and_are_not_read(config: Configured, tmp_path: Path) -> None:
    (tmp_path / "val2017" / "3.png").unlink()
    (summary,) = evaluate_coco(config())
    assert summary["counts"] == {"images": 3, "detections": 4, "left_out": 0}


def test_boxes_outside_the_subset_are_counted(config: Configured, tmp_path: Path, refused: Any) -> None:
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["images"][1]["coco_url"] = "http://images.cocodataset.org/train2017/2.png"
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (summary,) = evaluate_coco(config(subset="minival"))
    assert summary["counts"] == {"images": 2, "detections": 2, "left_out": 2}
    (tmp_path / "boxes.json").write_text(json.dumps([BOXES[0]]))
    with refused(ValueError, "none of 1 boxes is on a photograph of subset=minival; take subset=full"):
        evaluate_coco(config(subset="minival"))


def test_the_summary_names_the_boxes_and_how_they_were_asked(config: Configured) -> None:
    (summary,) = evaluate_lvis(config(refine=1))
    assert (summary["judge"], summary["select"], summary["refine"]) == ("lvis", "single", 1)
    assert summary["boxes"]["file"] == "boxes.json"
    assert set(summary["ap"]) >= {"AP", "APr", "APc", "APf"}


def test_annotated_boxes_stand_in_for_a_detector(config: Configured, tmp_path: Path) -> None:
    (summary,) = evaluate_coco(config(detections=None, boxes="gt"))
    assert summary["counts"]["detections"] == len(squares((1, 2, 3)))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {entry["score"] for entry in results} == {1.0}


@pytest.mark.parametrize(
    ("boxes", "line"),
    [
        ([], "boxes.json"),
        ([{**BOXES[0], "image_id": 9}], "1 of unknown images"),
        ([{**BOXES[0], "category_id": 9}], "1 of unknown categories"),
        ([{**BOXES[0], "bbox": [1, 2, -3, 4]}, BOXES[1]], "1 of 2 entries"),
    ],
)
def test_boxes_that_cannot_be_used_are_refused_before_the_model_loads(
    config: Configured, tmp_path: Path, boxes: list[Any], line: str, refused: Any
) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    with refused(ValueError, line):
        evaluate_coco(config(model="none"))


def test_coco_annotations_are_no_matter_for_lvis_judge(config: Configured, tmp_path: Path, refused: Any) -> None:
    content = json.loads((tmp_path / "annotations.json").read_text())
    for image in content["images"]:
        del image["neg_category_ids"]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with refused(ValueError, "eval/run_coco.py"):
        evaluate_lvis(config(model="none"))


@pytest.mark.parametrize(
    ("part", "fields", "problem"),
    [
        ("annotations", {"category_id": 9}, "annotation 10 is of category 9"),
        ("annotations", {"area": -1}, "annotation 10: area -1 is not from 0"),
        ("annotations", {"bbox": [300, 5, 9, 9]}, "annotation 10: bbox .* lies outside its image of 120 x 90 pixels"),
        ("categories", {"frequency": "x"}, "category 1 has a frequency of 'x'"),
        ("images", {"neg_category_ids": None}, "neg_category_ids of image 1 is no list"),
    ],
)
@pytest.mark.parametrize("boxes", [None, "gt"])
def test_what_no_judge_can_judge_by_is_refused_before_the_model_loads(
    config: Configured, tmp_path: Path, part: str, fields: dict[str, Any], problem: str, boxes: str | None, refused: Any
) -> None:
    content = json.loads((tmp_path / "annotations.json").read_text())
    content[part][0].update(fields)
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    asked = {"detections": None, "boxes": "gt"} if boxes else {}
    for evaluate in (evaluate_lvis,) if part != "annotations" else (evaluate_coco, evaluate_lvis):
        with refused(ValueError, problem):
            evaluate(config(model="none", **asked))


def test_an_object_without_annotation_or_box_is_no_obstacle(config: Configured, tmp_path: Path) -> None:
    write_annotations(tmp_path, squares((1,)), (1, 2, 3))
    (summary,) = evaluate_coco(config())
    assert summary["ap"]["AP"] is not None
