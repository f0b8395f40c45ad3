"""Photographs and masks in SA-1B's layout, from its tar files or from a flat directory.

An image is `sa_<id>.jpg` with `sa_<id>.json` beside it. Tars are read in place, through byte offsets
found once. What an item is made of depends on (seed, epoch, image id) alone, so any number of
processes draws the same.
"""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import Dataset

from sam_blvit.data.images import UNREADABLE

MAX_BAD_SHARE = 0.001
"""Above this share of incomplete pairs the data are taken to be damaged."""
LARGEST_MASK = 0.9
"""Masks that cover more of the image than this are not trained on (SAM, appendix A)."""
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Extent:
    """Bytes of a file: all of a plain one, or a member of a tar."""

    path: Path
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """The bytes."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Pair:
    """One photograph and its annotations."""

    image_id: int
    image: Extent
    annotations: Extent


def find_pairs(root: Path) -> list[Pair]:
    """All pairs in the `.tar` files of `root`, or where it has none in `root` itself, by id.

    Incomplete pairs are counted and said; ValueError above 1 in 1,000, or where there is nothing at all.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"data {root} is not a directory; it should hold SA-1B's .tar files or sa_*.jpg and sa_*.json")
    tars = sorted(root.glob("*.tar"))
    extents = [found for tar in tars for found in _tar_members(tar)] if tars else _flat_files(root)
    if tars and (flat := len(_flat_files(root))):
        warnings.warn(
            f"data {root} holds {len(tars)} .tar files, so {flat} files beside them are left out", stacklevel=2
        )
    images, annotations = _by_id(extents, ".jpg"), _by_id(extents, ".json")
    whole = images.keys() & annotations.keys()
    incomplete = len(images.keys() | annotations.keys()) - len(whole)
    if not whole:
        raise ValueError(f"data {root} holds no pair of sa_<id>.jpg and sa_<id>.json, neither in .tar files nor flat")
    if incomplete:
        message = f"data {root}: {incomplete} of {len(whole) + incomplete} images or annotations lack the other half"
        if incomplete > MAX_BAD_SHARE * len(whole):
            raise ValueError(f"{message}, more than {MAX_BAD_SHARE:.1%}; is a tar cut short?")
        warnings.warn(f"{message} and are left out", stacklevel=2)
    return [Pair(i, images[i], annotations[i]) for i in sorted(whole)]


def read_ids(path: Path) -> list[int]:
    """Image ids of a text file with one a line; ValueError names the first line that is none."""
    ids = []
    for number, line in enumerate(Path(path).read_text().split(), start=1):
        if not line.isdigit():
            raise ValueError(f"{path}: entry {number} is {line!r}, not an image id")
        ids.append(int(line))
    return ids


def _by_id(extents: list[tuple[str, Extent]], suffix: str) -> dict[int, Extent]:
    found: dict[int, Extent] = {}
    for name, extent in extents:
        if name.endswith(suffix):
            number = _image_id(name)
            if number in found:
                raise ValueError(f"{name} is both in {found[number].path} and in {extent.path}; remove one of them")
            found[number] = extent
    return found


def _tar_members(path: Path) -> list[tuple[str, Extent]]:
    with path.open("rb") as file:
        zipped = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    if zipped:
        raise ValueError(f"{path} is gzip data under a .tar name; rename it to .gz and gunzip it first")
    try:
        with tarfile.open(path, "r:") as tar:
            return [(Path(m.name).name, Extent(path, m.offset_data, m.size)) for m in tar if m.isfile()]
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no readable tar file ({error})") from error


def _flat_files(root: Path) -> list[tuple[str, Extent]]:
    return [(path.name, Extent(path)) for path in root.iterdir() if path.suffix in {".jpg", ".json"}]


def _image_id(name: str) -> int:
    digits = Path(name).stem.removeprefix("sa_")
    if not digits.isdigit():
        raise ValueError(f"{name} is not named sa_<id>.jpg or sa_<id>.json as in SA-1B")
    return int(digits)


@dataclass(frozen=True)
class Sample:
    """One photograph with n of its masks, resized for training."""

    image_id: int
    image: Tensor
    """(3, h, w) uint8 RGB, longest side `image_size`."""
    masks: Tensor
    """(n, L, L) bool: masks in the padded square, at the resolution of the loss."""
    boxes: Tensor
    """(n, 4) float32 x0, y0, x1, y1 in pixels of `image`."""
    valid: tuple[int, int]
    """Height and width, in pixels of `masks`, that the photograph covers."""


