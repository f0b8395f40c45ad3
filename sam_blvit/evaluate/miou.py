"""Point and box mIoU of a dataset: what is measured, and what is written of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segment_anything.modeling import Sam as OriginalSam

from sam_blvit.config import EvaluationConfig
from sam_blvit.data.instances import ImageFile, Instance, find_images, read_instances
from sam_blvit.evaluate.masks import MaskMeasure, Measurement
from sam_blvit.evaluate.metrics.summary import import_parquet, miou_table, summarised, write_rows
from sam_blvit.evaluate.metrics.truths import check_truths
from sam_blvit.evaluate.photographs import by_image
from sam_blvit.evaluate.protocol.perturb import Perturbation, perturbations_named
from sam_blvit.evaluate.protocol.protocols import protocol_named
from sam_blvit.evaluate.protocol.subset import in_subset
from sam_blvit.evaluate.report.worst import write_worst
from sam_blvit.system.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class MiouWork:
    """One mIoU measurement of a dataset, under one perturbation."""

    annotations: dict[str, str]
    """Name and hash of the annotation file."""
    images: list[ImageFile]
    instances: list[Instance]
    crowd_excluded: int
    include_crowd: bool
    how: MaskMeasure
    table: str
    """Format of the table of instances."""

    @property
    def about(self) -> dict[str, Any]:
        """What this measures, beside the model."""
        protocol = self.how.protocol
        return {
            "task": "miou",
            "protocol": {**dataclasses.asdict(protocol), "overridden": list(protocol.overridden)},
            "protocol_label": protocol.label,
            "subset": protocol.subset,
            "prompt_seeds": list(self.how.seeds),
            "oracle_scored": self.how.oracle,
            "include_crowd": self.include_crowd,
            "perturbation": self.how.perturbation.name,
            "table": self.table,
        }

    def by_image(self, sam: OriginalSam, images: Sequence[ImageFile]) -> Iterator[tuple[int, Any]]:
        """Image ids and their records, plain JSON values."""
        for image_id, measured in self.how.by_image(sam, images, by_image(self.instances)):
            yield image_id, measured.to_json()

    def finish(self, records: Sequence[Any], directory: Path) -> dict[str, Any]:
        """Write the table of instances and the worst pictures to `directory`; the summary's part of this work."""
        measured = Measurement.joined(map(Measurement.from_json, records))
        self._check_complete(measured)
        name = f"instances.{self.table}"
        write_atomically(directory / name, lambda to: write_rows(measured.rows, to, self.table))
        write_worst(
            directory,
            measured.worst,
            images={image.image_id: image for image in self.images},
            instances=by_image(self.instances),
            perturbation=self.how.perturbation,
        )
        return {
            **summarised(measured.rows, self.how.protocol.average),
            "counts": self._counts(measured),
            "skipped_empty_ids": measured.skipped_empty,
            "primary_kept": _shares(measured.primary),
        }

    def show(self, summaries: Sequence[dict[str, Any]]) -> str:
        """The table on the screen."""
        counts = summaries[0]["counts"]
        note = (
            f"{counts['images']} images; {counts['crowd_excluded']} crowd annotations left out, "
            f"{counts['skipped_empty']} without a pixel skipped"
        )
        return f"{miou_table(summaries)}\n{note}"

    def _check_complete(self, measured: Measurement) -> None:
        """Every object is there once for each seed, or named as empty."""
        if not measured.rows:
            raise ValueError(f"annotations: none of {len(self.instances)} masks has a pixel")
        keys = [(row.seed, row.ann_id) for row in measured.rows]
        expected = (len(self.instances) - len(measured.skipped_empty)) * len(self.how.seeds)
        assert len(set(keys)) == len(keys) == expected, "an object is missing or there twice"

    def _counts(self, measured: Measurement) -> dict[str, int]:
        crowds = {instance.ann_id for instance in self.instances if instance.crowd}
        used = {row.ann_id for row in measured.rows}
        return {
            "images": len({row.image_id for row in measured.rows}),
            "instances": len(used),
            "skipped_empty": len(measured.skipped_empty),
            "crowd_used": len(used & crowds),
            "crowd_excluded": self.crowd_excluded,
        }


def miou_works(config: EvaluationConfig) -> list[MiouWork]:
    """What `config` asks to be measured, one work a perturbation; all is read and checked. ValueError, one line."""
    protocol = protocol_named(
        config.protocol,
        select=config.select,
        box_source=config.box_source,
        feed_mask=config.feed_mask or None,
        subset=config.subset,
    )
    perturbations: list[Perturbation] = perturbations_named(config.perturb)
    if config.table == "parquet":
        import_parquet()
    dataset = read_instances(config.annotations)
    records = in_subset(dataset.records, protocol.subset, config.annotations)
    annotated = [instance for instance in dataset.instances if instance.image_id in records]
    instances = [instance for instance in annotated if config.include_crowd or not instance.crowd]
    if not instances:
        raise ValueError(
            f"annotations {config.annotations}: all {len(annotated)} are crowds; add --include-crowd to measure them"
        )
    check_truths(instances, records)
    wanted = {instance.image_id for instance in instances}
    images = find_images([record for record in records.values() if record.image_id in wanted], config.images)
    return [
        MiouWork(
            annotations=dataset.identity,
            images=images,
            instances=instances,
            crowd_excluded=len(annotated) - len(instances),
            include_crowd=config.include_crowd,
            how=MaskMeasure(
                protocol=protocol,
                seeds=config.seeds,
                prompts_per_batch=config.prompts_per_batch,
                oracle=config.oracle,
                perturbation=perturbation,
            ),
            table=config.table,
        )
        for perturbation in perturbations
    ]


def _shares(primary: dict[str, tuple[int, int]]) -> dict[str, float] | None:
    """Percent of the primary tokens that stayed primary, by router's layer and for all."""
    if not primary:
        return None
    shares = {layer: 100 * kept / of for layer, (kept, of) in primary.items()}
    kept, of = (sum(counts) for counts in zip(*primary.values(), strict=True))
    return {**shares, "mean": 100 * kept / of}
