"""Instance annotations in LVIS v0.5, LVIS v1 or COCO format: which photographs, which objects, their masks.

The one thing to know: LVIS v1 names no file. Its photographs lie in COCO's train2017 and val2017, and the last two
parts of `coco_url` say which and where.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from sam_blvit.data.fields import (
    checked_box,
    checked_crowd,
    checked_number,
    checked_path,
    checked_side,
    malformed,
    read_field,
    reason,
)
from sam_blvit.data.ids import checked_id
from sam_blvit.data.images import read_image, size_mismatch
from sam_blvit.data.segmentation import drawable, packed
from sam_blvit.system.files import parse_json

MERGED = "trainval"
"""A directory in which some keep train2017 and val2017 together."""
COCO_2014_PREFIX = "COCO_"
"""LVIS v0.5 writes some names as COCO did in 2014; COCO 2017's file is the last part."""
NAMED_AT_MOST = 3
PIXEL_LIMIT = 2**32
"""The first number of pixels that pycocotools cannot count."""


@dataclass(frozen=True)
class ImageRecord:
    """A photograph as its annotations describe it."""

    image_id: int
    height: int
    width: int
    name: str
    """File name, possibly with directories."""
    split: str
    """train2017, val2017 or the like; empty where the annotations do not say."""


@dataclass(frozen=True)
class ImageFile:
    """A photograph on disk, with the size its annotations were made for."""

    image_id: int
    height: int
    width: int
    path: Path

    def pixels(self) -> NDArray[np.uint8]:
        """The photograph (H, W, 3) RGB; ValueError, one line, if it cannot be read or has not the annotated size."""
        pixels = read_image(self.path)
        if pixels.shape[:2] != (self.height, self.width):
            mismatch = size_mismatch(pixels.shape[:2], (self.height, self.width), self.path)
            raise ValueError(f"image {self.path} {mismatch}")
        return pixels


@dataclass(frozen=True)
class Instance:
    """One annotated object."""

    ann_id: int
    image_id: int
    category_id: int
    area: float
    """Pixels, as annotated; some exporters write 0, -1 or the size of the image. `pixels` counts them."""
    box: tuple[float, float, float, float]
    """Annotated x, y, width, height, pixels."""
    crowd: bool
    segmentation: Any
    """Polygons, or run lengths, compressed or not."""

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """The object's pixels (height, width), as pycocotools draws them; perhaps none.

        Raises ValueError, one line naming the annotation, where pycocotools would crash or invent pixels.
        """
        return coco_mask.decode(self.runs(height, width)).astype(bool)

    def pixels(self, height: int, width: int) -> int:
        """The number of pixels of `mask`, which is not decoded. Raises ValueError as `mask` does."""
        return int(coco_mask.area(self.runs(height, width)))

    def runs(self, height: int, width: int) -> dict[str, Any]:
        """`mask` as COCO's compressed run lengths. Raises ValueError as `mask` does."""
        shape = self.checked(height, width)
        if isinstance(shape, dict):
            return shape
        if not shape:
            return packed([height * width], height, width)
        return coco_mask.merge(coco_mask.frPyObjects(shape, height, width))

    def checked(self, height: int, width: int) -> list[list[float]] | dict[str, Any]:
        """The segmentation as pycocotools can draw it on (height, width) pixels: polygons, perhaps none, or compressed
        run lengths. Nothing is drawn. Raises ValueError as `mask` does."""
        try:
            return drawable(self.segmentation, height, width)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"annotation {self.ann_id}: segmentation is malformed ({reason(error)})") from error


@dataclass(frozen=True)
class Dataset:
    """The content of an annotation file, which is read once."""

    path: Path
    sha256: str
    """Of the file."""
    records: dict[int, ImageRecord]
    """Photographs by id."""
    instances: list[Instance]
    """In the order of the file."""
    content: dict[str, Any]
    """The file's JSON with all fields; not to be changed. Its annotations are in the order of `instances`."""

    @property
    def identity(self) -> dict[str, str]:
        """The file's name and hash."""
        return {"file": self.path.name, "sha256": self.sha256}


