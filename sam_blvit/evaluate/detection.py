"""Zero-shot instance segmentation without the model: a detector's boxes in, entries for the judges out, their AP back.

The one thing to know: an entry has no `bbox`. Given one, pycocotools and lvis take its area for the mask's, and the AP
of small, medium and large objects is wrong.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam_blvit.data.ids import checked_id
from sam_blvit.data.instances import ImageRecord, Instance, read_instances
from sam_blvit.evaluate.truths import check_truths
from sam_blvit.files import parse_json

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


@dataclass(frozen=True, slots=True)
class Detection:
    """A box that a detector found."""

    image_id: int
    category_id: int
    box: tuple[float, float, float, float]
    """x, y, width, height, pixels. Detectors find boxes without area or beyond the image's edge; they count too."""
    score: float


def read_detections(path: Path, *, images: Mapping[int, ImageRecord], categories: Collection[int]) -> list[Detection]:
    """Boxes in Detectron2's results format, in the order of the file.

    Raises ValueError, one line counting what is wrong by kind, unless every entry can be used.
    """
    entries, known = _read_json(path, "detections"), set(categories)
    if not isinstance(entries, list) or not entries:
        held = "an empty list" if entries == [] else f"a {type(entries).__name__} instead of a list"
        raise ValueError(f"detections {path} hold {held}; name a detector's results in Detectron2's format")
    detections: list[Detection] = []
    faults: dict[str, list[str]] = {}
    for number, entry in enumerate(entries):
        found = _detection(entry, images, known)
        if isinstance(found, Detection):
            detections.append(found)
        else:
            kind, value = found
            faults.setdefault(kind, []).append(f"entry {number}: {value}")
    if faults:
        counted = ", ".join(f"{len(places)} {kind} (first {places[0]})" for kind, places in faults.items())
        raise ValueError(
            f"detections {path}: {len(entries) - len(detections)} of {len(entries)} entries cannot be used: {counted}; "
            'each is {"image_id", "category_id", "bbox": [x, y, width, height], "score"}, ids as in the annotations'
        )
    return detections


def read_categories(path: Path) -> set[int]:
    """Ids of the categories in an annotation file; ValueError, one line, if it has none."""
    return _category_ids(_read_json(path, "annotations"), path)


def ground_truth_boxes(instances: Sequence[Instance]) -> list[Detection]:
    """The annotated boxes as a perfect detector's, each with score 1; crowds are no objects and left out."""
    return [Detection(i.image_id, i.category_id, i.box, 1.0) for i in instances if not i.crowd]


def result_entry(detection: Detection, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """The `mask` (H, W) that `detection` prompted, as an entry of the results that judges read; fit for JSON."""
    return {
        "image_id": detection.image_id,
        "category_id": detection.category_id,
        "score": detection.score,
        "segmentation": _runs(mask),
    }


def judge_coco(
    annotations: Path, results: Sequence[Mapping[str, Any]], *, image_ids: Collection[int]
) -> dict[str, float | None]:
    """pycocotools' numbers for the entries of `results` on `image_ids`, percent; None where nothing is to be averaged.

    Raises ValueError, one line, if the annotations cannot be judged by.
    """
    content = _ground_truth(annotations, image_ids, COCO_JUDGE)
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
    annotations: Path, results: Sequence[Mapping[str, Any]], *, image_ids: Collection[int]
) -> dict[str, float | None]:
    """lvis' numbers for the entries of `results` on `image_ids`, percent, under lvis' own names; None where nothing is
    to be averaged.

    Raises ValueError, one line, if the annotations cannot be judged by or are not LVIS'.
    """
    content = _ground_truth(annotations, image_ids, LVIS_JUDGE)
    with _quiet_lvis(), _numpy_float():
        from lvis import LVIS, LVISEval, LVISResults  # not above: it brings all of Matplotlib

        truth = LVIS.__new__(LVIS)  # all its constructor does is to read a file
        truth.logger = logging.getLogger("lvis")
        truth.dataset = content
        truth._create_index()
        found = LVISResults(truth, _entries(results, content), max_dets=LVIS_MASKS_PER_IMAGE)
        evaluation = LVISEval(truth, found, "segm")
        evaluation.run()
    return {name: _percent(value) for name, value in evaluation.get_results().items()}


