"""Training samples: a photograph at the model's size, and some of its masks at that of the loss.

The one thing to know: what an item holds depends on (seed, epoch, image id) alone, so any number of processes draws
the same. A photograph that cannot be used is told as `Damaged` and never replaced, so none is seen twice in an epoch.

Shapes:
    H W  photograph as read     h w  as the model sees it
    L    side of the square in which masks are compared     n  masks
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import Dataset

from sam_blvit.data.annotated import Annotated
from sam_blvit.data.instances import Instance
from sam_blvit.data.sources import Source
from sam_blvit.system.files import first_line

LARGEST_MASK = 0.9
"""Masks that cover more of the image than this are not trained on (SAM, appendix A)."""

Window = tuple[slice, slice]
"""Rows and columns."""
Drawn = tuple[Instance, dict[str, Any]]
"""An object, and its pixels in the photograph as COCO's compressed run lengths."""


@dataclass(frozen=True)
class Sample:
    """One photograph with n of its masks, resized for training."""

    epoch: int
    image_id: int
    image: Tensor
    """(3, h, w) uint8 RGB, longest side `image_size`."""
    masks: Tensor
    """(n, L, L) bool: masks in the padded square, at the resolution of the loss. n may be 0: distillation alone."""
    boxes: Tensor
    """(n, 4) float32 x0, y0, x1, y1 in pixels of `image`."""
    ann_ids: tuple[int, ...]
    """The n annotations."""
    valid: tuple[int, int]
    """Height and width, in pixels of `masks`, that the photograph covers."""
    teacher_image: Tensor | None = None
    """(3, h', w') uint8 RGB: the same view at the teacher's input size. None: the teacher sees `image`."""
    mirrored: bool = False
    """Whether `image` shows the photograph mirrored."""


@dataclass(frozen=True)
class Damaged:
    """A photograph that could not be used."""

    image_id: int
    reason: str
    """One line."""


