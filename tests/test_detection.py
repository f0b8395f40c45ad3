"""A detector's boxes are read or refused whole; the judges' numbers are right by hand and the judges' own."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lvis
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam_blvit.data.instances import ImageRecord, read_instances
from sam_blvit.evaluate.detection import (
    Detection,
    ground_truth_boxes,
    judge_coco,
    judge_lvis,
    read_categories,
    read_detections,
    result_entry,
)

pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning:lvis")

REAL = Path(__file__).parents[2] / "shared" / "data" / "real_eval"
HEIGHT, WIDTH = 120, 140
IMAGES = {number: ImageRecord(number, HEIGHT, WIDTH, f"{number}.jpg", "val2017") for number in (1, 2)}
CATEGORIES = {3, 5, 8}
JUDGES = [judge_coco, judge_lvis]
Judge = Callable[..., dict[str, float | None]]
Mask = NDArray[np.bool_]


def square(x: int, y: int, side: int) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def polygon(x: int, y: int, side: int) -> list[list[int]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotation(
    ann_id: int, image_id: int, category_id: int, x: int, y: int, side: int, **fields: Any
) -> dict[str, Any]:
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y, side, side],
        "area": side**2,
        "segmentation": polygon(x, y, side),
        **fields,
    }


ANNOTATIONS = [
    annotation(1, 1, 3, 5, 8, 20),
    annotation(2, 1, 3, 60, 30, 50),
    annotation(3, 2, 3, 10, 10, 100),
    annotation(4, 2, 5, 40, 3, 30),
]
FOUND = [
    (1, 3, square(5, 8, 20), 0.9),
    (1, 3, square(62, 30, 50), 0.4),
    (1, 3, square(90, 90, 20), 0.5),
    (2, 3, square(20, 10, 100), 0.8),
    (2, 5, square(40, 3, 28), 0.3),
    (2, 5, square(100, 60, 30), 0.7),
]
"""Image, category, mask and score: some good, some fair, some of nothing."""


def written(root: Path, annotated: Sequence[dict[str, Any]], **parts: Any) -> Path:
    """An annotation file in LVIS format, without anything that the judges could do without."""
    content = {
        "images": [
            {
                "id": image.image_id,
                "height": HEIGHT,
                "width": WIDTH,
                "file_name": image.name,
                "neg_category_ids": [8],
                "not_exhaustive_category_ids": [],
            }
            for image in IMAGES.values()
        ],
        "annotations": annotated,
        "categories": [{"id": number, "frequency": letter} for number, letter in zip((3, 5, 8), "fcr", strict=True)],
        **parts,
    }
    path = root / "annotations.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    return written(tmp_path, ANNOTATIONS)


def entry(image_id: int, category_id: int, mask: Mask, score: float) -> dict[str, Any]:
    return result_entry(Detection(image_id, category_id, (0.0, 0.0, 5.0, 5.0), score), mask)


def entries(found: Sequence[tuple[int, int, Mask, float]] = FOUND) -> list[dict[str, Any]]:
    return [entry(*one) for one in found]


def average_precision(truth: Sequence[tuple[int, Mask]], found: Sequence[tuple[int, Mask, float]]) -> float:
    """AP of one category in percent, by the definition and no faster; masks come with their image."""
    means = []
    for threshold in (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95):
        free = list(range(len(truth)))
        right, curve = 0, []
        for seen, (image, mask, _) in enumerate(sorted(found, key=lambda one: -one[2]), start=1):
            ious = {t: (mask & truth[t][1]).sum() / (mask | truth[t][1]).sum() for t in free if truth[t][0] == image}
            best = max(ious, key=lambda t: ious[t], default=None)
            if best is not None and ious[best] >= threshold:
                free.remove(best)
                right += 1
            curve.append((right / len(truth), right / seen))
        best_from = [[p for reached, p in curve if reached >= recall] for recall in np.linspace(0, 1, 101)]
        means.append(np.mean([max(precisions, default=0) for precisions in best_from]))
    return 100 * float(np.mean(means))


@pytest.mark.parametrize("judge", JUDGES)
def test_ap_is_right_by_hand(judge: Judge, annotated: Path) -> None:
    by_category = []
    for category in (3, 5):
        truth = [
            (a["image_id"], square(a["bbox"][0], a["bbox"][1], a["bbox"][2]))
            for a in ANNOTATIONS
            if a["category_id"] == category
        ]
        found = [(image, mask, score) for image, number, mask, score in FOUND if number == category]
        by_category.append(average_precision(truth, found))
    assert 20 < by_category[1] < by_category[0] < 80  # neither all right nor all wrong
    ap = judge(annotated, entries(), image_ids=[1, 2])["AP"]
    assert ap == pytest.approx(sum(by_category) / 2)


def coco_itself(annotated: Path, results: list[dict[str, Any]], root: Path) -> dict[str, float]:
    """The same by pycocotools alone, from a file of results."""
    content = json.loads(annotated.read_text())
    for one in content["annotations"]:
        one.setdefault("iscrowd", 0)
    (root / "coco.json").write_text(json.dumps(content))
    (root / "results.json").write_text(json.dumps(results))
    truth = COCO(str(root / "coco.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(root / "results.json")), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    return dict(zip(names, evaluation.stats.tolist(), strict=True))


def lvis_itself(annotated: Path, results: list[dict[str, Any]], root: Path) -> dict[str, float]:
    """The same by lvis alone, from a file of results; the caller sees to np.float."""
    (root / "results.json").write_text(json.dumps(results))
    evaluation = lvis.LVISEval(str(annotated), str(root / "results.json"), "segm")
    evaluation.run()
    return dict(evaluation.results)


def percent(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: None if value == -1 else 100 * value for name, value in numbers.items()}


def test_pycocotools_itself_gives_the_same_numbers(tmp_path: Path) -> None:
    crowd = annotation(9, 1, 3, 85, 85, 30, iscrowd=1)
    path = written(tmp_path, [*ANNOTATIONS, crowd], info={})
    ours = judge_coco(path, entries(), image_ids=[1, 2])
    assert ours == percent(coco_itself(path, entries(), tmp_path))
    assert ours["AP"] != judge_coco(written(tmp_path, ANNOTATIONS), entries(), image_ids=[1, 2])["AP"]  # a crowd counts


def test_lvis_itself_gives_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, ANNOTATIONS)
    content = json.loads(path.read_text())
    content["images"][0]["not_exhaustive_category_ids"] = [3]
    path = written(tmp_path, ANNOTATIONS, images=content["images"])
    found = [*entries(), entry(1, 5, square(3, 3, 9), 0.95)]  # nobody looked for category 5 in image 1
    ours = judge_lvis(path, found, image_ids=[1, 2])
    monkeypatch.setattr(np, "float", float, raising=False)
    assert ours == percent(lvis_itself(path, found, tmp_path))
    assert ours["APr"] is None
    assert ours["APf"] != ours["APc"]


@pytest.mark.parametrize("judge", JUDGES)
def test_perfect_masks_are_worth_100(judge: Judge, annotated: Path) -> None:
    images, instances = read_instances(annotated)
    results = [
        result_entry(box, instance.mask(images[box.image_id].height, images[box.image_id].width))
        for box, instance in zip(ground_truth_boxes(instances), instances, strict=True)
    ]
    numbers = judge(annotated, results, image_ids=[1, 2])
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        assert numbers[name] == pytest.approx(100)


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("results", [[], [entry(1, 3, np.zeros((HEIGHT, WIDTH), dtype=bool), 0.9)]])
def test_no_masks_and_empty_masks_are_worth_nothing(
    judge: Judge, results: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = written(tmp_path, [*ANNOTATIONS, annotation(5, 1, 3, 0, 0, 120)])  # an object that any large mask matches
    numbers = judge(path, results, image_ids=[1, 2])
    assert {name: value for name, value in numbers.items() if value is not None} == {
        name: 0.0 for name in numbers if name != "APr"
    }


@pytest.mark.parametrize("judge", JUDGES)
def test_small_and_large_are_sizes_of_masks_not_of_boxes(judge: Judge, tmp_path: Path) -> None:
    path = written(tmp_path, [annotation(1, 1, 3, 5, 8, 20)])
    everything = (0.0, 0.0, float(WIDTH), float(HEIGHT))
    wrong, right = Detection(1, 3, everything, 0.9), Detection(1, 3, (5.0, 8.0, 20.0, 20.0), 0.5)
    results = [result_entry(wrong, square(90, 90, 9)), result_entry(right, square(5, 8, 20))]
    assert judge(path, results, image_ids=[1])["APs"] == pytest.approx(50)  # a small mistake among the small
    with_boxes = [{**results[0], "bbox": list(everything)}, {**results[1], "bbox": list(right.box)}]
    assert judge(path, with_boxes, image_ids=[1])["APs"] == pytest.approx(100)  # what leaving `bbox` out is for


@pytest.mark.parametrize("judge", JUDGES)
def test_only_the_images_asked_for_count(judge: Judge, annotated: Path, tmp_path: Path) -> None:
    both, first = (judge(annotated, entries(), image_ids=ids) for ids in ([1, 2], (1,)))
    (tmp_path / "first").mkdir()
    alone = written(tmp_path / "first", [a for a in ANNOTATIONS if a["image_id"] == 1])
    assert first == judge(alone, entries([one for one in FOUND if one[0] == 1]), image_ids={1})
    assert first["AP"] != both["AP"]


@pytest.mark.parametrize("judge", JUDGES)
def test_masks_on_other_images_alone_are_worth_nothing(judge: Judge, annotated: Path) -> None:
    assert judge(annotated, entries([one for one in FOUND if one[0] == 2]), image_ids=[1])["AP"] == 0


@pytest.mark.parametrize("judge", JUDGES)
def test_what_is_wrong_with_other_images_is_no_matter(judge: Judge, tmp_path: Path) -> None:
    path = written(tmp_path, [*ANNOTATIONS, annotation(7, 2, 3, 5, 8, 20, segmentation=[[1, 2, 3]])])
    assert judge(path, entries(), image_ids=[1])["AP"] > 0  # type: ignore[operator]


@pytest.mark.parametrize(("before", "counts"), [(299, True), (300, False)])
def test_lvis_counts_300_masks_of_an_image(before: int, counts: bool, annotated: Path) -> None:
    nothing, right = entry(1, 5, square(0, 0, 3), 0.9), entry(1, 3, square(5, 8, 20), 0.1)
    assert (judge_lvis(annotated, [right, *[nothing] * before], image_ids=[1])["AP"] != 0) is counts


@pytest.mark.parametrize("judge", JUDGES)
def test_judges_leave_results_as_they_were(judge: Judge, annotated: Path) -> None:
    results = entries()
    before = copy.deepcopy(results)
    judge(annotated, results, image_ids=[1, 2])
    assert results == before


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize(
    "segmentation",
    [[], [[]], [[60, 30, 20, 20]], {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}],
    ids=["no polygon", "empty polygon", "two corners", "no run"],
)
def test_an_object_without_pixels_counts_as_missed(judge: Judge, segmentation: Any, tmp_path: Path) -> None:
    path = written(
        tmp_path, [annotation(1, 1, 3, 5, 8, 20), annotation(2, 1, 3, 60, 30, 20, segmentation=segmentation)]
    )
    ap = judge(path, entries([(1, 3, square(5, 8, 20), 0.9), (1, 3, square(60, 30, 20), 0.8)]), image_ids=[1])["AP"]
    assert ap == pytest.approx(100 * 51 / 101)  # precision 1 up to a recall of a half, at 51 of 101 recalls


@pytest.mark.parametrize("judge", JUDGES)
def test_judges_say_nothing(
    judge: Judge, annotated: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    judge(annotated, entries(), image_ids=[1, 2])
    assert (*capsys.readouterr(), caplog.records) == ("", "", [])


def assert_untouched() -> None:
    assert "float" not in vars(np)
    assert logging.getLogger("lvis").level == logging.NOTSET


def test_lvis_leaves_numpy_and_logging_alone(annotated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as fresh:
        fresh.setattr(logging.getLogger(), "handlers", [])
        for name in [name for name in sys.modules if name.split(".")[0] == "lvis"]:
            fresh.delitem(sys.modules, name)
        judge_lvis(annotated, entries(), image_ids=[1, 2])
        assert logging.getLogger().handlers == []
    assert_untouched()


def test_a_failing_lvis_leaves_numpy_and_logging_alone(annotated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: lvis.LVISEval) -> None:
        assert np.float is float  # type: ignore[attr-defined]  # noqa: NPY001
        raise RuntimeError("no judgement")

    handlers = list(logging.getLogger().handlers)
    monkeypatch.setattr(lvis.LVISEval, "run", fail)
    with pytest.raises(RuntimeError, match="no judgement"):
        judge_lvis(annotated, entries(), image_ids=[1, 2])
    assert logging.getLogger().handlers == handlers
    assert_untouched()


def test_a_numpy_that_has_the_name_keeps_it(annotated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "float", np.float64, raising=False)
    judge_lvis(annotated, entries(), image_ids=[1, 2])
    assert vars(np)["float"] is np.float64


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize(
    ("objects", "image_ids", "problem"),
    [
        ([annotation(0, 1, 3, 5, 8, 20)], [1], "a match with annotation id 0 is none to the judges; number from 1"),
        (ANNOTATIONS, [1, 99], "annotations.json list 1 of 2 images to be judged; name the file that does"),
        (ANNOTATIONS, [], "annotations.json list 0 of 0 images to be judged"),
        ([annotation(7, 1, 3, 5, 8, 20, segmentation=[[1, 2, 3]])], [1], "annotation 7: segmentation is malformed"),
        (
            [*ANNOTATIONS, annotation(7, 2, 99, 5, 8, 20)],
            [1],
            "annotation 7 is of category 99, which is not in 'categories' .1 such annotations.; list the category",
        ),
        ([annotation(7, 1, 3, 5, 8, 20, area=-1)], [1], "annotation 7: area -1 is not from 0 to the 16800 pixels"),
        ([annotation(7, 1, 3, 5, 8, 20, area=16801)], [1], "annotation 7: area 16801 is not from 0 to the 16800"),
        ([annotation(7, 1, 3, 5, 8, 20, area=16800)], [1], "annotation 7: area 16800 is more than its box of 20 x 20"),
        ([annotation(7, 1, 3, 5, 8, 20, area=0)], [1], "annotation 7: area 0 but its mask has 400 pixels; write the"),
        ([annotation(7, 1, 3, 5, 8, 20, bbox=[140, 8, 9, 9])], [1], "annotation 7: bbox .140.* lies outside its image"),
        ([annotation(7, 1, 3, 5, 8, 20, bbox=[5, -9, 9, 9])], [1], "annotation 7: bbox .5.* lies outside its image"),
    ],
)
def test_what_cannot_be_judged_by_is_refused(
    judge: Judge, objects: list[dict[str, Any]], image_ids: list[int], problem: str, tmp_path: Path, refused: Any
) -> None:
    with refused(ValueError, problem):
        judge(written(tmp_path, objects), entries(), image_ids=image_ids)


@pytest.mark.parametrize("judge", JUDGES)
def test_annotations_without_categories_cannot_be_judged_by(judge: Judge, tmp_path: Path, refused: Any) -> None:
    with refused(ValueError, "annotations.json have no list 'categories'"):
        judge(written(tmp_path, ANNOTATIONS, categories=[]), [], image_ids=[1])


@pytest.mark.parametrize(
    ("part", "field"),
    [("images", "neg_category_ids"), ("images", "not_exhaustive_category_ids"), ("categories", "frequency")],
)
def test_annotations_that_are_not_lvis_are_sent_to_coco(
    part: str, field: str, annotated: Path, tmp_path: Path, refused: Any
) -> None:
    content = json.loads(annotated.read_text())
    del content[part][1][field]
    path = written(tmp_path, ANNOTATIONS, **{part: content[part]})
    judge_coco(path, entries(), image_ids=[1, 2])
    with refused(ValueError, f"not in LVIS format: 1 of . {part} have no '{field}'; use eval/run_coco.py"):
        judge_lvis(path, entries(), image_ids=[1, 2])


@pytest.mark.parametrize(
    ("part", "field", "value", "problem"),
    [
        ("images", "neg_category_ids", None, "neg_category_ids of image 2 is no list of category ids .None is not a"),
        ("images", "neg_category_ids", ["3"], "neg_category_ids of image 2 is no list of category ids .'3' is not a"),
        ("images", "not_exhaustive_category_ids", {}, "not_exhaustive_category_ids of image 2 is no list .* write "),
        ("images", "not_exhaustive_category_ids", 3, "not_exhaustive_category_ids of image 2 is no list"),
        ("categories", "frequency", "x", "category 5 has a frequency of 'x'; lvis knows 'r', 'c' and 'f'"),
        ("categories", "frequency", None, "category 5 has a frequency of None"),
        ("categories", "frequency", [], "category 5 has a frequency of "),
    ],
)
def test_a_field_of_lvis_that_lvis_cannot_read_is_named(
    part: str, field: str, value: Any, problem: str, annotated: Path, tmp_path: Path, refused: Any
) -> None:
    content = json.loads(annotated.read_text())
    content[part][1][field] = value
    path = written(tmp_path, ANNOTATIONS, **{part: content[part]})
    judge_coco(path, entries(), image_ids=[1, 2])
    with refused(ValueError, problem):
        judge_lvis(path, entries(), image_ids=[1, 2])


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize(
    ("ids", "problem"),
    [((3, 5, 3), "category id 3 is given 2 times"), ((3, 5, -1), "1 of 3 categories have no whole number 'id'")],
)
def test_categories_have_ids_of_their_own(
    judge: Judge, ids: tuple[int, ...], problem: str, tmp_path: Path, refused: Any
) -> None:
    path = written(tmp_path, ANNOTATIONS, categories=[{"id": number, "frequency": "f"} for number in ids])
    with refused(ValueError, problem):
        judge(path, entries(), image_ids=[1, 2])


def test_an_entry_is_json_and_holds_the_mask() -> None:
    mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.5
    stored = json.loads(json.dumps(result_entry(Detection(1, 3, (0.0, 0.0, 5.0, 5.0), 0.25), mask)))
    runs = stored.pop("segmentation")
    assert stored == {"image_id": 1, "category_id": 3, "score": 0.25}
    assert runs["size"] == [HEIGHT, WIDTH]
    assert (coco_mask.decode(runs).astype(bool) == mask).all()


def test_annotated_boxes_have_score_1_and_no_crowds(tmp_path: Path) -> None:
    path = written(tmp_path, [annotation(1, 2, 5, 5, 8, 20), annotation(2, 1, 3, 0, 0, 9, iscrowd=1)])
    assert ground_truth_boxes(read_instances(path)[1]) == [Detection(2, 5, (5.0, 8.0, 20.0, 20.0), 1.0)]


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


def test_missing_files_are_named(refused: Any) -> None:
    with refused(ValueError, "detections none.json is not a file"):
        read_detections(Path("none.json"), images=IMAGES, categories=CATEGORIES)
    with refused(ValueError, "annotations none.json is not a file"):
        read_categories(Path("none.json"))


def test_categories_are_read(annotated: Path) -> None:
    assert read_categories(annotated) == CATEGORIES


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "have no list 'categories'; name the JSON of LVIS or COCO instances"),
        ({"images": []}, "have no list 'categories'"),
        ({"categories": []}, "have no list 'categories'"),
        ({"categories": {"1": "cat"}}, "have no list 'categories'"),
        (
            {"categories": [{"id": 1}, {"name": "cat"}]},
            "1 of 2 categories have no whole number 'id', first {'name': 'cat'",
        ),
        ({"categories": [{"id": "1"}, "cat"]}, "2 of 2 categories have no whole number 'id', first {'id': '1'}; "),
    ],
)
def test_annotations_without_categories_are_refused(content: Any, problem: str, tmp_path: Path, refused: Any) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    with refused(ValueError, problem):
        read_categories(path)


def with_true_masks(annotated: Path) -> tuple[list[dict[str, Any]], set[int]]:
    images, instances = read_instances(annotated)
    objects = [instance for instance in instances if not instance.crowd]
    results = [
        result_entry(box, instance.mask(images[box.image_id].height, images[box.image_id].width))
        for box, instance in zip(ground_truth_boxes(instances), objects, strict=True)
    ]
    return results, set(images)


@pytest.mark.data
def test_true_masks_of_real_objects_are_worth_100(tmp_path: Path) -> None:
    path = REAL / "instances.json"
    results, image_ids = with_true_masks(path)
    ours = judge_coco(path, results, image_ids=image_ids)
    assert ours["AP"] == pytest.approx(100)
    with contextlib.redirect_stdout(io.StringIO()):
        assert ours == percent(coco_itself(path, results, tmp_path))


@pytest.mark.data
def test_true_masks_of_real_lvis_objects_are_worth_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = REAL / "lvis_val_9.json"
    results, image_ids = with_true_masks(path)
    ours = judge_lvis(path, results, image_ids=image_ids)
    assert [ours[name] for name in ("AP", "APc", "APf")] == pytest.approx([100] * 3)
    assert ours["APr"] is None  # no rare category in nine photographs
    monkeypatch.setattr(np, "float", float, raising=False)
    assert ours == percent(lvis_itself(path, results, tmp_path))


@pytest.mark.data
def test_real_coco_annotations_are_not_taken_for_lvis(refused: Any) -> None:
    path = REAL / "instances.json"
    with refused(ValueError, "80 of 80 categories have no 'frequency'; use eval/run_coco.py"):
        judge_lvis(path, [], image_ids=set(read_instances(path)[0]))
