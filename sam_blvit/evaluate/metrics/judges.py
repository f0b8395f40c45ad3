"""The judges of AP: pycocotools and lvis, given the annotations as they were read instead of a file.

The one thing to know: judges write into what they are given, so they get copies, and the dataset stays as it was read.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam_blvit.data.ids import checked_id
from sam_blvit.data.instances import Dataset
from sam_blvit.evaluate.metrics.detection import Detection, result_entry, runs_of

COCO_JUDGE, LVIS_JUDGE = "coco", "lvis"
COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""What COCOeval.stats holds; AR of at most 1, 10 and 100 masks of a category in an image."""
LVIS_MASKS_PER_IMAGE = 300
"""Those of highest score count, whatever their categories."""
LVIS_FIELDS = (
    ("images", "neg_category_ids"),
    ("images", "not_exhaustive_category_ids"),
    ("categories", "frequency"),
)
"""What LVIS says of images and categories, COCO does not, and lvis cannot do without."""
LVIS_FREQUENCIES = ("r", "c", "f")
"""Rare, common and frequent categories, whose AP lvis averages apart."""


def judge_coco(
    dataset: Dataset, results: Sequence[Mapping[str, Any]], *, image_ids: Collection[int]
) -> dict[str, float | None]:
    """pycocotools' numbers for the entries of `results` on `image_ids`, percent; None where nothing is to be averaged.

    `dataset` has passed `check_annotations` and, on `image_ids`, `check_truths`.
    """
    content = _ground_truth(dataset, image_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"info": {}, **content}  # pycocotools 2.0.9 and 2.0.10 cannot do without
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(_entries(results, content)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: _percent(value) for name, value in zip(COCO_NUMBERS, evaluation.stats, strict=True)}


def judge_lvis(
    dataset: Dataset, results: Sequence[Mapping[str, Any]], *, image_ids: Collection[int]
) -> dict[str, float | None]:
    """As `judge_coco`, lvis' numbers under lvis' own names."""
    content = _ground_truth(dataset, image_ids)
    with _quiet_lvis(), _numpy_float():
        from lvis import LVIS, LVISEval, LVISResults  # not above: it brings all of Matplotlib

        truth = LVIS.__new__(LVIS)  # its constructor only reads a file
        truth.logger = logging.getLogger("lvis")
        truth.dataset = content
        truth._create_index()
        found = LVISResults(truth, _entries(results, content), max_dets=LVIS_MASKS_PER_IMAGE)
        evaluation = LVISEval(truth, found, "segm")
        evaluation.run()
    return {name: _percent(value) for name, value in evaluation.get_results().items()}


JUDGES = {COCO_JUDGE: judge_coco, LVIS_JUDGE: judge_lvis}


def check_annotations(dataset: Dataset, image_ids: Collection[int], judge: str) -> None:
    """Check that `judge`, coco or lvis, can judge masks on `image_ids` by `dataset`.

    Masks, boxes and areas are not looked at (see `check_truths`).

    Raises:
        ValueError: if it cannot.
    """
    content, path, wanted = dataset.content, dataset.path, set(image_ids)
    categories = category_ids(dataset)
    if unknown := [instance for instance in dataset.instances if instance.category_id not in categories]:
        raise ValueError(
            f"annotations {path}: annotation {unknown[0].ann_id} is of category {unknown[0].category_id}, which is "
            f"not in 'categories' ({len(unknown)} such annotations); list the category, or correct category_id"
        )
    listed = len(wanted & dataset.records.keys())
    if not wanted or listed < len(wanted):
        raise ValueError(
            f"annotations {path} list {listed} of {len(wanted)} images to be judged; name the file that does"
        )
    if any(instance.ann_id == 0 for instance in dataset.instances):
        raise ValueError(f"annotations {path}: a match with annotation id 0 is none to the judges; number from 1")
    if judge == LVIS_JUDGE:
        _check_lvis(content, path)


