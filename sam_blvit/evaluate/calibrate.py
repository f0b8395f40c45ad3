"""Which protocol did the paper use? Vanilla SAMs are measured in every way there is, against the paper's six numbers.

The nearest way is frozen as a protocol of its own, blvit-cal, that `--protocol blvit-cal.json` takes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from segment_anything.modeling import Sam as OriginalSam

from sam_blvit.config import CalibrationConfig, EvaluationConfig
from sam_blvit.data.instances import ImageFile, Instance, find_images, read_instances
from sam_blvit.evaluate.metrics.overlap import iou
from sam_blvit.evaluate.metrics.summary import PROMPTS, markdown
from sam_blvit.evaluate.metrics.truths import check_truths
from sam_blvit.evaluate.photographs import Truth, by_image, photographs
from sam_blvit.evaluate.protocol.clicks import Asked, Examiner
from sam_blvit.evaluate.protocol.protocols import CHOICES, PROTOCOLS, Protocol
from sam_blvit.evaluate.protocol.subset import MINIVAL_SPLIT
from sam_blvit.evaluate.protocol.view import View
from sam_blvit.evaluate.run import run_works
from sam_blvit.evaluate.shards import writable
from sam_blvit.system.distributed import joined_processes
from sam_blvit.system.files import check_inputs_stay, write_json

PAPER = {
    "vit_b": {"box": 76.6, "1pt": 53.6, "3pt": 65.2},
    "vit_h": {"box": 80.4, "1pt": 59.4, "3pt": 70.7},
}
"""mIoU on LVIS of vanilla SAMs (big.LITTLE ViT, table 2)."""
FROZEN = "blvit-cal"
OUTPUTS = (f"{FROZEN}.json", "calibration.json")
SHOWN = 10
"""Rows of the table on the screen; calibration.json has all."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to measure, and how far it leaves vanilla SAMs from the paper's numbers."""

    protocol: Protocol
    miou: dict[str, dict[str, float]]
    """Percent, by model and prompt."""

    @property
    def distance(self) -> float:
        """Root mean square of the six differences, points of mIoU."""
        return math.sqrt(np.mean([(self.miou[m][p] - PAPER[m][p]) ** 2 for m in PAPER for p in PROMPTS]))


def calibrate(config: CalibrationConfig) -> list[Candidate]:
    """Measure both vanilla SAMs in every way and write calibration.json and blvit-cal.json; the nearest way first.

    Each photograph is embedded once a model. Runs under torchrun too; processes but the first return nothing.
    ValueError, one line, if anything is amiss.
    """
    check_inputs_stay((config.output / name for name in OUTPUTS), [config.annotations, config.vit_b, config.vit_h])
    work = _work(config)
    with joined_processes() as processes:
        summaries = [
            summary
            for name, checkpoint in (("vit_b", config.vit_b), ("vit_h", config.vit_h))
            for summary in run_works(_evaluation(config, name, checkpoint), [work], processes)
        ]
    if not summaries:
        return []
    ranked = sorted(_candidates(summaries), key=lambda candidate: candidate.distance)
    _write(config.output, ranked)
    print(_table(ranked[:SHOWN]))
    print(f"nearest of {len(ranked)} ways frozen as {config.output / FROZEN}.json")
    return ranked


@dataclass(frozen=True, kw_only=True)
class CalibrationWork:
    """Every object asked in every way."""

    annotations: dict[str, str]
    """Name and hash of the annotation file."""
    images: list[ImageFile]
    instances: list[Instance]
    splits: Mapping[int, str]
    """Split of each photograph, by image id."""
    seed: int
    prompts_per_batch: int

    @property
    def about(self) -> dict[str, Any]:
        """What this measures, beside the model."""
        return {"task": "calibration", "prompt_seeds": [self.seed], "perturbation": "clean"}

    def by_image(self, sam: OriginalSam, images: Sequence[ImageFile]) -> Iterator[tuple[int, Any]]:
        """Image ids and, by way of asking and prompt, the IoU of each object."""
        for photograph in photographs(images, by_image(self.instances), side=sam.image_encoder.img_size):
            record: dict[str, Any] = {"category_id": [t.instance.category_id for t in photograph.truths], "iou": {}}
            if photograph.truths:
                view = View.of(sam, photograph.resized, photograph.size)
                for start in range(0, len(photograph.truths), self.prompts_per_batch):
                    for way, ious in self._asked(view, photograph.truths[start : start + self.prompts_per_batch]):
                        record["iou"].setdefault(way, []).extend(ious)
            yield photograph.image.image_id, record

    def finish(self, records: Sequence[Any], directory: Path) -> dict[str, Any]:
        """Means by subset, way of asking and kind of mean."""
        of_image = [(image.image_id, record) for image, record in zip(self.images, records, strict=True)]
        asked = [(self.splits[image_id], record) for image_id, record in of_image if record["category_id"]]
        if not asked:
            raise ValueError(f"annotations: none of {len(self.instances)} masks has a pixel")
        subsets = {
            "full": [record for _, record in asked],
            "minival": [record for split, record in asked if split == MINIVAL_SPLIT],
        }
        return {"means": {subset: _means(there) for subset, there in subsets.items() if there}}

    def _asked(self, view: View, truths: Sequence[Truth]) -> Iterator[tuple[str, list[float]]]:
        """Each way of asking: boxes whatever the protocol, points whatever the box."""
        for select in CHOICES["select"]:
            for source in CHOICES["box_source"]:
                protocol = dataclasses.replace(PROTOCOLS["blvit"], select=select, box_source=source)
                yield box_way(protocol), _ious(Examiner(view, protocol).boxes(truths), truths)
            for protocol in PROTOCOLS.values():
                examiner = Examiner(view, dataclasses.replace(protocol, select=select))
                for prompt, asked in zip(("1pt", "3pt"), examiner.points(truths, seed=self.seed), strict=True):
                    yield point_way(examiner.protocol, prompt), _ious(asked, truths)


