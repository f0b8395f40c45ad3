"""SA-1B on disk: `sa_<id>.jpg` and `sa_<id>.json`, packed in tars, flat in a directory, or in two directories.

The one thing to know: `data` is looked through once, when a source is made. Tars are read in place, by byte offsets,
and what an image is made of is one row of an array that all processes share.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sam_blvit.data.annotated import MAX_BAD_SHARE, Annotated
from sam_blvit.data.depth import UnsuitableError
from sam_blvit.data.images import UNREADABLE, open_image, size_mismatch, to_rgb, why_unreadable
from sam_blvit.data.instances import Instance, read_instance
from sam_blvit.data.pairs import HALVES, WHOLE_FILE, Pairs, are_whole, pairs_of
from sam_blvit.data.tar_index import indexed
from sam_blvit.system.files import first_line, parse_json

TAR = ".tar"
IMAGES = "images"
ANNOTATIONS = ("annotations", "masks")
"""Names of the directory beside `images`: EdgeSAM's, and that of EfficientViT-SAM."""
SPLITS = ("", "train", "val")
NO_CATEGORY = 1
"""SA-1B names none."""


@dataclass(frozen=True)
class Place:
    """Where pairs lie: a tar, or directories of photographs and of annotations, perhaps the same."""

    images: Path
    annotations: Path
    name: str
    """Of the tar or the directory of photographs, from `data`; empty for `data` itself."""

    @property
    def is_tar(self) -> bool:
        """Whether both halves are packed in one file."""
        return self.name.endswith(TAR)


