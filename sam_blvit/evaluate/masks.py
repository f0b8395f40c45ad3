"""Point and box mIoU: one prompt an object, the mask that comes back against the annotated one.

IoU is exact: pixels counted at the photograph's own resolution. Neither the order of the annotations nor the size of
a batch changes a number.

Shapes:
    P  prompts of a batch    h, w  the photograph after resizing    H, W  the photograph    G  tokens along a side
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from tqdm import tqdm

from sam_blvit.checkpoint import SHIPPED_WEIGHTS, file_sha256, load_model, write_atomically
from sam_blvit.config import LvisConfig
from sam_blvit.data.images import read_image
from sam_blvit.data.instances import ImageFile, Instance, find_images, read_instances
from sam_blvit.data.prompts import DRAW, corners
from sam_blvit.evaluate.protocols import Protocol, protocol_named
from sam_blvit.evaluate.summary import Row, mean_ious, summary_table, write_csv
from sam_blvit.model.sam import Sam


@dataclass(frozen=True)
class Measurement:
    """Every object measured, and those that could not be."""

    rows: list[Row]
    skipped_empty: list[int]
    """Ids of annotations without a single pixel."""


def evaluate_lvis(config: LvisConfig) -> dict[str, Any]:
    """Measure `config`'s model on its annotations; write summary.json and instances.csv and return the summary.

    Annotations and photographs are checked before the model loads. ValueError, one line, if anything is amiss.
    """
    protocol = protocol_named(config.protocol)
    records, annotated = read_instances(config.annotations)
    instances = [instance for instance in annotated if config.include_crowd or not instance.crowd]
    if not instances:
        raise ValueError(
            f"annotations {config.annotations}: all {len(annotated)} are crowds; add --include-crowd to measure them"
        )
    images = find_images([records[i] for i in dict.fromkeys(a.image_id for a in instances)], config.images)
    config.output.mkdir(parents=True, exist_ok=True)
    sam = load_model(config)
    start = time.perf_counter()
    measured = measure_masks(
        sam, images, instances, protocol=protocol, seed=config.seed, prompts_per_batch=config.prompts_per_batch
    )
    if not measured.rows:
        raise ValueError(f"annotations {config.annotations}: none of {len(instances)} masks has a pixel")
    summary = {
        "miou": mean_ious(measured.rows),
        "counts": _counts(measured, annotated, instances),
        "skipped_empty_ids": measured.skipped_empty,
        **_provenance(config, protocol, sam),
        "wall_seconds": round(time.perf_counter() - start, 2),
    }
    write_atomically(
        config.output / "summary.json", lambda to: Path(to).write_text(json.dumps(summary, indent=2) + "\n")
    )
    write_atomically(config.output / "instances.csv", lambda to: write_csv(measured.rows, to))
    print(summary_table(summary))
    return summary


@torch.no_grad()
def measure_masks(
    sam: Sam,
    images: Sequence[ImageFile],
    instances: Iterable[Instance],
    *,
    protocol: Protocol,
    seed: int,
    prompts_per_batch: int,
) -> Measurement:
    """Measure `sam`, as it is and where it is, on `instances` of `images`; each photograph is encoded once.

    For a trainer: `lambda sam: mean_ious(measure_masks(sam, images, instances, ...).rows)`.
    """
    of_image: dict[int, list[Instance]] = defaultdict(list)
    for instance in instances:
        of_image[instance.image_id].append(instance)
    homeless = set(of_image) - {image.image_id for image in images}
    if homeless:
        raise ValueError(f"instances of {len(homeless)} images that are not among `images`, first {min(homeless)}")
    measured = Measurement([], [])
    annotated = [image for image in images if image.image_id in of_image]
    for image in tqdm(annotated, desc=protocol.name, unit="image", disable=None):
        view, there = _encoded(sam, image), of_image[image.image_id]
        for start in range(0, len(there), prompts_per_batch):
            truths = [(a, a.mask(image.height, image.width)) for a in there[start : start + prompts_per_batch]]
            measured.skipped_empty.extend(a.ann_id for a, mask in truths if not mask.any())
            truths = [(a, mask) for a, mask in truths if mask.any()]
            if truths:
                measured.rows.extend(_rows(view, truths, protocol=protocol, seed=seed))
    return measured


def highest_predicted(predicted: Tensor) -> Tensor:
    """Index (P,) of the mask that the decoder itself rates best by `predicted` IoU (P, 3)."""
    return predicted.argmax(dim=1)


SELECT: Mapping[str, Callable[[Tensor], Tensor]] = {"argmax": highest_predicted}
"""Ways to select a mask, by the name a protocol calls them."""


@dataclass(frozen=True)
class _View:
    """A photograph as the decoder sees it."""

    sam: Sam
    embedding: Tensor
    original: tuple[int, int]
    resized: tuple[int, int]
    resize: ResizeLongestSide

    def masks(self, prompt: dict[str, Any], select: str) -> tuple[Tensor, Tensor]:
        """The scored mask (P, H, W) and its predicted IoU (P,) for each prompt."""
        logits, predicted = self.sam.decode(self.embedding, **prompt, multimask_output=True)
        chosen = torch.arange(len(predicted), device=predicted.device), SELECT[select](predicted)
        full = self.sam.postprocess_masks(logits[chosen][:, None], self.resized, self.original)
        return full[:, 0] > self.sam.mask_threshold, predicted[chosen]

    def points(self, points: np.ndarray) -> dict[str, Any]:
        """Points on the object (P, n, 2), pixels of the photograph, as a prompt."""
        coordinates = self._tensor(self.resize.apply_coords(points, self.original))
        return {"points": (coordinates, torch.ones(coordinates.shape[:2], device=coordinates.device))}

    def boxes(self, boxes: np.ndarray) -> dict[str, Any]:
        """Boxes (P, 4), pixels of the photograph, as a prompt."""
        return {"boxes": self._tensor(self.resize.apply_boxes(boxes, self.original))}

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=self.sam.device)


def _encoded(sam: Sam, image: ImageFile) -> _View:
    pixels = read_image(image.path)
    if pixels.shape[:2] != (image.height, image.width):
        raise ValueError(
            f"image {image.path} is {pixels.shape[1]} x {pixels.shape[0]} pixels, its annotations are for "
            f"{image.width} x {image.height}; use the dataset's original files"
        )
    resize = ResizeLongestSide(sam.image_encoder.img_size)
    resized = resize.apply_image(pixels)
    tensor = torch.as_tensor(resized, device=sam.device).permute(2, 0, 1)[None]
    return _View(
        sam=sam,
        embedding=sam.image_encoder(sam.preprocess(tensor)),
        original=(image.height, image.width),
        resized=resized.shape[:2],
        resize=resize,
    )


def _rows(
    view: _View, truths: Sequence[tuple[Instance, NDArray[np.bool_]]], *, protocol: Protocol, seed: int
) -> list[Row]:
    """Prompt for all objects of `truths`, each with its true mask, at once, and score what comes back."""
    points = np.stack([DRAW[protocol.points](mask, seed=seed, ann_id=a.ann_id) for a, mask in truths])
    prompts = {
        "1pt": view.points(points[:, :1]),
        "3pt": view.points(points),
        "box": view.boxes(np.array([corners(a.box) for a, _ in truths])),
    }
    truth = torch.as_tensor(np.stack([mask for _, mask in truths]), device=view.sam.device)
    scores: dict[str, list[float]] = {}
    for name, prompt in prompts.items():
        masks, predicted = view.masks(prompt, protocol.select)
        scores[f"iou_{name}"] = iou_percent(masks, truth)
        scores[f"piou_{name}"] = [100 * value for value in predicted.tolist()]
    return [
        Row(
            ann_id=a.ann_id,
            image_id=a.image_id,
            category_id=a.category_id,
            area=a.area,
            npix=int(mask.sum()),
            **{name: values[index] for name, values in scores.items()},
        )
        for index, (a, mask) in enumerate(truths)
    ]


def iou_percent(masks: Tensor, truth: Tensor) -> list[float]:
    """IoU of each of `masks` with each of `truth` (P, H, W), from whole numbers of pixels."""
    both = (masks & truth).flatten(1).sum(1).tolist()
    either = (masks | truth).flatten(1).sum(1).tolist()
    return [100 * b / e for b, e in zip(both, either, strict=True)]


def _counts(measured: Measurement, annotated: Sequence[Instance], chosen: Sequence[Instance]) -> dict[str, int]:
    crowds = {instance.ann_id for instance in annotated if instance.crowd}
    return {
        "images": len({row.image_id for row in measured.rows}),
        "instances": len(measured.rows),
        "skipped_empty": len(measured.skipped_empty),
        "crowd_used": sum(row.ann_id in crowds for row in measured.rows),
        "crowd_excluded": len(annotated) - len(chosen),
    }


def _provenance(config: LvisConfig, protocol: Protocol, sam: Sam) -> dict[str, Any]:
    """What was measured, with what, where: all that it takes to measure it again."""
    return {
        "model": sam.config.name,
        "keep_ratio": sam.image_encoder.keep_ratio,
        "checkpoint": _identity(config.checkpoint or SHIPPED_WEIGHTS),
        "image_size": sam.config.image_size,
        "annotations": _identity(config.annotations),
        "protocol": dataclasses.asdict(protocol),
        "seed": config.seed,
        "device": torch.cuda.get_device_name(sam.device) if sam.device.type == "cuda" else str(sam.device),
        "torch": torch.__version__,
    }


def _identity(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": file_sha256(path)}
