"""Point and box mIoU: what SAM answers about each object against the annotated mask.

IoU is exact: pixels counted at the photograph's own resolution. Neither the order of the annotations, nor the number
of processes, nor (but for near ties of rounding) the size of a batch changes a number.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from segment_anything.modeling import Sam as OriginalSam

from sam_blvit.data.instances import Instance
from sam_blvit.evaluate.metrics.overlap import boundary_iou, iou
from sam_blvit.evaluate.metrics.summary import Row
from sam_blvit.evaluate.photographs import Measurable, Photograph, Truth, by_image, photographs
from sam_blvit.evaluate.protocol.clicks import Asked, Examiner
from sam_blvit.evaluate.protocol.perturb import CLEAN, Perturbation
from sam_blvit.evaluate.protocol.protocols import Protocol
from sam_blvit.evaluate.protocol.view import View
from sam_blvit.evaluate.report.worst import WORST, BadAnswer, bad_answer


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Every object of a photograph, or of many."""

    rows: list[Row] = field(default_factory=list)
    """One an object and seed."""
    skipped_empty: list[int] = field(default_factory=list)
    """Ids of annotations without a single pixel, by themselves or since a shift moved them out."""
    worst: list[BadAnswer] = field(default_factory=list)
    """The lowest IoUs from a box, and perhaps others that were the lowest when they were met."""
    primary: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By router's layer: primary tokens that stayed so under the perturbation, and primary tokens."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; floats come back exactly."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_json`."""
        return cls(
            rows=[Row(**row) for row in record["rows"]],
            skipped_empty=record["skipped_empty"],
            worst=[BadAnswer(**answer) for answer in record["worst"]],
            primary={layer: (kept, of) for layer, (kept, of) in record["primary"].items()},
        )

    @classmethod
    def joined(cls, parts: Iterable[Measurement]) -> Measurement:
        """All of `parts` as one, in their order."""
        whole = cls()
        for part in parts:
            whole.rows.extend(part.rows)
            whole.skipped_empty.extend(part.skipped_empty)
            whole.worst.extend(part.worst)
            for layer, (kept, of) in part.primary.items():
                kept_so_far, of_so_far = whole.primary.get(layer, (0, 0))
                whole.primary[layer] = (kept_so_far + kept, of_so_far + of)
        return whole


@dataclass(frozen=True, kw_only=True)
class MaskMeasure:
    """How masks are measured."""

    protocol: Protocol
    seeds: tuple[int, ...] = (0,)
    prompts_per_batch: int = 64
    oracle: bool = False
    """Whether the best of the decoder's three masks is scored too."""
    perturbation: Perturbation = CLEAN
    boundary: bool = True
    """Whether Boundary IoU is measured; NaN where not, which saves some 30 ms an answer for a large object of SA-1B."""

    def by_image(
        self, sam: OriginalSam, images: Sequence[Measurable], instances: Mapping[int, Sequence[Instance]]
    ) -> Iterator[tuple[int, Measurement]]:
        """Image ids and what `sam`, as it is and where it is, does on the `instances` of each of `images`."""
        lowest = LowestSoFar(WORST)
        side = sam.image_encoder.img_size
        for photograph in photographs(images, instances, side=side, perturbation=self.perturbation):
            measured = Measurement(skipped_empty=photograph.skipped_empty)
            if photograph.truths:
                view = View.of(sam, photograph.resized, photograph.size, with_routings=self.perturbation is not CLEAN)
                measured.primary.update(self._primary(view, photograph))
                examiner = Examiner(view, self.protocol, self.oracle)
                for start in range(0, len(photograph.truths), self.prompts_per_batch):
                    self._measure(examiner, photograph.truths[start : start + self.prompts_per_batch], measured, lowest)
            yield photograph.image.image_id, measured

    def _measure(self, examiner: Examiner, truths: Sequence[Truth], measured: Measurement, lowest: LowestSoFar) -> None:
        """Add to `measured` what is asked about `truths` at once."""
        boxes = examiner.boxes(truths)
        box_scores = self._scores("box", boxes, truths)
        for seed in self.seeds:
            one, three = examiner.points(truths, seed=seed)
            columns = {**box_scores, **self._scores("1pt", one, truths), **self._scores("3pt", three, truths)}
            measured.rows.extend(_row(truth, seed, columns, index) for index, truth in enumerate(truths))
        for index, truth in enumerate(truths):
            if lowest.admits((box_scores["iou_box"][index], truth.instance.ann_id)):
                measured.worst.append(
                    bad_answer(
                        truth.instance,
                        boxes.answer.masks[index],
                        iou_box=box_scores["iou_box"][index],
                        piou_box=box_scores["piou_box"][index],
                    )
                )

    def _scores(self, prompt: str, asked: Asked, truths: Sequence[Truth]) -> dict[str, Sequence[float]]:
        """Columns of a prompt's results, one value an object, percent."""
        answer = asked.answer
        pairs: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = [
            (mask, truth.mask) for mask, truth in zip(answer.masks, truths, strict=True)
        ]
        columns: dict[str, Sequence[float]] = {
            f"iou_{prompt}": [iou(mask, truth) for mask, truth in pairs],
            f"piou_{prompt}": answer.predicted.tolist(),
            f"biou_{prompt}": [boundary_iou(mask, truth) if self.boundary else math.nan for mask, truth in pairs],
        }
        if asked.oracle is not None:
            columns[f"iou_{prompt}_oracle"] = asked.oracle.tolist()
        return columns

    def _primary(self, view: View, photograph: Photograph) -> dict[str, tuple[int, int]]:
        """What the perturbation left of the primary tokens, by router's layer; takes a second embedding."""
        if not view.routings:
            return {}
        before = View.of(view.sam, photograph.unperturbed, photograph.size, with_routings=True).routings
        return {
            str(layer): (int((before[layer].primary * after.primary).sum()), int(before[layer].primary.sum()))
            for layer, after in view.routings.items()
        }


def measure_masks(
    sam: OriginalSam, images: Sequence[Measurable], instances: Iterable[Instance], how: MaskMeasure
) -> Measurement:
    """Measure `sam`, as it is and where it is, on `instances` of `images`; each photograph is encoded once,
    under a perturbation twice to compare primary tokens.

    A trainer is handed a `sam_blvit.evaluate.in_training.validation.Validation`, which calls this.
    """
    groups = by_image(instances)
    if homeless := set(groups) - {image.image_id for image in images}:
        raise ValueError(f"instances of {len(homeless)} images that are not among `images`, first {min(homeless)}")
    annotated = [image for image in images if image.image_id in groups]
    return Measurement.joined(measured for _, measured in how.by_image(sam, annotated, groups))


class LowestSoFar:
    """Whether a value is among the lowest that were met: what is lowest of all always was when it came."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lowest: list[tuple[float, int]] = []

    def admits(self, value: tuple[float, int]) -> bool:
        """Whether `value`, now met, is among the lowest so far."""
        bisect.insort(self._lowest, value)
        if len(self._lowest) <= self._most:
            return True
        return self._lowest.pop() != value


def _row(truth: Truth, seed: int, columns: Mapping[str, Sequence[float]], index: int) -> Row:
    instance = truth.instance
    return Row(
        seed=seed,
        ann_id=instance.ann_id,
        image_id=instance.image_id,
        category_id=instance.category_id,
        area=instance.area,
        npix=int(truth.mask.sum()),
        **{name: values[index] for name, values in columns.items()},
    )
