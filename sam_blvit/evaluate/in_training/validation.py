"""Validation during training: point and box mIoU of a student, as it is, on photographs that it is not trained on.

The one thing to know: all is read and checked when a `Validation` is made, before training starts. What it then
measures is the same in every process, and for any number of them: each takes its share of the photographs, and the
rows come together before anything is averaged.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from segment_anything.modeling import Sam as OriginalSam

from sam_blvit.config import FinetuneConfig
from sam_blvit.data.instances import Instance, find_images, read_instances
from sam_blvit.data.sources import Source
from sam_blvit.evaluate.masks import MaskMeasure, measure_masks
from sam_blvit.evaluate.metrics.summary import Row, mean_ious
from sam_blvit.evaluate.metrics.truths import check_box
from sam_blvit.evaluate.photographs import Measurable, by_image
from sam_blvit.evaluate.protocol.protocols import PROTOCOLS
from sam_blvit.model.measuring import measuring
from sam_blvit.model.sam import Sam
from sam_blvit.system.distributed import Processes

HELD, ANNOTATIONS = "held", "annotations"
"""Kinds of photographs: kept out of the training data, and of `val_annotations`."""
OBJECTS = 16
"""Objects of a photograph, at most: SA-1B has a hundred, and more photographs say more than more of their objects."""
SCORE = "score"
HOW = MaskMeasure(protocol=PROTOCOLS["blvit"], boundary=False)
PHOTOGRAPHS_DRAWN, OBJECTS_DRAWN = 1, 2
"""What a draw is for, the last number of its seed."""

Made = TypeVar("Made")


@dataclass(frozen=True)
class SourcePhotograph:
    """A photograph of a training source, read each time that it is measured."""

    image_id: int
    height: int
    width: int
    source: Source
    index: int

    def pixels(self) -> NDArray[np.uint8]:
        """The photograph (H, W, 3) RGB; ValueError, one line, if it cannot be read."""
        return self.source.read(self.index).pixels


@dataclass(frozen=True)
class Share:
    """What one process measures of a kind of photographs, and what there is of it in all."""

    images: Sequence[Measurable]
    """This process's, by id."""
    instances: Sequence[Instance]
    """Theirs."""
    photographs: int
    """Of all processes, with an object on them."""
    objects: int
    """Of all processes."""


@dataclass(frozen=True)
class Validation:
    """Photographs to validate with, by kind, and the way to measure a model on them.

    Of each photograph at most 16 objects are measured, drawn by (seed, image id) and always the same.
    """

    shares: Mapping[str, Share]
    processes: Processes

    @classmethod
    def of(cls, config: FinetuneConfig, held: Source | None, processes: Processes) -> Validation | None:
        """What `config` names to validate with, and what is `held` out of its training source; None for nothing.

        Of each kind at most `val_limit` photographs are drawn, by `seed`. Crowds and objects without
        a pixel are left out. To be called by all of `processes` at once: ValueError, one line and in each of them,
        where a photograph is damaged, missing or badly annotated, or there is no object at all.
        """
        shares = {}
        if held is not None:
            shares[HELD] = _share(lambda: _of_source(held, config, processes), f"held out of {held.name}", processes)
        path, root = config.validation.val_annotations, config.validation.val_images
        if path is not None and root is not None:
            shares[ANNOTATIONS] = _share(
                lambda: _of_annotations(path, root, config, processes), f"val_annotations={path}", processes
            )
        return cls(shares, processes) if shares else None

    def __call__(self, sam: Sam, *, keep_ratios: Sequence[float] | None = None) -> dict[str, float]:
        """mIoU of `sam`, percent, by name; to be called by all processes at once, with the same weights.

        `val/held/box` is that of boxes on photographs held out of training; 1pt and 3pt are the other prompts,
        `annotations` the other kind. With `keep_ratios`, which are measured in turn, `val@0.25/held/box`; without, it
        is the one that `sam` was built with, whatever the last step of training left it at.
        `score`, to pick the best checkpoint by, is the mean of all of them. `sam` is left as it was.
        """
        scores: dict[str, float] = {}
        for ratio in (None,) if keep_ratios is None else dict.fromkeys(keep_ratios):
            prefix = "val" if ratio is None else f"val@{ratio:g}"
            for kind, means in self.mious(sam, keep_ratio=ratio).items():
                scores.update({f"{prefix}/{kind}/{prompt}": mean for prompt, mean in means.items()})
        return {**scores, SCORE: statistics.fmean(scores.values())}

    def mious(self, sam: OriginalSam, *, keep_ratio: float | None = None) -> dict[str, dict[str, float]]:
        """mIoU of `sam`, percent, by kind of photographs and prompt; at `keep_ratio`, or that which it was built with.

        To be called by all processes at once, too.
        """
        found = {}
        with measuring(sam, usual_keep_ratio(sam) if keep_ratio is None else keep_ratio):
            for kind, share in self.shares.items():
                means = mean_ious(self._rows(sam, share))["instance"]
                found[kind] = {prompt: mean for prompt, mean in means.items() if mean is not None}
        return found

    def _rows(self, sam: OriginalSam, share: Share) -> list[Row]:
        """One for each object of all processes, in the order that one process alone would give."""
        mine = _together(lambda: measure_masks(sam, share.images, share.instances, HOW).rows, self.processes)
        parts = self.processes.gathered(mine)
        return sorted((row for rows in parts for row in rows), key=lambda row: row.image_id)


