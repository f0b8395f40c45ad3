"""Photographs on their way to the encoder: read, checked, perturbed and resized, with the true masks of their objects.

All of it happens in threads ahead of the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam_blvit.data.images import read_image
from sam_blvit.data.instances import ImageFile, Instance
from sam_blvit.data.prefetch import prefetched
from sam_blvit.data.prompts import corners
from sam_blvit.evaluate.perturb import CLEAN, Perturbation
from sam_blvit.predictor import Resize


@dataclass(frozen=True)
class Truth:
    """An object, where the perturbation of its photograph left it."""

    instance: Instance
    mask: NDArray[np.bool_]
    """(H, W)."""
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 as annotated; under a shift moved along and cut at the image's edge."""


@dataclass(frozen=True)
class Photograph:
    """One photograph, ready to be embedded."""

    image: ImageFile
    resized: NDArray[np.uint8]
    """(h, w, 3) as the encoder takes it."""
    unperturbed: NDArray[np.uint8]
    """(h, w, 3) the same before the perturbation."""
    truths: list[Truth]
    skipped_empty: list[int]
    """Ids of annotations without a single pixel, by themselves or since a shift moved them out."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.height, self.image.width


def photographs(
    images: Sequence[ImageFile],
    instances: Mapping[int, Sequence[Instance]],
    *,
    side: int,
    perturbation: Perturbation = CLEAN,
) -> Iterator[Photograph]:
    """Each of `images` with its `instances` (by image id), the longest side resized to `side` pixels."""
    resize = Resize(side)

    def load(image: ImageFile) -> Photograph:
        pixels = read_pixels(image)
        truths = [truth_of(a, image, perturbation) for a in instances.get(image.image_id, ())]
        unperturbed = resize.apply_image(pixels)
        clean = perturbation is CLEAN
        return Photograph(
            image=image,
            resized=unperturbed if clean else resize.apply_image(perturbation.image(pixels)),
            unperturbed=unperturbed,
            truths=[truth for truth in truths if truth.mask.any()],
            skipped_empty=[truth.instance.ann_id for truth in truths if not truth.mask.any()],
        )

    return prefetched(load, images)


def read_pixels(image: ImageFile) -> NDArray[np.uint8]:
    """The photograph's pixels (H, W, 3); ValueError if they are not of the size that was annotated."""
    pixels = read_image(image.path)
    if pixels.shape[:2] != (image.height, image.width):
        raise ValueError(
            f"image {image.path} is {pixels.shape[1]} x {pixels.shape[0]} pixels, its annotations are for "
            f"{image.width} x {image.height}; use the dataset's original files"
        )
    return pixels


def by_image(instances: Iterable[Instance]) -> dict[int, list[Instance]]:
    """Instances by the id of their image, in the order given."""
    groups: dict[int, list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[instance.image_id].append(instance)
    return dict(groups)


def truth_of(instance: Instance, image: ImageFile, perturbation: Perturbation) -> Truth:
    """`instance` where `perturbation` left it, perhaps without a pixel."""
    mask, box = instance.mask(image.height, image.width), corners(instance.box)
    if perturbation.shift:
        moved = np.minimum(perturbation.box(box), (image.width, image.height) * 2)
        box = (float(moved[0]), float(moved[1]), float(moved[2]), float(moved[3]))
    return Truth(instance=instance, mask=perturbation.mask(mask), box=box)
