"""Photographs on their way to the encoder: read, checked, perturbed and resized, with the true masks of their objects.

All of it happens in threads ahead of the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sam_blvit.data.instances import Instance
from sam_blvit.data.prefetch import prefetched
from sam_blvit.data.prompts import corners
from sam_blvit.evaluate.protocol.perturb import CLEAN, Perturbation
from sam_blvit.model.resize import Resize


class Measurable(Protocol):
    """A photograph that objects are annotated on, wherever it lies."""

    @property
    def image_id(self) -> int:
        """What its annotations call it."""

    @property
    def height(self) -> int:
        """Pixels, as annotated."""

    @property
    def width(self) -> int:
        """Pixels, as annotated."""

    def pixels(self) -> NDArray[np.uint8]:
        """The photograph (H, W, 3) RGB; ValueError, one line, if it cannot be read or has not the annotated size."""


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

    image: Measurable
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
    images: Sequence[Measurable],
    instances: Mapping[int, Sequence[Instance]],
    *,
    side: int,
    perturbation: Perturbation = CLEAN,
) -> Iterator[Photograph]:
    """Each of `images` with its `instances` (by image id), the longest side resized to `side` pixels."""
    resize = Resize(side)

    def load(image: Measurable) -> Photograph:
        pixels = image.pixels()
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


def by_image(instances: Iterable[Instance]) -> dict[int, list[Instance]]:
    """Instances by the id of their image, in the order given."""
    groups: dict[int, list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[instance.image_id].append(instance)
    return dict(groups)


def truth_of(instance: Instance, image: Measurable, perturbation: Perturbation) -> Truth:
    """`instance` where `perturbation` left it, perhaps without a pixel."""
    mask, box = instance.mask(image.height, image.width), corners(instance.box)
    if perturbation.shift:
        moved = np.minimum(perturbation.box(box), (image.width, image.height) * 2)
        box = (float(moved[0]), float(moved[1]), float(moved[2]), float(moved[3]))
    return Truth(instance=instance, mask=perturbation.mask(mask), box=box)