class Sa1b:
    """The complete pairs of SA-1B in a directory, by ascending image id (a `Source`)."""

    annotations_sha256 = ""

    def __init__(self, root: str | Path, *, tars: Sequence[str] | None = None) -> None:
        """`tars`: names of those in `root` to look into, and nothing else. Default: all that `root` holds.

        Incomplete pairs are counted and said. ValueError, one line, above 1 in 1,000; where there is no pair at all;
        where a tar cannot be read, a name is not SA-1B's, or an image is there twice.
        """
        root = Path(root)
        if not root.is_dir():
            raise ValueError(
                f"data {root} is not a directory; it should hold SA-1B's .tar files or sa_*.jpg and sa_*.json"
            )
        self.name = str(root)
        self.places = _places(root) if tars is None else [_tar_place(root, name) for name in sorted(tars)]
        self._pairs = _joined(self.places, root)
        self.image_ids: NDArray[np.int64] = np.ascontiguousarray(self._pairs["image_id"])

    def __len__(self) -> int:
        return len(self.image_ids)

    def location(self, index: int) -> str:
        """The name of the tar, or the path without suffix, from `data`."""
        place = self.places[self._pairs["place"][index]]
        return place.name if place.is_tar else os.path.join(place.name, f"sa_{self.image_ids[index]}")

    def read(self, index: int) -> Annotated:
        """The photograph and its objects; ValueError, one line, where either file is damaged."""
        pair, image_id = self._pairs[index], int(self.image_ids[index])
        place = self.places[pair["place"]]
        files = [place.images, place.annotations]
        if not place.is_tar:
            files = [place.images / f"sa_{image_id}.jpg", place.annotations / f"sa_{image_id}.json"]
        try:
            photograph = io.BytesIO(_bytes(files[0], pair["image"]))
            pixels = _pixels(photograph)
            entries = parse_json(_bytes(files[1], pair["annotations"]))["annotations"]
            if not isinstance(entries, list):
                raise ValueError("its annotations are no list")
            instances = [_instance(entry, image_id) for entry in entries]
            for instance in instances:
                _check_size(instance, pixels.shape[:2], photograph)
        except (*UNREADABLE, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else first_line(error)
            raise ValueError(f"sa_{image_id} in {files[0]} is damaged ({reason})") from error
        return Annotated(image_id, pixels, instances)


def tar_names(root: str | Path) -> list[str]:
    """Names of the .tar files in directory `root`, in order."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.name.endswith(TAR) and not entry.name.startswith("."))


def _places(root: Path) -> list[Place]:
    """Where under `root` the pairs are: its tars, else its directories, else itself."""
    if tars := tar_names(root):
        if beside := sum(name.endswith(tuple(HALVES)) for name in os.listdir(root)):
            warnings.warn(
                f"data {root} holds {len(tars)} {TAR} files, so {beside} files beside them are left out", stacklevel=2
            )
        return [_tar_place(root, name) for name in tars]
    annotations = next((root / name for name in ANNOTATIONS if (root / name).is_dir()), None)
    if annotations is None or not (root / IMAGES).is_dir():
        return [Place(root, root, "")]
    candidates = [
        Place(root / IMAGES / split, annotations / split, os.path.join(IMAGES, split).rstrip("/")) for split in SPLITS
    ]
    return [place for place in candidates if place.images.is_dir() or place.annotations.is_dir()]


def _tar_place(root: Path, name: str) -> Place:
    return Place(root / name, root / name, name)


def _joined(places: Sequence[Place], root: Path) -> Pairs:
    """The complete pairs of all `places`, by ascending id."""
    packed = places[0].is_tar
    found = indexed([place.images for place in places]) if packed else [_listed(place) for place in places]
    for number, pairs in enumerate(found):
        pairs["place"] = number
    pairs = np.concatenate(found)
    pairs = pairs[np.argsort(pairs["image_id"], kind="stable")]
    if len(twice := np.flatnonzero(pairs["image_id"][1:] == pairs["image_id"][:-1])):
        one, other = (places[pairs["place"][row]].images for row in (twice[0], twice[0] + 1))
        raise ValueError(f"sa_{pairs['image_id'][twice[0]]} is both in {one} and in {other}; remove one of them")
    return _complete(pairs, root)


def _complete(pairs: Pairs, root: Path) -> Pairs:
    whole = are_whole(pairs)
    incomplete = len(pairs) - int(whole.sum())
    if incomplete == len(pairs):
        raise ValueError(
            f"data {root} holds no pair of sa_<id>.jpg and sa_<id>.json, neither in {TAR} files nor flat, nor in "
            f"{IMAGES}/ and {ANNOTATIONS[0]}/; name the directory that does, and gunzip .gz files"
        )
    if incomplete:
        message = f"data {root}: {incomplete} of {len(pairs)} images or annotations lack the other half"
        if incomplete > MAX_BAD_SHARE * len(pairs):
            raise ValueError(f"{message}, more than {MAX_BAD_SHARE:.1%}; is a tar cut short, or a copy unfinished?")
        warnings.warn(f"{message} and are left out", stacklevel=2)
    return pairs[whole]


def _listed(place: Place) -> Pairs:
    """The pairs in the directories of `place`."""
    names: list[str] = []
    for directory in dict.fromkeys((place.images, place.annotations)):
        if directory.is_dir():
            names += os.listdir(directory)
    try:
        return pairs_of((name, 0, WHOLE_FILE) for name in names)
    except ValueError as error:
        raise ValueError(f"{place.images}: {error}") from error


def _bytes(path: Path, extent: NDArray[np.int64]) -> bytes:
    offset, size = extent.tolist()
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _pixels(photograph: BinaryIO) -> NDArray[np.uint8]:
    """(H, W, 3) RGB, upright."""
    try:
        with open_image(photograph) as image:
            return to_rgb(image)
    except UnsuitableError:
        raise
    except UNREADABLE as error:
        raise ValueError(f"the photograph {why_unreadable(error)}") from error


def _check_size(instance: Instance, size: tuple[int, ...], photograph: BinaryIO) -> None:
    annotated = tuple(instance.segmentation["size"])
    if annotated != size:
        mismatch = size_mismatch(size, annotated, photograph)
        raise ValueError(f"annotation {instance.ann_id}: the photograph {mismatch}")


def _instance(entry: dict[str, Any], image_id: int) -> Instance:
    instance = read_instance({**entry, "image_id": image_id, "category_id": NO_CATEGORY})
    runs = instance.segmentation
    if not isinstance(runs, dict) or not isinstance(runs.get("counts"), str):
        raise ValueError(f"annotation {instance.ann_id} holds no compressed run lengths, as SA-1B's do")
    return instance
