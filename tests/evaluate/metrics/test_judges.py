"""The judges' numbers are right by hand and the judges' own; what cannot be judged by is refused."""

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
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam_blvit.data.instances import Dataset, read_instances
from sam_blvit.evaluate.metrics.detection import Detection, ground_truth_boxes, result_entry
from sam_blvit.evaluate.metrics.judges import category_ids, check_annotations, judge_coco, judge_lvis
from sam_blvit.evaluate.metrics.truths import check_truths

pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning:lvis")

REAL = Path(__file__).parents[4] / "shared" / "data" / "real_eval"
HEIGHT, WIDTH = 120, 140
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


def written(root: Path, annotated: Sequence[dict[str, Any]], **parts: Any) -> Dataset:
    """A dataset in LVIS format, without anything that the judges could do without."""
    content = {
        "images": [
            {
                "id": number,
                "height": HEIGHT,
                "width": WIDTH,
                "file_name": f"{number}.jpg",
                "neg_category_ids": [8],
                "not_exhaustive_category_ids": [],
            }
            for number in (1, 2)
        ],
        "annotations": annotated,
        "categories": [{"id": number, "frequency": letter} for number, letter in zip((3, 5, 8), "fcr", strict=True)],
        **parts,
    }
    path = root / "annotations.json"
    path.write_text(json.dumps(content))
    return read_instances(path)


@pytest.fixture
def annotated(tmp_path: Path) -> Dataset:
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
def test_ap_is_right_by_hand(judge: Judge, annotated: Dataset) -> None:
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


def coco_itself(annotated: Dataset, results: list[dict[str, Any]], root: Path) -> dict[str, float]:
    """The same by pycocotools alone, from a file of results."""
    content = copy.deepcopy(annotated.content)
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


def lvis_itself(annotated: Dataset, results: list[dict[str, Any]], root: Path) -> dict[str, float]:
    """The same by lvis alone, from a file of results; the caller sees to np.float."""
    (root / "results.json").write_text(json.dumps(results))
    evaluation = lvis.LVISEval(str(annotated.path), str(root / "results.json"), "segm")
    evaluation.run()
    return dict(evaluation.results)


def percent(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: None if value == -1 else 100 * value for name, value in numbers.items()}


def test_pycocotools_itself_gives_the_same_numbers(tmp_path: Path) -> None:
    crowd = annotation(9, 1, 3, 85, 85, 30, iscrowd=1)
    dataset = written(tmp_path, [*ANNOTATIONS, crowd], info={})
    ours = judge_coco(dataset, entries(), image_ids=[1, 2])
    assert ours == percent(coco_itself(dataset, entries(), tmp_path))
    assert ours["AP"] != judge_coco(written(tmp_path, ANNOTATIONS), entries(), image_ids=[1, 2])["AP"]  # a crowd counts


def test_lvis_itself_gives_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = written(tmp_path, ANNOTATIONS)
    content = copy.deepcopy(dataset.content)
    content["images"][0]["not_exhaustive_category_ids"] = [3]
    dataset = written(tmp_path, ANNOTATIONS, images=content["images"])
    found = [*entries(), entry(1, 5, square(3, 3, 9), 0.95)]  # nobody looked for category 5 in image 1
    ours = judge_lvis(dataset, found, image_ids=[1, 2])
    monkeypatch.setattr(np, "float", float, raising=False)
    assert ours == percent(lvis_itself(dataset, found, tmp_path))
    assert ours["APr"] is None
    assert ours["APf"] != ours["APc"]


def with_true_masks(dataset: Dataset) -> tuple[list[dict[str, Any]], set[int]]:
    """Results that are right, and the ids of all images."""
    results = []
    for instance in (one for one in dataset.instances if not one.crowd):
        record = dataset.records[instance.image_id]
        (box,) = ground_truth_boxes([instance])
        results.append(result_entry(box, instance.mask(record.height, record.width)))
    return results, set(dataset.records)


@pytest.mark.parametrize("judge", JUDGES)
def test_perfect_masks_are_worth_100(judge: Judge, annotated: Dataset) -> None:
    results, _ = with_true_masks(annotated)
    numbers = judge(annotated, results, image_ids=[1, 2])
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        assert numbers[name] == pytest.approx(100)


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("results", [[], [entry(1, 3, np.zeros((HEIGHT, WIDTH), dtype=bool), 0.9)]])
def test_no_masks_and_empty_masks_are_worth_nothing(
    judge: Judge, results: list[dict[str, Any]], tmp_path: Path
) -> None:
    dataset = written(tmp_path, [*ANNOTATIONS, annotation(5, 1, 3, 0, 0, 120)])  # an object that any large mask matches
    numbers = judge(dataset, results, image_ids=[1, 2])
    assert {name: value for name, value in numbers.items() if value is not None} == {
        name: 0.0 for name in numbers if name != "APr"
    }