class Sa1bDataset(Dataset[Sample]):
    """Training samples from `pairs`. `set_epoch` changes which masks, crops and flips are drawn."""

    def __init__(
        self,
        pairs: list[Pair],
        *,
        image_size: int,
        mask_side: int,
        masks_per_image: int,
        smallest_crop: float = 1.0,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        """`mask_side` (L): pixels along the square of a mask. `smallest_crop`: share of each side that a random
        crop keeps at least; 1 crops nothing."""
        self.pairs = pairs
        self.image_size = image_size
        self.mask_side = mask_side
        self.masks_per_image = masks_per_image
        self.smallest_crop = smallest_crop
        self.flip = flip
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        """The sample at `place` (epoch, index); where an image has no usable mask, that of the next one that has."""
        epoch, index = place
        for step in range(len(self.pairs)):
            pair = self.pairs[(index + step) % len(self.pairs)]
            rng = np.random.default_rng([self.seed, epoch, pair.image_id])
            sample = self._sample(pair, rng)
            if sample is not None:
                return sample
        raise ValueError(f"none of {len(self.pairs)} images has a mask to train on")

    def _sample(self, pair: Pair, rng: np.random.Generator) -> Sample | None:
        image, annotations = read_pair(pair)
        height, width = image.shape[:2]
        window = _random_crop(height, width, self.smallest_crop, rng)
        image = image[window]
        usable = [a for a in annotations if 0 < a["area"] <= LARGEST_MASK * height * width]
        chosen = rng.permutation(len(usable))[: self.masks_per_image]
        flipped = self.flip and rng.random() < 0.5
        if not len(chosen):
            return None
        decoded = coco_mask.decode([usable[i]["segmentation"] for i in chosen])[window]  # (h, w, n)
        if flipped:
            image, decoded = image[:, ::-1], decoded[:, ::-1]
        scale = self.image_size / max(image.shape[:2])
        size = tuple(max(1, round(side * scale)) for side in image.shape[:2])
        masks, valid = self._masks_in_square(decoded, size)
        share = masks.sum(axis=(1, 2)) / (valid[0] * valid[1])  # of the crop, not of the photograph
        seen = (share > 0) & (share <= LARGEST_MASK)
        if not seen.any():
            return None
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        resized = cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=interpolation)
        boxes = np.stack([_box(decoded[..., i]) for i in np.flatnonzero(seen)]) * scale
        return Sample(
            image_id=pair.image_id,
            image=torch.from_numpy(resized).permute(2, 0, 1).contiguous(),
            masks=torch.from_numpy(masks[seen]),
            boxes=torch.from_numpy(boxes.astype(np.float32)),
            valid=valid,
        )

    def _masks_in_square(self, masks: NDArray[Any], size: tuple[int, ...]) -> tuple[NDArray[Any], tuple[int, int]]:
        """`masks` (h, w, n) at loss resolution in the padded square (n, L, L), and the height and width they cover."""
        side = self.mask_side
        valid = tuple(max(1, round(length * side / self.image_size)) for length in size)
        square = np.zeros((masks.shape[2], side, side), dtype=bool)
        for i in range(masks.shape[2]):
            small = cv2.resize(np.ascontiguousarray(masks[..., i]), valid[::-1], interpolation=cv2.INTER_NEAREST)
            square[i, : valid[0], : valid[1]] = small
        return square, (valid[0], valid[1])


def read_pair(pair: Pair) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """The photograph (H, W, 3) RGB and its annotations; ValueError names a damaged file."""
    try:
        image = np.asarray(Image.open(io.BytesIO(pair.image.read())).convert("RGB"))
        annotations = json.loads(pair.annotations.read())["annotations"]
        _check_annotations(annotations, image.shape[:2])
    except (*UNREADABLE, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"sa_{pair.image_id} in {pair.image.path} is damaged ({reason})") from error
    return image, annotations


def _check_annotations(annotations: list[dict[str, Any]], size: tuple[int, ...]) -> None:
    for annotation in annotations:
        runs = annotation["segmentation"]
        if not isinstance(runs, dict) or not isinstance(runs.get("counts"), str):
            raise ValueError(f"annotation {annotation['id']} holds no compressed run lengths, as SA-1B's do")
        if tuple(runs["size"]) != tuple(size) or annotation["area"] < 0:
            raise ValueError(f"annotation {annotation['id']} is {runs['size']} pixels, the photograph {list(size)}")


def _random_crop(height: int, width: int, smallest: float, rng: np.random.Generator) -> tuple[slice, slice]:
    share = rng.uniform(smallest, 1)
    sides = [max(1, round(length * share)) for length in (height, width)]
    starts = [rng.integers(0, length - side + 1) for length, side in zip((height, width), sides, strict=True)]
    rows, cols = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    return rows, cols


def _box(mask: NDArray[Any]) -> NDArray[np.float64]:
    """Tightest x0, y0, x1, y1 around `mask` (h, w)."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1], dtype=np.float64)
