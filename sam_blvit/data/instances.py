"""Instance annotations in LVIS v0.5, LVIS v1 or COCO format: which photographs, which objects, their masks.

The one thing to know: LVIS v1 names no file. Its photographs lie in COCO's train2017 and val2017, and the last two
parts of `coco_url` say which and where.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from sam_blvit.data.ids import checked_count, checked_id
from sam_blvit.data.images import read_image, size_mismatch
from sam_blvit.files import parse_json

MERGED = "trainval"
"""A directory in which some keep train2017 and val2017 together."""
COCO_2014_PREFIX = "COCO_"
"""LVIS v0.5 writes some names as COCO did in 2014; COCO 2017's file is the last part."""
NAMED_AT_MOST = 3
PIXEL_LIMIT = 2**32
"""The first number of pixels that pycocotools cannot count."""

Value = TypeVar("Value")


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
            return _packed([height * width], height, width)
        return coco_mask.merge(coco_mask.frPyObjects(shape, height, width))

    def checked(self, height: int, width: int) -> list[list[float]] | dict[str, Any]:
        """The segmentation as pycocotools can draw it on (height, width) pixels: polygons, perhaps none, or compressed
        run lengths. Nothing is drawn. Raises ValueError as `mask` does."""
        try:
            return _drawable(self.segmentation, height, width)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"annotation {self.ann_id}: segmentation is malformed ({_reason(error)})") from error


def read_instances(path: str | Path, *, may_be_empty: bool = False) -> tuple[dict[int, ImageRecord], list[Instance]]:
    """Photographs by id, and annotations in the order of the file.

    Args:
        path: A JSON file.
        may_be_empty: Whether the file may list photographs alone, without one annotation.

    Raises:
        ValueError: one line naming the file, if it is no instance annotation or an entry of it is malformed.
    """
    content = _read_json(Path(path), () if may_be_empty else ("annotations",))
    try:
        records = [_record(entry) for entry in content["images"]]
        instances = [read_instance(entry) for entry in content["annotations"]]
        images = {record.image_id: record for record in records}
        _check(images, records, instances)
    except ValueError as error:
        raise ValueError(f"annotations {path}: {error}") from error
    return images, instances


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


def _read_json(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    """The content of `path`, whose lists "images" and `needed` hold something."""
    if not path.is_file():
        raise ValueError(f"annotations {path} is not a file; name the JSON of LVIS or COCO instances")
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"annotations {path} is not JSON ({_reason(error)}); unpack or download it again") from error
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"annotations {path} has no list {key!r}; name the JSON of LVIS or COCO instances")
        if not content[key] and key in ("images", *needed):
            raise ValueError(f"annotations {path} has an empty list {key!r}: there is nothing to measure")
    return content


