"""The objects that a model answers worst, as pictures: numbers say how bad, pictures say why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from sam_blvit.data.instances import ImageFile, Instance
from sam_blvit.draw.pictures import draw_errors
from sam_blvit.evaluate.photographs import Truth, truth_of
from sam_blvit.evaluate.protocol.perturb import Perturbation
from sam_blvit.system.files import write_atomically, write_json

WORST = 20
"""Pictures of a run, at most."""
MARGIN = 0.5
"""What a picture shows around the object, in sides of its box ..."""
LEAST_MARGIN = 24
"""... and in pixels, at least."""
SIDE = 320
"""Longest side of a picture, pixels."""
DIRECTORY = "worst"


@dataclass(frozen=True, kw_only=True)
class BadAnswer:
    """The mask that came back for a box."""

    ann_id: int
    image_id: int
    category_id: int
    iou_box: float
    """True IoU, percent."""
    piou_box: float
    """Predicted IoU, percent."""
    counts: str
    """The mask as COCO's compressed run lengths."""


def bad_answer(instance: Instance, mask: NDArray[np.bool_], *, iou_box: float, piou_box: float) -> BadAnswer:
    """`mask` (H, W) that came back for the box of `instance`."""
    return BadAnswer(
        ann_id=instance.ann_id,
        image_id=instance.image_id,
        category_id=instance.category_id,
        iou_box=iou_box,
        piou_box=piou_box,
        counts=coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii"),
    )


def write_worst(
    directory: Path,
    answers: Sequence[BadAnswer],
    *,
    images: Mapping[int, ImageFile],
    instances: Mapping[int, Sequence[Instance]],
    perturbation: Perturbation,
) -> None:
    """The worst of `answers` as `worst/<rank>_<ann_id>.jpg` under `directory`, and what they are in `worst.json`."""
    for earlier in (directory / DIRECTORY).glob("*.jpg"):
        earlier.unlink()
    worst = sorted(answers, key=lambda answer: (answer.iou_box, answer.ann_id))[:WORST]
    entries = []
    for rank, answer in enumerate(worst, start=1):
        instance = next(a for a in instances[answer.image_id] if a.ann_id == answer.ann_id)
        picture = _picture(answer, truth_of(instance, images[answer.image_id], perturbation), images, perturbation)
        name = f"{rank:02d}_{answer.ann_id}.jpg"
        write_atomically(directory / DIRECTORY / name, partial(Image.fromarray(picture).save, format="JPEG"))
        entries.append({"file": name, **{key: value for key, value in asdict(answer).items() if key != "counts"}})
    write_json(directory / DIRECTORY / "worst.json", entries)


def _picture(
    answer: BadAnswer, truth: Truth, images: Mapping[int, ImageFile], perturbation: Perturbation
) -> NDArray[np.uint8]:
    """The object and what is around it, enlarged, with right, missed and wrong pixels in colours of their own."""
    image = images[answer.image_id]
    mask = coco_mask.decode({"size": [image.height, image.width], "counts": answer.counts.encode("ascii")})
    rows, cols = _around(truth.box, image)
    scale = SIDE / max(rows.stop - rows.start, cols.stop - cols.start)
    size = (max(1, round(scale * (cols.stop - cols.start))), max(1, round(scale * (rows.stop - rows.start))))

    def cut(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
        return np.array(Image.fromarray(pixels[rows, cols].astype(np.uint8)).resize(size, Image.Resampling.NEAREST))

    origin = np.array([cols.start, rows.start, cols.start, rows.start])
    photograph = cut(perturbation.image(image.pixels()))
    return draw_errors(photograph, cut(mask), cut(truth.mask), box=(np.array(truth.box) - origin) * scale)


def _around(box: tuple[float, float, float, float], image: ImageFile) -> tuple[slice, slice]:
    """Rows and columns of the box and a margin around it, at least a pixel of the image."""
    x0, y0, x1, y1 = box
    margin = max(MARGIN * max(x1 - x0, y1 - y0), LEAST_MARGIN)
    return _span(y0 - margin, y1 + margin, image.height), _span(x0 - margin, x1 + margin, image.width)


def _span(low: float, high: float, length: int) -> slice:
    start = min(max(0, int(low)), length - 1)
    return slice(start, max(start + 1, min(length, int(np.ceil(high)))))
