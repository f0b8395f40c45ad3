"""Photographs with pasted shapes, in SA-1B's layout: what a SAM without weights learns from where a box's mask lies.

Rectangles, ellipses and polygons, filled with pieces of other photographs, lie over one another on a photograph; each
mask is the part of its shape that is seen. Pasting is an old augmentation (Ghiasi et al. 2021, with real objects):
masks are exact, edges visible, sizes evenly spread. What things look like has to be learnt from real masks, beside.

The one thing to know: photograph i of a seed is the same whatever is drawn before it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from sam_blvit.config import ShapesConfig
from sam_blvit.data.sources import Source, training_source
from sam_blvit.files import output_directory, write_atomically

TAR_NAME = "shapes.tar"
FIRST_ID = 1_000_000_000
"""Of their ids: beyond SA-1B's, so that both may lie in one directory."""
SIDES = (0.03, 0.7)
"""Smallest and largest side of a shape, as a share of the photograph's shorter one; drawn evenly on a log scale."""
LEAST_PIXELS = 64
"""Seen of a shape, for it to be annotated."""
GAIN = (0.6, 1.4)
"""Factor on each colour of what fills a shape."""
QUALITY = 92


def make_shapes(config: ShapesConfig) -> None:
    """Write `config.images` photographs to shapes.tar in `config.output`; ValueError, one line, for data that do not
    serve."""
    source = training_source(config)
    if len(source) < 2:
        raise ValueError(f"{source.name} holds {len(source)} photograph; shapes are filled with another one's pieces")
    path = output_directory(config.output) / TAR_NAME
    masks = covered = 0

    def write(to: str) -> None:
        nonlocal masks, covered
        with tarfile.open(to, "w") as tar:
            for number in tqdm(range(config.images), unit="image", disable=None):
                pixels, drawn = _pasted(source, config, number)
                seen = [mask for mask in drawn if mask.sum() >= LEAST_PIXELS]
                masks, covered = masks + len(seen), covered + len(drawn) - len(seen)
                for name, content in _files(FIRST_ID + number, pixels, seen):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))

    write_atomically(path, write)
    print(f"{path}: {config.images} photographs, {masks} masks; {covered} shapes are covered by others and left out")


def _pasted(source: Source, config: ShapesConfig, number: int) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """Pixels and what is seen of each shape of photograph `number`."""
    rng = np.random.default_rng([config.seed, number])
    ground, other = rng.choice(len(source), 2, replace=False)
    pixels, filling = source.read(int(ground)).pixels.copy(), source.read(int(other)).pixels
    height, width = pixels.shape[:2]
    filling = np.asarray(cv2.resize(filling, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    drawn: list[NDArray[np.bool_]] = []
    for _ in range(config.shapes):
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [_outline(rng, height, width)], 1)
        shape = mask.astype(bool)
        moved = np.roll(filling, (rng.integers(height), rng.integers(width)), axis=(0, 1))
        pixels[shape] = np.clip(moved[shape] * rng.uniform(*GAIN, size=3), 0, 255)
        drawn = [earlier & ~shape for earlier in drawn] + [shape]
    return pixels, drawn


def _outline(rng: np.random.Generator, height: int, width: int) -> NDArray[np.int32]:
    """(n, 2) corners of a rectangle, an ellipse or a polygon around a point of the photograph."""
    shorter = min(height, width)
    smallest, largest = SIDES
    half = shorter * smallest * (largest / smallest) ** rng.random(2) / 2
    kind = rng.integers(3)
    if kind == 0:
        corners = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    else:
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False) if kind == 1 else np.sort(rng.uniform(0, 2 * np.pi, 9))
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        if kind == 2:
            corners *= rng.uniform(0.4, 1, size=(len(corners), 1))
    turn = rng.uniform(0, 2 * np.pi) * (rng.random() < 0.5)  # half of them stand upright
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    placed = (corners * half) @ rotation.T + rng.uniform(0, (width, height))
    return placed.round().astype(np.int32)


def _files(image_id: int, pixels: NDArray[np.uint8], masks: list[NDArray[np.bool_]]) -> Iterator[tuple[str, bytes]]:
    """Name and content of the two files of a photograph, as SA-1B has them."""
    height, width = pixels.shape[:2]
    annotations = [_annotation(mask, image_id * 1000 + place) for place, mask in enumerate(masks)]
    image = {"image_id": image_id, "width": width, "height": height, "file_name": f"sa_{image_id}.jpg"}
    picture = io.BytesIO()
    Image.fromarray(pixels).save(picture, "JPEG", quality=QUALITY)
    yield f"sa_{image_id}.jpg", picture.getvalue()
    yield f"sa_{image_id}.json", json.dumps({"image": image, "annotations": annotations}).encode()


def _annotation(mask: NDArray[np.bool_], ann_id: int) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    box = [float(value) for value in coco_mask.toBbox(rle)]
    area = int(coco_mask.area(rle))
    counts = rle["counts"].decode()
    return {"id": ann_id, "segmentation": {"size": list(mask.shape), "counts": counts}, "bbox": box, "area": area}