def _record(entry: Any) -> ImageRecord:
    try:
        url = _read(entry.get("coco_url"), "coco_url", _path)
        name = str(_read(entry.get("file_name"), "file_name", _path))
        if name == ".":
            name = url.name
        if not name:
            raise ValueError("neither file_name nor coco_url")
        height, width = (_read(entry[side], side, _side) for side in ("height", "width"))
        if height * width >= PIXEL_LIMIT:
            raise ValueError(f"{width} x {height} pixels are too many for run lengths; is it a size in pixels?")
        return ImageRecord(
            image_id=_read(entry["id"], "id", checked_id), height=height, width=width, name=name, split=url.parent.name
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _malformed("image", entry, error) from error


def read_instance(entry: Any) -> Instance:
    """One entry of the list "annotations"; ValueError, one line naming it, its field and the value, if it is
    malformed. The segmentation is not looked at."""
    try:
        return Instance(
            ann_id=_read(entry["id"], "id", checked_id),
            image_id=_read(entry["image_id"], "image_id", checked_id),
            category_id=_read(entry["category_id"], "category_id", checked_id),
            area=_read(entry["area"], "area", _finite),
            box=_read(entry["bbox"], "bbox", _box),
            crowd=_read(entry.get("iscrowd"), "iscrowd", _crowd),
            segmentation=entry["segmentation"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed("annotation", entry, error) from error


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


def _drawable(segmentation: Any, height: int, width: int) -> list[list[float]] | dict[str, Any]:
    if isinstance(segmentation, dict):
        return _checked_runs(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise TypeError(f"{type(segmentation).__name__} instead of polygons or run lengths")
    if unlisted := [polygon for polygon in segmentation if not isinstance(polygon, list)]:
        raise TypeError(f"{unlisted[0]!r:.40} is not a list of x and y")
    polygons = [_checked_polygon(polygon, height, width) for polygon in segmentation]
    return [polygon for polygon in polygons if len(polygon) >= 6]  # fewer than three corners enclose nothing


def _checked_polygon(polygon: list[Any], height: int, width: int) -> list[float]:
    """Corners that pycocotools can draw: it takes memory for every step along an edge, and NaN never ends."""
    corners = [_finite(value) for value in polygon]
    if len(corners) % 2:
        raise ValueError(f"polygon of {len(corners)} numbers; x and y alternate")
    side = max(height, width)
    if corners and not -side <= min(corners) <= max(corners) <= 2 * side:
        raise ValueError(f"polygon reaches {max(corners, key=abs):g}, far outside {width} x {height} pixels")
    return corners


def _checked_runs(runs: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """Run lengths that cover the image: pycocotools leaves what they do not cover uninitialised."""
    counts = runs["counts"]
    if list(runs["size"]) != [height, width]:
        swapped = ", height and width swapped" if list(runs["size"]) == [width, height] else ""
        raise ValueError(f"size {runs['size']} instead of {[height, width]}{swapped}")
    if isinstance(counts, list):
        lengths = [checked_count(value) for value in counts]
    else:
        lengths = run_lengths(counts if isinstance(counts, bytes) else counts.encode("ascii"))
    if sum(lengths) != height * width or min(lengths, default=0) < 0:
        raise ValueError(f"run lengths cover {sum(lengths)} of {height * width} pixels")
    return _packed(lengths, height, width)


def _packed(lengths: list[int], height: int, width: int) -> dict[str, Any]:
    """Run lengths as pycocotools compresses them."""
    return coco_mask.frPyObjects({"size": [height, width], "counts": lengths}, height, width)


def run_lengths(text: bytes) -> list[int]:
    """The numbers in COCO's compressed run lengths: 5 bits a character, lowest first, each but the first three as the
    difference to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) * (bits >> 4 & 1)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("run lengths end in the middle of a number")
    return runs


def _read(value: Any, name: str, read: Callable[[Any], Value]) -> Value:
    """What `read` makes of field `name`, which its error then names."""
    try:
        return read(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_reason(error)} in {name}") from error


def _path(value: Any) -> PurePosixPath:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{value!r:.80} is not text")
    return PurePosixPath(value or "")


def _side(value: Any) -> int:
    if checked_count(value) == 0:
        raise ValueError("0 is not a number of pixels")
    return int(value)


def _box(value: Any) -> tuple[float, float, float, float]:
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"{value!r:.80} is not x, y, width, height")
    x, y, width, height = (_finite(number) for number in value)
    if min(width, height) < 0:
        raise ValueError(f"{value!r:.80} is inside out; x, y, width, height are expected")
    return x, y, width, height


def _crowd(value: Any) -> bool:
    if value is not None and (type(value) not in (bool, int) or value not in (0, 1)):
        raise ValueError(f"{value!r:.80} is not 0, 1, true, false or null; write 1 for a crowd, 0 for one object")
    return bool(value)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{value!r:.80} is not a finite number")
    return float(value)


def _malformed(kind: str, entry: Any, error: Exception) -> ValueError:
    named = entry["id"] if isinstance(entry, dict) and "id" in entry else entry
    which = "without id" if isinstance(named, dict) else f"{named!r:.40}"
    return ValueError(f"{kind} {which} is malformed ({_reason(error)})")


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