def usual_keep_ratio(sam: OriginalSam) -> float:
    """The keep ratio that `sam` was built with; 1 for a dense one, or one that is not ours."""
    return sam.config.keep_ratio if isinstance(sam, Sam) and sam.config.routed else 1.0


def _share(read: Callable[[], tuple[list[Measurable], list[Instance]]], what: str, processes: Processes) -> Share:
    """What `read` gives in this process, checked, and how much there is in all of `processes`."""

    images, instances = _together(read, processes)
    counts = processes.gathered((len({instance.image_id for instance in instances}), len(instances)))
    photographs, objects = (sum(column) for column in zip(*counts, strict=True))
    if not objects:
        raise ValueError(f"{what}: no object with a pixel on it to validate with; name other photographs, or more")
    return Share(images, instances, photographs=photographs, objects=objects)


def _of_source(source: Source, config: FinetuneConfig, processes: Processes) -> tuple[list[Measurable], list[Instance]]:
    """This process's photographs of `source`, and their objects."""
    ids = source.image_ids.tolist()
    index_of = {image_id: index for index, image_id in enumerate(ids)}
    images: list[Measurable] = []
    instances: list[Instance] = []
    for image_id in _drawn(ids, config)[processes.rank :: processes.count]:
        try:
            annotated = source.read(index_of[image_id])
        except ValueError as error:
            raise ValueError(f"to validate with: {error}; leave the photograph out with exclude") from error
        height, width = annotated.pixels.shape[:2]
        image = SourcePhotograph(image_id, height, width, source, index_of[image_id])
        images.append(image)
        instances += _some(annotated.instances, image, config)
    return images, instances


def _of_annotations(
    path: Path, root: Path, config: FinetuneConfig, processes: Processes
) -> tuple[list[Measurable], list[Instance]]:
    """This process's photographs under `root` of the annotations in `path`, and their objects."""
    dataset = read_instances(path)
    objects = by_image(instance for instance in dataset.instances if not instance.crowd)

    def has_object(image_id: int) -> bool:
        record = dataset.records[image_id]
        return any(instance.pixels(record.height, record.width) for instance in objects[image_id])

    mine = _drawn(list(objects), config, has_object)[processes.rank :: processes.count]
    images = find_images([dataset.records[image_id] for image_id in mine], root)
    for image in images:
        image.pixels()
    return list(images), [one for image in images for one in _some(objects[image.image_id], image, config)]


def _drawn(image_ids: Sequence[int], config: FinetuneConfig, serves: Callable[[int], bool] | None = None) -> list[int]:
    """At most `val_limit` of the `image_ids` that serve, all by default; ascending, whatever their order."""
    rng = np.random.default_rng([config.data.seed, PHOTOGRAPHS_DRAWN])
    shuffled = rng.permutation(sorted(image_ids)).tolist()
    return sorted(islice(filter(serves, shuffled) if serves else shuffled, config.validation.val_limit))


def _some(instances: Sequence[Instance], image: Measurable, config: FinetuneConfig) -> list[Instance]:
    """At most 16 of the `instances` of `image` that have a pixel, in their order. ValueError, one line, where one
    cannot be drawn or has a box outside of `image`."""
    height, width = image.height, image.width
    rng = np.random.default_rng([config.data.seed, image.image_id, OBJECTS_DRAWN])
    shuffled = rng.permutation(len(instances)).tolist()
    places = islice((place for place in shuffled if instances[place].pixels(height, width)), OBJECTS)
    chosen = [instances[place] for place in sorted(places)]
    for instance in chosen:
        check_box(instance, height, width)
    return chosen


def _together(work: Callable[[], Made], processes: Processes) -> Made:
    """What `work` gives here; a ValueError that it raises in one of `processes` is raised in all, as nobody should wait
    for one that has ended."""
    made, problem = None, None
    try:
        made = work()
    except ValueError as error:
        problem = error
    problems = [told for told in processes.gathered(None if problem is None else str(problem)) if told is not None]
    if problems:
        raise ValueError(problems[0]) from problem
    return cast(Made, made)
