"""An annotated dataset that tests make, in a format that COCO's and LVIS's readers both take."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = {1: (90, 120), 2: (150, 70), 3: (64, 64), 4: (100, 128), 5: (60, 90), 6: (128, 96), 7: (80, 110)}
"""Height and width of the photographs, by image id."""
CATEGORIES = (1, 2, 3)


def polygon(x: int, y: int, side: int) -> list[list[int]]:
    """A square with its upper left corner at x, y."""
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotation(ann_id: int, image_id: int, x: int, y: int, side: int, **fields: Any) -> dict[str, Any]:
    """A square object."""
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": CATEGORIES[ann_id % 3],
        "bbox": [x, y, side, side],
        "area": side**2,
        "iscrowd": 0,
        "segmentation": polygon(x, y, side),
        **fields,
    }


EMPTY = annotation(91, 1, 100, 70, 1, segmentation=[])
CROWD = annotation(92, 2, 20, 20, 30, iscrowd=1)


def squares(image_ids: tuple[int, ...]) -> list[dict[str, Any]]:
    """Two squares in each image, side by side, of sides that differ."""
    found = []
    for image_id in image_ids:
        height, width = SIZES[image_id]
        for number, x in enumerate((3, width // 2 + 2)):
            side = min(height, width // 2) - 12 - 5 * number - image_id
            found.append(annotation(10 * image_id + number, image_id, x, 5 + image_id, side))
    return found


def write_images(root: Path, image_ids: tuple[int, ...]) -> None:
    """Noise of the right sizes in `root`/val2017."""
    (root / "val2017").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for image_id in image_ids:
        pixels = rng.integers(0, 256, (*SIZES[image_id], 3), np.uint8)
        Image.fromarray(pixels).save(root / f"val2017/{image_id}.png")


def write_annotations(root: Path, annotations: list[dict[str, Any]], image_ids: tuple[int, ...]) -> Path:
    """`root`/annotations.json."""
    images = [
        {
            "id": i,
            "height": SIZES[i][0],
            "width": SIZES[i][1],
            "coco_url": f"http://images.cocodataset.org/val2017/{i}.png",
            "neg_category_ids": list(CATEGORIES),
            "not_exhaustive_category_ids": [],
        }
        for i in image_ids
    ]
    categories = [{"id": i, "name": str(i), "frequency": "rcf"[i - 1]} for i in CATEGORIES]
    path = root / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def write_dataset(root: Path, image_ids: tuple[int, ...] = (1, 2)) -> Path:
    """Photographs and annotations of two squares each."""
    write_images(root, image_ids)
    write_annotations(root, squares(image_ids), image_ids)
    return root


def write_odd_dataset(root: Path) -> Path:
    """As `write_dataset`, and an object without a pixel and a crowd beside the squares."""
    write_images(root, (1, 2))
    write_annotations(root, [*squares((1, 2)), EMPTY, CROWD], (1, 2))
    return root