def box_way(protocol: Protocol) -> str:
    """What of `protocol` decides the answer to a box."""
    return f"box {protocol.select} {protocol.box_source}"


def point_way(protocol: Protocol, prompt: str) -> str:
    """What of `protocol` decides the answer to points."""
    return f"{prompt} {protocol.first} {protocol.later} {protocol.select}"


def _ious(asked: Asked, truths: Sequence[Truth]) -> list[float]:
    return [iou(mask, truth.mask) for mask, truth in zip(asked.answer.masks, truths, strict=True)]


def _work(config: CalibrationConfig) -> CalibrationWork:
    dataset = read_instances(config.annotations)
    instances = [instance for instance in dataset.instances if not instance.crowd]
    if not instances:
        raise ValueError(
            f"annotations {config.annotations}: all {len(dataset.instances)} are crowds, there is nothing to measure"
        )
    check_truths(instances, dataset.records)
    wanted = {instance.image_id for instance in instances}
    return CalibrationWork(
        annotations=dataset.identity,
        images=find_images([record for record in dataset.records.values() if record.image_id in wanted], config.images),
        instances=instances,
        splits={image_id: record.split for image_id, record in dataset.records.items()},
        seed=config.seed,
        prompts_per_batch=config.prompts_per_batch,
    )


def _evaluation(config: CalibrationConfig, name: str, checkpoint: Path) -> EvaluationConfig:
    """The run of one model: SAM's own file goes by the registry, one of ours says itself what it is."""
    ours = checkpoint.suffix == ".safetensors"
    return EvaluationConfig(
        model=str(checkpoint) if ours else name,
        checkpoint=None if ours else checkpoint,
        annotations=config.annotations,
        images=config.images,
        output=config.output / name,
        prompts_per_batch=config.prompts_per_batch,
        device=config.device,
        resume=config.resume,
    )


def _candidates(summaries: Sequence[Mapping[str, Any]]) -> Iterator[Candidate]:
    """Every protocol, select, box source, average and subset, with both models' numbers."""
    means = {model: summary["means"] for model, summary in zip(PAPER, summaries, strict=True)}
    subsets = list(summaries[0]["means"])
    for base, select, source, average, subset in itertools.product(
        PROTOCOLS.values(), CHOICES["select"], CHOICES["box_source"], CHOICES["average"], subsets
    ):
        protocol = dataclasses.replace(base, select=select, box_source=source, average=average, subset=subset)
        ways = {"box": box_way(protocol), **{prompt: point_way(protocol, prompt) for prompt in ("1pt", "3pt")}}
        miou = {model: {p: means[model][subset][ways[p]][average] for p in PROMPTS} for model in PAPER}
        yield Candidate(protocol=protocol, miou=miou)


def _means(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over instances, images and categories of each way of asking, percent."""
    means = {}
    for way in records[0]["iou"]:
        by_category: dict[int, list[float]] = defaultdict(list)
        for record in records:
            for category_id, value in zip(record["category_id"], record["iou"][way], strict=True):
                by_category[category_id].append(value)
        means[way] = {
            "instance": float(np.mean([value for record in records for value in record["iou"][way]])),
            "image": float(np.mean([np.mean(record["iou"][way]) for record in records])),
            "category": float(np.mean([np.mean(values) for values in by_category.values()])),
        }
    return means


def _write(output: Path, ranked: Sequence[Candidate]) -> None:
    frozen = dataclasses.asdict(dataclasses.replace(ranked[0].protocol, name=FROZEN))
    rows = [{**dataclasses.asdict(candidate), "distance": candidate.distance} for candidate in ranked]
    for name, content in zip(OUTPUTS, (frozen, {"paper": PAPER, "candidates": rows}), strict=True):
        with writable(output / name):
            write_json(output / name, content)


def _table(ranked: Sequence[Candidate]) -> str:
    head = ["protocol", "select", "box source", "average", "subset", *(f"{m} {p}" for m in PAPER for p in PROMPTS)]
    lines = [["the paper", "", "", "", "", *(f"{PAPER[m][p]:.1f}" for m in PAPER for p in PROMPTS), ""]]
    for candidate in ranked:
        way = candidate.protocol
        numbers = [f"{candidate.miou[m][p]:.1f}" for m in PAPER for p in PROMPTS]
        named = [way.name, way.select, way.box_source, way.average, way.subset]
        lines.append([*named, *numbers, f"{candidate.distance:.2f}"])
    return markdown([*head, "distance"], lines)
