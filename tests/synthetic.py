"""Photographs and masks that tests make, in SA-1B's layout."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask


def rectangle_mask(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """(height, width) uint8 with 1 inside `box` x0, y0, x1, y1."""
    mask = np.zeros((height, width), dtype=np.uint8)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    return mask


def annotation(mask: np.ndarray, number: int) -> dict:
    """`mask` as an annotation of SA-1B."""
    rle = coco_mask.encode(np.asfortranarray(mask))
    x, y, w, h = (float(v) for v in coco_mask.toBbox(rle))
    rle["counts"] = rle["counts"].decode()
    return {
        "id": number,
        "segmentation": rle,
        "bbox": [x, y, w, h],
        "area": int(mask.sum()),
        "predicted_iou": 1.0,
        "stability_score": 1.0,
        "crop_box": [0, 0, mask.shape[1], mask.shape[0]],
        "point_coords": [[x, y]],
    }


def sa1b_files(image_id: int, *, size: tuple[int, int] = (48, 64), masks: int = 3) -> dict[str, bytes]:
    """The two files of one image of `size` (h, w): bright rectangles on a dark ground, one mask each."""
    rng = np.random.default_rng(image_id)
    height, width = size
    pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    annotations = []
    for number in range(masks):
        x0, y0 = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
        mask = rectangle_mask(height, width, (x0, y0, x0 + width // 3, y0 + height // 3))
        pixels[mask > 0] = rng.integers(150, 255, 3)
        annotations.append(annotation(mask, image_id * 1000 + number))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    image = {"image_id": image_id, "width": width, "height": height, "file_name": f"sa_{image_id}.jpg"}
    text = json.dumps({"image": image, "annotations": annotations})
    return {f"sa_{image_id}.jpg": buffer.getvalue(), f"sa_{image_id}.json": text.encode()}


def write_flat(root: Path, image_ids: range, **options: object) -> Path:
    """Images in `root`, flat."""
    root.mkdir(parents=True, exist_ok=True)
    for image_id in image_ids:
        for name, content in sa1b_files(image_id, **options).items():  # type: ignore[arg-type]
            (root / name).write_bytes(content)
    return root


def write_tar(path: Path, image_ids: range, mode: str = "w", **options: object) -> Path:
    """Images in one tar file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for image_id in image_ids:
            for name, content in sa1b_files(image_id, **options).items():  # type: ignore[arg-type]
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def write_split(
    root: Path, image_ids: range, *, split: str = "", annotations: str = "annotations", **options: object
) -> Path:
    """Photographs in `root`/images/`split`, their annotations in `root`/`annotations`/`split`."""
    for image_id in image_ids:
        for name, content in sa1b_files(image_id, **options).items():  # type: ignore[arg-type]
            directory = root / ("images" if name.endswith(".jpg") else annotations) / split
            directory.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(content)
    return root
