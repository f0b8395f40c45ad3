"""A detector's boxes are read or refused whole; an entry of results holds its mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sam_blvit.data.instances import ImageRecord, Instance
from sam_blvit.evaluate.metrics.detection import Detection, ground_truth_boxes, read_detections, result_entry

HEIGHT, WIDTH = 120, 140
IMAGES = {number: ImageRecord(number, HEIGHT, WIDTH, f"{number}.jpg", "val2017") for number in (1, 2)}
CATEGORIES = {3, 5, 8}


def test_an_entry_is_json_and_holds_the_mask() -> None:
    mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.5
    stored = json.loads(json.dumps(result_entry(Detection(1, 3, (0.0, 0.0, 5.0, 5.0), 0.25), mask)))
    runs = stored.pop("segmentation")
    assert stored == {"image_id": 1, "category_id": 3, "score": 0.25}
    assert runs["size"] == [HEIGHT, WIDTH]
    assert (coco_mask.decode(runs).astype(bool) == mask).all()


def test_annotated_boxes_have_score_1_and_no_crowds() -> None:
    box = (5.0, 8.0, 20.0, 20.0)
    one = Instance(1, 2, 5, area=400.0, box=box, crowd=False, segmentation=[])
    crowd = Instance(2, 1, 3, area=81.0, box=(0.0, 0.0, 9.0, 9.0), crowd=True, segmentation=[])
    assert ground_truth_boxes([one, crowd]) == [Detection(2, 5, box, 1.0)]


def detected(**fields: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 3, "bbox": [1.5, 2, 30, 40], "score": 0.5, **fields}


def read(root: Path, content: Any) -> list[Detection]:
    path = root / "found.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_detections(path, images=IMAGES, categories=CATEGORIES)


def test_detections_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = read(tmp_path, [detected(image_id=2), detected(segmentation={"size": [1, 1], "counts": "1"}, score=1)])
    box = (1.5, 2.0, 30.0, 40.0)
    assert found == [Detection(2, 3, box, 0.5), Detection(1, 3, box, 1.0)]


@pytest.mark.parametrize("box", [[5, 5, 0, 20], [5, 5, 0, 0], [-9, -9, 30, 30], [900, 900, 10, 10]])
def test_odd_boxes_of_real_detectors_are_kept(box: list[float], tmp_path: Path) -> None:
    assert read(tmp_path, [detected(bbox=box)])[0].box == tuple(box)


FORMAT = "; each is .*score"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[{", "found.json is not JSON .*; unpack or download it again"),
        ({"annotations": []}, "found.json hold a dict instead of a list; name a detector's results"),
        ([], "found.json hold an empty list"),
        ([detected(), detected(image_id=99)], "1 of 2 .* 1 of unknown images .first entry 1: image_id 99." + FORMAT),
        ([detected(category_id=4)], "1 of unknown categories .first entry 0: category_id 4." + FORMAT),
        ([detected(bbox=[1, 2, -3, 4])], "1 with negative width or height .first entry 0: bbox .1, 2, -3, 4.."),
        ([detected(bbox=[1, 2, 3, -4])], "1 with negative width or height"),
        (
            [detected(bbox=[1, float("nan"), 3, 4])],
            "1 with NaN or infinite numbers .first entry 0: bbox .1, nan, 3, 4.",
        ),
        ([detected(bbox=[1, 2, float("inf"), 4])], "1 with NaN or infinite numbers"),
        ([detected(score=float("nan"))], "1 with NaN or infinite numbers .* score nan"),
        ([detected(score=-(10**400))], "1 with NaN or infinite numbers"),
        ([detected(score="high")], "1 malformed"),
        ([detected(score=None)], "1 malformed"),
        ([detected(score=True)], "1 malformed"),
        ([detected(bbox=[1, 2, 3])], "1 malformed"),
        ([detected(bbox=5)], "1 malformed"),
        ([detected(image_id=1.0)], "1 malformed"),
        ([detected(category_id="3")], "1 malformed"),
        ([{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}], "1 malformed .first entry 0: {'image_id': 1, "),
        (["text"], "1 malformed .first entry 0: 'text'."),
    ],
)
def test_detections_that_cannot_be_used_are_refused(content: Any, problem: str, tmp_path: Path, refused: Any) -> None:
    with refused(ValueError, problem):
        read(tmp_path, content)


def test_all_faults_are_counted_at_once(tmp_path: Path, refused: Any) -> None:
    faulty = [detected(image_id=98), detected(score=float("inf")), detected(), detected(image_id=97), 7]
    counted = (
        "4 of 5 entries cannot be used: 2 of unknown images .first entry 0: image_id 98., "
        "1 with NaN or infinite numbers .first entry 1: .*., 1 malformed .first entry 4: 7.;"
    )
    with refused(ValueError, counted):
        read(tmp_path, faulty)


def test_a_missing_file_is_named(refused: Any) -> None:
    with refused(ValueError, "detections none.json is not a file"):
        read_detections(Path("none.json"), images=IMAGES, categories=CATEGORIES)
