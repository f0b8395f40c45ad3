"""Zero-shot instance segmentation: a detector's boxes prompt SAM, COCO's or LVIS's own code judges the masks.

By default a box is asked once, for its single mask, and keeps the detector's score: what reproduces the published
46.1 AP of SAM's ViT-H.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from segment_anything.modeling import Sam as OriginalSam

from sam_blvit.config import EvaluationConfig
from sam_blvit.data.instances import Dataset, ImageFile, find_images, read_instances
from sam_blvit.data.prompts import corners
from sam_blvit.evaluate.metrics.detection import Detection, ground_truth_boxes, read_detections, result_entry
from sam_blvit.evaluate.metrics.judges import JUDGES, category_ids, check_annotations
from sam_blvit.evaluate.metrics.summary import markdown
from sam_blvit.evaluate.metrics.truths import check_truths
from sam_blvit.evaluate.photographs import photographs
from sam_blvit.evaluate.protocol.subset import in_subset
from sam_blvit.evaluate.protocol.view import Answer, Prompt, View
from sam_blvit.evaluate.provenance import file_identity
from sam_blvit.system.files import write_atomically

RESULTS = "results.json"
SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


@dataclass(frozen=True, kw_only=True)
class ApWork:
    """One AP measurement."""

    config: EvaluationConfig
    dataset: Dataset
    judge: str
    """coco or lvis."""
    images: list[ImageFile]
    """Those with boxes."""
    judged: Collection[int]
    """Ids of all images that count, with boxes or without."""
    detections: Mapping[int, Sequence[Detection]]
    """By image id."""
    left_out: int
    """Detections on photographs outside the subset."""

    @property
    def annotations(self) -> dict[str, str]:
        """Name and hash of the annotation file."""
        return self.dataset.identity

    @property
    def select(self) -> str:
        """The mask that counts."""
        return self.config.select or "single"

    @property
    def about(self) -> dict[str, Any]:
        """What this measures, beside the model."""
        boxes = self.config.boxes if self.config.detections is None else file_identity(self.config.detections)
        return {
            "task": "ap",
            "judge": self.judge,
            "boxes": boxes,
            "select": self.select,
            "refine": self.config.refine,
            "subset": self.config.subset or "full",
            "perturbation": "clean",
        }

    def by_image(self, sam: OriginalSam, images: Sequence[ImageFile]) -> Iterator[tuple[int, Any]]:
        """Image ids and their results in COCO's format."""
        for photograph in photographs(images, {}, side=sam.image_encoder.img_size):
            view = View.of(sam, photograph.resized, photograph.size)
            there = self.detections[photograph.image.image_id]
            results = []
            for start in range(0, len(there), self.config.prompts_per_batch):
                asked = there[start : start + self.config.prompts_per_batch]
                masks = ask_refined(view, asked, select=self.select, refine=self.config.refine).masks
                results += [result_entry(detection, mask) for detection, mask in zip(asked, masks, strict=True)]
            yield photograph.image.image_id, results

    def finish(self, records: Sequence[Any], directory: Path) -> dict[str, Any]:
        """Write results.json to `directory` and have it judged."""
        results = [entry for record in records for entry in record]
        write_atomically(directory / RESULTS, lambda to: Path(to).write_text(json.dumps(results)))
        return {
            "ap": JUDGES[self.judge](self.dataset, results, image_ids=self.judged),
            "counts": {"images": len(self.judged), "detections": len(results), "left_out": self.left_out},
        }

    def show(self, summaries: Sequence[Mapping[str, Any]]) -> str:
        """The table on the screen."""
        names = [name for name in SHOWN if name in summaries[0]["ap"]]
        lines = []
        for summary in summaries:
            values = (summary["ap"][name] for name in names)
            keep_ratio = "" if summary["keep_ratio"] is None else f"{summary['keep_ratio']:g}"
            asked = [summary["model"], keep_ratio, summary["judge"], summary["select"], str(summary["refine"])]
            lines.append([*asked, *("" if value is None else f"{value:.1f}" for value in values)])
        counts = summaries[0]["counts"]
        note = (
            f"{counts['detections']} boxes on {counts['images']} images; {counts['left_out']} outside the subset left "
            f"out; masks in {RESULTS}"
        )
        return f"{markdown(['model', 'keep ratio', 'judge', 'select', 'refine', *names], lines)}\n{note}"


def ask_refined(view: View, detections: Sequence[Detection], *, select: str, refine: int) -> Answer:
    """The mask of each box; before that, `refine` times, the box again with the logits of the most confident mask."""
    boxes = np.array([corners(detection.box) for detection in detections])
    prompt = Prompt(boxes=boxes)
    for _ in range(refine):
        prompt = Prompt(boxes=boxes, logits=view.answer(prompt, "argmax").logits)
    return view.answer(prompt, select)


def ap_work(config: EvaluationConfig, judge: str) -> ApWork:
    """What `config` asks to be measured; all is read and checked. ValueError, one line."""
    dataset = read_instances(config.annotations)
    chosen = in_subset(dataset.records, config.subset or "full", config.annotations)
    check_annotations(dataset, chosen, judge)
    check_truths(dataset.instances, dataset.records)
    if config.detections is None:
        found = ground_truth_boxes(dataset.instances)
    else:
        found = read_detections(config.detections, images=dataset.records, categories=category_ids(dataset))
    of_image: dict[int, list[Detection]] = defaultdict(list)
    for detection in found:
        if detection.image_id in chosen:
            of_image[detection.image_id].append(detection)
    if not of_image:
        raise ValueError(
            f"none of {len(found)} boxes is on a photograph of subset={config.subset or 'full'}; take subset=full"
            if found
            else f"annotations {dataset.path}: all {len(dataset.instances)} are crowds, whose boxes are no objects'"
        )
    return ApWork(
        config=config,
        dataset=dataset,
        judge=judge,
        images=find_images([record for image_id, record in chosen.items() if image_id in of_image], config.images),
        judged=list(chosen),
        detections=dict(of_image),
        left_out=len(found) - sum(map(len, of_image.values())),
    )