@dataclass(frozen=True)
class Framing:
    """How a photograph is cropped, mirrored and scaled for one epoch."""

    window: Window
    flipped: bool
    size: tuple[int, int]
    """h, w."""
    scale: float
    """Pixels of `size` to one of the photograph."""
    valid: tuple[int, int]
    """Height and width of what is seen, in pixels of the loss."""

    def scaled(self, factor: float) -> Framing:
        """The same view at `factor` times the size."""
        h, w = (max(1, round((part.stop - part.start) * self.scale * factor)) for part in self.window)
        return replace(self, size=(h, w), scale=self.scale * factor)

    def view(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What is seen of `pixels` (H, W, ...), not resized."""
        seen = pixels[self.window]
        return seen[:, ::-1] if self.flipped else seen


class TrainingSamples(Dataset[Sample | Damaged]):
    """Samples from the photographs of a source, found at places (epoch, index)."""

    def __init__(
        self,
        source: Source,
        *,
        image_size: int,
        mask_side: int,
        masks_per_image: int,
        smallest_crop: float = 1.0,
        mirrored: float = 0.0,
        seed: int = 0,
        teacher_size: int | None = None,
    ) -> None:
        """Read the photographs of `source`.

        Args:
            image_size: Longest side of a sample's image, pixels.
            mask_side: L, pixels along the square of a mask.
            masks_per_image: Masks of a sample, at most.
            smallest_crop: Share of each side that a random crop keeps at least; 1 crops nothing.
            mirrored: Share of the photographs that are mirrored.
            seed: What is drawn depends on it, the epoch and the photograph's id.
            teacher_size: Longest side of `teacher_image`, pixels, if there is to be one.
        """
        self.source = source
        self.image_size = image_size
        self.mask_side = mask_side
        self.masks_per_image = masks_per_image
        self.smallest_crop = smallest_crop
        self.mirrored = mirrored
        self.seed = seed
        self.teacher_size = teacher_size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: tuple[int, int]) -> Sample | Damaged:
        """The sample at `place` (epoch, index), or what is wrong with that photograph."""
        epoch, index = place
        try:
            annotated = self.source.read(index)
            framing, chosen = self._draw(annotated, epoch)
            masks, boxes, seen = self._masks(framing, chosen)
        except ValueError as error:
            return Damaged(int(self.source.image_ids[index]), first_line(error))
        return Sample(
            epoch=epoch,
            image_id=annotated.image_id,
            image=_resized(annotated.pixels, framing),
            masks=torch.from_numpy(masks),
            boxes=torch.from_numpy(boxes),
            ann_ids=tuple(instance.ann_id for instance in seen),
            valid=framing.valid,
            mirrored=framing.flipped,
            teacher_image=self._for_teacher(annotated.pixels, framing),
        )

    def _for_teacher(self, pixels: NDArray[np.uint8], framing: Framing) -> Tensor | None:
        if self.teacher_size is None:
            return None
        return _resized(pixels, framing.scaled(self.teacher_size / self.image_size))

    def _draw(self, annotated: Annotated, epoch: int) -> tuple[Framing, list[Drawn]]:
        """What is seen of the photograph in `epoch`, and which of its objects."""
        rng = np.random.default_rng([self.seed, epoch, annotated.image_id])
        height, width = annotated.pixels.shape[:2]
        window = _random_crop(height, width, self.smallest_crop, rng)
        shuffled = (annotated.instances[i] for i in rng.permutation(len(annotated.instances)))
        chosen = list(islice(_usable(shuffled, height, width), self.masks_per_image))
        flipped = bool(self.mirrored and rng.random() < self.mirrored)
        sides = [part.stop - part.start for part in window]
        scale = self.image_size / max(sides)
        h, w = (max(1, round(side * scale)) for side in sides)
        rows, columns = (max(1, round(side * self.mask_side / self.image_size)) for side in (h, w))
        return Framing(window, flipped, (h, w), scale, (rows, columns)), chosen

    def _masks(
        self, framing: Framing, chosen: Sequence[Drawn]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32], list[Instance]]:
        """Masks (n, L, L) and boxes (n, 4) of those of `chosen` that are seen, and these; only `chosen` are decoded."""
        rows, columns = framing.valid
        masks = np.zeros((len(chosen), self.mask_side, self.mask_side), dtype=bool)
        boxes = np.zeros((len(chosen), 4), dtype=np.float32)
        seen: list[Instance] = []
        for instance, runs in chosen:
            mask = framing.view(coco_mask.decode(runs))
            # pycocotools fills columns first, OpenCV reads rows first: what is turned over is the small one
            turned = cv2.resize(np.ascontiguousarray(mask.T), (rows, columns), interpolation=cv2.INTER_NEAREST)
            small = cv2.transpose(turned)
            share = np.count_nonzero(small) / small.size  # of the crop, not of the photograph
            if 0 < share <= LARGEST_MASK:
                masks[len(seen), :rows, :columns] = small
                boxes[len(seen)] = _box(mask) * framing.scale
                seen.append(instance)
        return masks[: len(seen)], boxes[: len(seen)], seen


def _usable(instances: Iterable[Instance], height: int, width: int) -> Iterator[Drawn]:
    """Those of `instances` that may be trained on, by the pixels they have in an image of (height, width): annotated
    areas cannot be relied on. ValueError, one line, when one is met that cannot be drawn."""
    for instance in instances:
        runs = instance.runs(height, width)
        if 0 < coco_mask.area(runs) <= LARGEST_MASK * height * width:
            yield instance, runs


def _resized(pixels: NDArray[np.uint8], framing: Framing) -> Tensor:
    """The photograph as a model sees it (3, h, w)."""
    interpolation = cv2.INTER_AREA if framing.scale < 1 else cv2.INTER_LINEAR
    view = np.ascontiguousarray(framing.view(pixels))
    resized = cv2.resize(view, framing.size[::-1], interpolation=interpolation).astype(np.uint8, copy=False)
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()


def _random_crop(height: int, width: int, smallest: float, rng: np.random.Generator) -> Window:
    share = rng.uniform(smallest, 1)
    sides = [max(1, round(length * share)) for length in (height, width)]
    starts = [int(rng.integers(0, length - side + 1)) for length, side in zip((height, width), sides, strict=True)]
    rows, cols = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    return rows, cols


def _box(mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Tightest x0, y0, x1, y1 around `mask` (h, w)."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1], dtype=np.float64)