@pytest.mark.parametrize("judge", JUDGES)
def test_small_and_large_are_sizes_of_masks_not_of_boxes(judge: Judge, tmp_path: Path) -> None:
    dataset = written(tmp_path, [annotation(1, 1, 3, 5, 8, 20)])
    everything = (0.0, 0.0, float(WIDTH), float(HEIGHT))
    wrong, right = Detection(1, 3, everything, 0.9), Detection(1, 3, (5.0, 8.0, 20.0, 20.0), 0.5)
    results = [result_entry(wrong, square(90, 90, 9)), result_entry(right, square(5, 8, 20))]
    assert judge(dataset, results, image_ids=[1])["APs"] == pytest.approx(50)  # a small mistake among the small
    with_boxes = [{**results[0], "bbox": list(everything)}, {**results[1], "bbox": list(right.box)}]
    assert judge(dataset, with_boxes, image_ids=[1])["APs"] == pytest.approx(100)  # what leaving `bbox` out is for


@pytest.mark.parametrize("judge", JUDGES)
def test_only_the_images_asked_for_count(judge: Judge, annotated: Dataset, tmp_path: Path) -> None:
    both, first = (judge(annotated, entries(), image_ids=ids) for ids in ([1, 2], (1,)))
    (tmp_path / "first").mkdir()
    alone = written(tmp_path / "first", [a for a in ANNOTATIONS if a["image_id"] == 1])
    assert first == judge(alone, entries([one for one in FOUND if one[0] == 1]), image_ids={1})
    assert first["AP"] != both["AP"]


@pytest.mark.parametrize("judge", JUDGES)
def test_masks_on_other_images_alone_are_worth_nothing(judge: Judge, annotated: Dataset) -> None:
    assert judge(annotated, entries([one for one in FOUND if one[0] == 2]), image_ids=[1])["AP"] == 0


@pytest.mark.parametrize("judge", JUDGES)
def test_what_is_wrong_with_other_images_is_no_matter(judge: Judge, tmp_path: Path) -> None:
    dataset = written(tmp_path, [*ANNOTATIONS, annotation(7, 2, 3, 5, 8, 20, segmentation=[[1, 2, 3]])])
    assert judge(dataset, entries(), image_ids=[1])["AP"] > 0  # type: ignore[operator]


@pytest.mark.parametrize(("before", "counts"), [(299, True), (300, False)])
def test_lvis_counts_300_masks_of_an_image(before: int, counts: bool, annotated: Dataset) -> None:
    nothing, right = entry(1, 5, square(0, 0, 3), 0.9), entry(1, 3, square(5, 8, 20), 0.1)
    assert (judge_lvis(annotated, [right, *[nothing] * before], image_ids=[1])["AP"] != 0) is counts


@pytest.mark.parametrize("judge", JUDGES)
def test_judges_leave_results_and_annotations_as_they_were(judge: Judge, annotated: Dataset) -> None:
    results = entries()
    before = copy.deepcopy((results, annotated))
    judge(annotated, results, image_ids=[1, 2])
    assert (results, annotated) == before


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize(
    "segmentation",
    [[], [[]], [[60, 30, 20, 20]], {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}],
    ids=["no polygon", "empty polygon", "two corners", "no run"],
)
def test_an_object_without_pixels_counts_as_missed(judge: Judge, segmentation: Any, tmp_path: Path) -> None:
    dataset = written(
        tmp_path, [annotation(1, 1, 3, 5, 8, 20), annotation(2, 1, 3, 60, 30, 20, segmentation=segmentation)]
    )
    ap = judge(dataset, entries([(1, 3, square(5, 8, 20), 0.9), (1, 3, square(60, 30, 20), 0.8)]), image_ids=[1])["AP"]
    assert ap == pytest.approx(100 * 51 / 101)  # precision 1 up to a recall of a half, at 51 of 101 recalls