def read_instances(path: str | Path, *, may_be_empty: bool = False) -> Dataset:
    """Read an annotation file.

    Args:
        path: A JSON file.
        may_be_empty: Whether the file may list photographs alone, without one annotation.

    Raises:
        ValueError: if the file holds no instance annotations, or an entry is malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"annotations {path} is not a file; name the JSON of LVIS or COCO instances")
    text = path.read_bytes()
    content = _parsed(text, path, () if may_be_empty else ("annotations",))
    try:
        records = [_record(entry) for entry in content["images"]]
        instances = [read_instance(entry) for entry in content["annotations"]]
        by_id = {record.image_id: record for record in records}
        _check(by_id, records, instances)
    except ValueError as error:
        raise ValueError(f"annotations {path}: {error}") from error
    return Dataset(path, hashlib.sha256(text).hexdigest(), by_id, instances, content)


def find_images(records: Sequence[ImageRecord], root: str | Path) -> list[ImageFile]:
    """The file of each photograph under `root`, in `<split>/`, in `trainval/` or in `root` itself.

    Raises ValueError, one line with how many are missing, the first of them and the remedy.
    """
    found, missing = [], []
    for record in records:
        path = next((path for path in _places(record, Path(root)) if os.path.isfile(path)), None)
        if path is None:
            missing.append(record)
        else:
            found.append(ImageFile(record.image_id, record.height, record.width, path))
    if missing:
        raise ValueError(_missing_line(missing, len(records), root))
    return found


def _places(record: ImageRecord, root: Path) -> Iterable[Path]:
    names = [record.name]
    if PurePosixPath(record.name).name.startswith(COCO_2014_PREFIX):
        names.append(record.name.rsplit("_", 1)[-1])
    for name in names:
        if record.split:
            yield root / record.split / name
        yield root / MERGED / name
        yield root / name


def _missing_line(missing: Sequence[ImageRecord], total: int, root: str | Path) -> str:
    splits = Counter(record.split or "no split named" for record in missing)
    counted = ", ".join(f"{split}: {number}" for split, number in sorted(splits.items()))
    first = ", ".join(str(PurePosixPath(record.split, record.name)) for record in missing[:NAMED_AT_MOST])
    return (
        f"images {root}: {len(missing)} of {total} photographs are missing ({counted}), first {first}; "
        "LVIS needs COCO's train2017 and val2017: put both there, or name the directory that holds them"
    )


def _parsed(text: bytes, path: Path, needed: Sequence[str]) -> dict[str, Any]:
    """The JSON in `text`, whose lists "images" and `needed` hold something."""
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"annotations {path} is not JSON ({reason(error)}); unpack or download it again") from error
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"annotations {path} has no list {key!r}; name the JSON of LVIS or COCO instances")
        if not content[key] and key in ("images", *needed):
            raise ValueError(f"annotations {path} has an empty list {key!r}: there is nothing to measure")
    return content


def _record(entry: Any) -> ImageRecord:
    try:
        url = read_field(entry.get("coco_url"), "coco_url", checked_path)
        name = str(read_field(entry.get("file_name"), "file_name", checked_path))
        if name == ".":
            name = url.name
        if not name:
            raise ValueError("neither file_name nor coco_url")
        height, width = (read_field(entry[side], side, checked_side) for side in ("height", "width"))
        if height * width >= PIXEL_LIMIT:
            raise ValueError(f"{width} x {height} pixels are too many for run lengths; is it a size in pixels?")
        return ImageRecord(
            image_id=read_field(entry["id"], "id", checked_id),
            height=height,
            width=width,
            name=name,
            split=url.parent.name,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise malformed("image", entry, error) from error


def read_instance(entry: Any) -> Instance:
    """One entry of the list "annotations"; ValueError, one line naming it, its field and the value, if it is
    malformed. The segmentation is not looked at."""
    try:
        return Instance(
            ann_id=read_field(entry["id"], "id", checked_id),
            image_id=read_field(entry["image_id"], "image_id", checked_id),
            category_id=read_field(entry["category_id"], "category_id", checked_id),
            area=read_field(entry["area"], "area", checked_number),
            box=read_field(entry["bbox"], "bbox", checked_box),
            crowd=read_field(entry.get("iscrowd"), "iscrowd", checked_crowd),
            segmentation=entry["segmentation"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise malformed("annotation", entry, error) from error


def _check(images: Mapping[int, ImageRecord], records: Sequence[ImageRecord], instances: Sequence[Instance]) -> None:
    for kind, ids in (
        ("image", [record.image_id for record in records]),
        ("annotation", [instance.ann_id for instance in instances]),
    ):
        twice = [number for number, times in Counter(ids).items() if times > 1]
        if twice:
            raise ValueError(f"{kind} id {twice[0]} is given {ids.count(twice[0])} times; ids are unique")
    for instance in instances:
        if instance.image_id not in images:
            raise ValueError(f"annotation {instance.ann_id} is of image {instance.image_id}, which is not listed")


def check_masks(instances: Iterable[Instance], images: Mapping[int, ImageRecord]) -> None:
    """Raise ValueError, one line, unless each of `instances` can be drawn on its image; quicker than drawing."""
    for instance in instances:
        instance.checked(images[instance.image_id].height, images[instance.image_id].width)