def category_ids(dataset: Dataset) -> set[int]:
    """Ids of the categories that `dataset` lists.

    Raises:
        ValueError: if it lists none, or one is malformed or listed twice.
    """
    path, categories = dataset.path, dataset.content.get("categories")
    if not isinstance(categories, list) or not categories:
        raise ValueError(f"annotations {path} have no list 'categories'; name the JSON of LVIS or COCO instances")
    malformed = [entry for entry in categories if not isinstance(entry, dict) or not _is_id(entry.get("id"))]
    if malformed:
        raise ValueError(
            f"annotations {path}: {len(malformed)} of {len(categories)} categories have no whole number 'id', "
            f"first {malformed[0]!r:.80}; download them again"
        )
    number, times = Counter(category["id"] for category in categories).most_common(1)[0]
    if times > 1:
        raise ValueError(f"annotations {path}: category id {number} is given {times} times; ids are unique")
    return {category["id"] for category in categories}


def _is_id(value: Any) -> bool:
    try:
        checked_id(value)
    except ValueError:
        return False
    return True


def _ground_truth(dataset: Dataset, image_ids: Collection[int]) -> dict[str, Any]:
    """A copy of the annotations of `image_ids`, each mask as run lengths of what `Instance` draws.

    Judges crash on polygons that enclose nothing; with run lengths such an object is one that no mask matches.
    """
    content, wanted = dataset.content, set(image_ids)
    annotated = []
    for entry, instance in zip(content["annotations"], dataset.instances, strict=True):
        if instance.image_id in wanted:
            record = dataset.records[instance.image_id]
            mask = instance.mask(record.height, record.width)
            # pycocotools needs `iscrowd`, which LVIS lacks
            annotated.append({**entry, "iscrowd": int(instance.crowd), "segmentation": runs_of(mask)})
    return {
        **content,
        "images": [dict(image) for image in content["images"] if image["id"] in wanted],
        "annotations": annotated,
        "categories": [dict(category) for category in content["categories"]],
    }


def _check_lvis(content: Mapping[str, Any], path: Path) -> None:
    for part, field in LVIS_FIELDS:
        if lacking := sum(field not in entry for entry in content[part]):
            raise ValueError(
                f"annotations {path} are not in LVIS format: {lacking} of {len(content[part])} {part} "
                f"have no {field!r}; use eval/run_coco.py"
            )
    for image in content["images"]:
        for field in ("neg_category_ids", "not_exhaustive_category_ids"):
            _check_category_list(image, field, path)
    for category in content["categories"]:
        if category["frequency"] not in LVIS_FREQUENCIES:
            raise ValueError(
                f"annotations {path}: category {category['id']} has a frequency of {category['frequency']!r:.80}; lvis "
                "knows 'r', 'c' and 'f' (rare, common, frequent)"
            )


def _check_category_list(image: Mapping[str, Any], field: str, path: Path) -> None:
    """Raise ValueError, one line, unless `field` of the entry `image` is a list of category ids."""
    try:
        if not isinstance(image[field], list):
            raise ValueError(f"{image[field]!r:.80} is not a list")
        for value in image[field]:
            checked_id(value)
    except ValueError as error:
        raise ValueError(
            f"annotations {path}: {field} of image {image['id']} is no list of category ids ({error}); write [] where "
            "there are none"
        ) from error


def _entries(results: Sequence[Mapping[str, Any]], content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Copies, for judges write into them, of those of `results` that are on images of `content`.

    Judges crash on an empty list. A mask without pixels stands in for none: it matches nothing, so no number changes.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    entries = [dict(entry) for entry in results if entry["image_id"] in sizes]
    if entries:
        return entries
    image_id, size = next(iter(sizes.items()))
    nothing = Detection(image_id, content["categories"][0]["id"], (0, 0, 0, 0), 0)
    return [result_entry(nothing, np.zeros(size, dtype=bool))]


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * float(value)  # judges say -1 where nothing is to be averaged


@contextlib.contextmanager
def _numpy_float() -> Iterator[None]:
    """Give NumPy back its former name `np.float` for a while, where it has none: lvis 0.5.3 uses it.

    Git master of lvis-api (commit 7d7f07d) does not any more, but the package index has no release since 0.5.3.
    """
    if "float" in vars(np):
        yield
        return
    vars(np)["float"] = float
    try:
        yield
    finally:
        del vars(np)["float"]


@contextlib.contextmanager
def _quiet_lvis() -> Iterator[None]:
    """Keep lvis from warning at every call and, when first imported, from configuring logging for the whole program."""
    root, logger, taken = logging.getLogger(), logging.getLogger("lvis"), logging.NullHandler()
    level = logger.level
    root.addHandler(taken)  # basicConfig leaves a root logger alone that has a handler
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        root.removeHandler(taken)