JUDGES = {COCO_JUDGE: judge_coco, LVIS_JUDGE: judge_lvis}


def _detection(entry: Any, images: Collection[int], categories: Collection[int]) -> Detection | tuple[str, str]:
    """`entry` as a detection, or else what kind of entry it is and the value that makes it so."""
    try:
        image_id, category_id, box, score = entry["image_id"], entry["category_id"], entry["bbox"], entry["score"]
        x, y, width, height = box
    except (KeyError, TypeError, ValueError):
        return "malformed", repr(entry)[:80]
    numbers = (x, y, width, height, score)
    if {type(image_id), type(category_id)} != {int} or not {*map(type, numbers)} <= {int, float}:
        return "malformed", repr(entry)[:80]
    if image_id not in images:
        return "of unknown images", f"image_id {image_id}"
    if category_id not in categories:
        return "of unknown categories", f"category_id {category_id}"
    if not all(abs(number) <= sys.float_info.max for number in numbers):  # false for NaN; JSON may hold 10**400
        return "with NaN or infinite numbers", f"bbox {box}, score {score}"
    if width < 0 or height < 0:
        return "with negative width or height", f"bbox {box}"
    return Detection(image_id, category_id, (float(x), float(y), float(width), float(height)), float(score))


def check_annotations(path: Path, image_ids: Collection[int], judge: str) -> dict[str, Any]:
    """The content of an annotation file, one that `read_instances` takes, by which `judge`, coco or lvis, can judge
    masks on `image_ids`.

    Raises ValueError, one line, if it cannot; masks, boxes and areas are not looked at (see `check_truths`).
    """
    content, wanted = _read_json(path, "annotations"), set(image_ids)
    categories = _category_ids(content, path)
    if unknown := [entry for entry in content["annotations"] if entry["category_id"] not in categories]:
        raise ValueError(
            f"annotations {path}: annotation {unknown[0]['id']} is of category {unknown[0]['category_id']}, which is "
            f"not in 'categories' ({len(unknown)} such annotations); list the category, or correct category_id"
        )
    listed = sum(image["id"] in wanted for image in content["images"])
    if not wanted or listed < len(wanted):
        raise ValueError(
            f"annotations {path} list {listed} of {len(wanted)} images to be judged; name the file that does"
        )
    if any(entry["id"] == 0 for entry in content["annotations"]):
        raise ValueError(f"annotations {path}: a match with annotation id 0 is none to the judges; number from 1")
    if judge == LVIS_JUDGE:
        _check_lvis(content, path)
    return content


def _ground_truth(path: Path, image_ids: Collection[int], judge: str) -> dict[str, Any]:
    """The annotations of `image_ids`, each mask as run lengths of what `Instance` draws.

    Judges crash on polygons that enclose nothing; with run lengths such an object is one that no mask matches.
    """
    images, instances = read_instances(path)  # checked
    content, wanted = check_annotations(path, image_ids, judge), set(image_ids)  # the same entries with all fields
    check_truths([instance for instance in instances if instance.image_id in wanted], images)
    annotated = [
        {
            **entry,
            "iscrowd": int(instance.crowd),  # pycocotools wants it, LVIS has none
            "segmentation": _runs(instance.mask(images[instance.image_id].height, images[instance.image_id].width)),
        }
        for entry, instance in zip(content["annotations"], instances, strict=True)
        if instance.image_id in wanted
    ]
    listed = [image for image in content["images"] if image["id"] in wanted]
    return {**content, "images": listed, "annotations": annotated}


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


def _runs(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """`mask` as compressed run lengths with text, which JSON can hold, for bytes."""
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * float(value)  # judges say -1 where nothing is to be averaged


def _category_ids(content: Any, path: Path) -> set[int]:
    categories = content.get("categories") if isinstance(content, dict) else None
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


def _read_json(path: Path, kind: str) -> Any:
    if not path.is_file():
        raise ValueError(f"{kind} {path} is not a file; name a JSON file")
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{kind} {path} is not JSON ({error}); unpack or download it again") from error


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