@pytest.mark.parametrize("judge", JUDGES)
def test_judges_say_nothing(
    judge: Judge, annotated: Dataset, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    judge(annotated, entries(), image_ids=[1, 2])
    assert (*capsys.readouterr(), caplog.records) == ("", "", [])


def assert_untouched() -> None:
    assert "float" not in vars(np)
    assert logging.getLogger("lvis").level == logging.NOTSET


def test_lvis_leaves_numpy_and_logging_alone(annotated: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as fresh:
        fresh.setattr(logging.getLogger(), "handlers", [])
        for name in [name for name in sys.modules if name.split(".")[0] == "lvis"]:
            fresh.delitem(sys.modules, name)
        judge_lvis(annotated, entries(), image_ids=[1, 2])
        assert logging.getLogger().handlers == []
    assert_untouched()


def test_a_failing_lvis_leaves_numpy_and_logging_alone(annotated: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: lvis.LVISEval) -> None:
        assert np.float is float  # type: ignore[attr-defined]  # noqa: NPY001
        raise RuntimeError("no judgement")

    handlers = list(logging.getLogger().handlers)
    monkeypatch.setattr(lvis.LVISEval, "run", fail)
    with pytest.raises(RuntimeError, match="no judgement"):
        judge_lvis(annotated, entries(), image_ids=[1, 2])
    assert logging.getLogger().handlers == handlers
    assert_untouched()


def test_a_numpy_that_has_the_name_keeps_it(annotated: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "float", np.float64, raising=False)
    judge_lvis(annotated, entries(), image_ids=[1, 2])
    assert vars(np)["float"] is np.float64


def check(dataset: Dataset, image_ids: Sequence[int], judge: str) -> None:
    """All that is checked before anything is judged."""
    check_annotations(dataset, image_ids, judge)
    check_truths([instance for instance in dataset.instances if instance.image_id in image_ids], dataset.records)


@pytest.mark.parametrize("judge", ["coco", "lvis"])
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
    judge: str, objects: list[dict[str, Any]], image_ids: list[int], problem: str, tmp_path: Path, refused: Any
) -> None:
    with refused(ValueError, problem):
        check(written(tmp_path, objects), image_ids, judge)


@pytest.mark.parametrize(
    ("part", "field"),
    [("images", "neg_category_ids"), ("images", "not_exhaustive_category_ids"), ("categories", "frequency")],
)
def test_annotations_that_are_not_lvis_are_sent_to_coco(
    part: str, field: str, annotated: Dataset, tmp_path: Path, refused: Any
) -> None:
    content = copy.deepcopy(annotated.content)
    del content[part][1][field]
    dataset = written(tmp_path, ANNOTATIONS, **{part: content[part]})
    check(dataset, [1, 2], "coco")
    with refused(ValueError, f"not in LVIS format: 1 of . {part} have no '{field}'; use eval/run_coco.py"):
        check(dataset, [1, 2], "lvis")


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
    part: str, field: str, value: Any, problem: str, annotated: Dataset, tmp_path: Path, refused: Any
) -> None:
    content = copy.deepcopy(annotated.content)
    content[part][1][field] = value
    dataset = written(tmp_path, ANNOTATIONS, **{part: content[part]})
    check(dataset, [1, 2], "coco")
    with refused(ValueError, problem):
        check(dataset, [1, 2], "lvis")


def test_categories_are_read(annotated: Dataset) -> None:
    assert category_ids(annotated) == CATEGORIES


@pytest.mark.parametrize(
    ("categories", "problem"),
    [
        (None, "have no list 'categories'; name the JSON of LVIS or COCO instances"),
        ([], "have no list 'categories'"),
        ({"1": "cat"}, "have no list 'categories'"),
        ([{"id": 1}, {"name": "cat"}], "1 of 2 categories have no whole number 'id', first {'name': 'cat'"),
        ([{"id": "1"}, "cat"], "2 of 2 categories have no whole number 'id', first {'id': '1'}; "),
        ([{"id": 3}, {"id": 5}, {"id": -1}], "1 of 3 categories have no whole number 'id'"),
        ([{"id": 3}, {"id": 5}, {"id": 3}], "category id 3 is given 2 times; ids are unique"),
    ],
)
@pytest.mark.parametrize("judge", ["coco", "lvis"])
def test_annotations_without_categories_are_refused(
    categories: Any, problem: str, judge: str, tmp_path: Path, refused: Any
) -> None:
    with refused(ValueError, problem):
        check(written(tmp_path, ANNOTATIONS, categories=categories), [1], judge)


@pytest.mark.data
def test_true_masks_of_real_objects_are_worth_100(tmp_path: Path) -> None:
    dataset = read_instances(REAL / "instances.json")
    results, image_ids = with_true_masks(dataset)
    ours = judge_coco(dataset, results, image_ids=image_ids)
    assert ours["AP"] == pytest.approx(100)
    with contextlib.redirect_stdout(io.StringIO()):
        assert ours == percent(coco_itself(dataset, results, tmp_path))


@pytest.mark.data
def test_true_masks_of_real_lvis_objects_are_worth_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = read_instances(REAL / "lvis_val_9.json")
    results, image_ids = with_true_masks(dataset)
    ours = judge_lvis(dataset, results, image_ids=image_ids)
    assert [ours[name] for name in ("AP", "APc", "APf")] == pytest.approx([100] * 3)
    assert ours["APr"] is None  # no rare category in nine photographs
    monkeypatch.setattr(np, "float", float, raising=False)
    assert ours == percent(lvis_itself(dataset, results, tmp_path))


@pytest.mark.data
def test_real_coco_annotations_are_not_taken_for_lvis(refused: Any) -> None:
    dataset = read_instances(REAL / "instances.json")
    with refused(ValueError, "80 of 80 categories have no 'frequency'; use eval/run_coco.py"):
        check(dataset, list(dataset.records), "lvis")
