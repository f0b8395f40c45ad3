"""A detector's boxes, and the entries of results that are made of the masks they prompt.

The one thing to know: an entry has no `bbox`. Given one, pycocotools and lvis take its area for the mask's, and the AP
of small, medium and large objects is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from sam_blvit.data.instances import ImageRecord, Instance
from sam_blvit.system.files import parse_json


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
    entries, known = _read_json(path), set(categories)
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


def ground_truth_boxes(instances: Sequence[Instance]) -> list[Detection]:
    """The annotated boxes as a perfect detector's, each with score 1; crowds are no objects and left out."""
    return [Detection(i.image_id, i.category_id, i.box, 1.0) for i in instances if not i.crowd]


def result_entry(detection: Detection, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """The `mask` (H, W) that `detection` prompted, as an entry of the results that judges read; fit for JSON."""
    return {
        "image_id": detection.image_id,
        "category_id": detection.category_id,
        "score": detection.score,
        "segmentation": runs_of(mask),
    }


def runs_of(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """`mask` (H, W) as compressed run lengths, with text, which JSON can hold, in place of bytes."""
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}


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


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"detections {path} is not a file; name a JSON file")
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"detections {path} is not JSON ({error}); unpack or download it again") from error
