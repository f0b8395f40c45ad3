"""Images per second of this package's evaluation and of a plain loop over SamPredictor, side by side.

$ python studies/evaluation_speed.py instances.json IMAGES [NUMBER_OF_IMAGES]

The two take turns, so that other load affects both equally. Both predict masks from a box, one point and three points
for every object with blvit_tiny and compute IoU at full size; the evaluation adds Boundary IoU.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from segment_anything import SamPredictor

from sam_blvit import sam_model_registry
from sam_blvit.data.images import read_image
from sam_blvit.data.instances import ImageFile, Instance, find_images, read_instances
from sam_blvit.data.prompts import corners, uniform_points
from sam_blvit.evaluate.masks import MaskMeasure, measure_masks
from sam_blvit.evaluate.photographs import by_image
from sam_blvit.evaluate.protocol.protocols import PROTOCOLS
from sam_blvit.model.sam import Sam
from sam_blvit.system.allocator import tune_allocator
from sam_blvit.system.machine import processor

TURNS = 5


def plain_loop(sam: Sam, images: Sequence[ImageFile], instances: Sequence[Instance]) -> list[float]:
    """IoUs of box, one point and three points of every object, one prompt at a time."""
    predictor = SamPredictor(sam)
    of_image = by_image(instances)
    ious = []
    for image in images:
        predictor.set_image(read_image(image.path))
        for instance in of_image[image.image_id]:
            truth = instance.mask(image.height, image.width)
            points = uniform_points(truth, seed=0, ann_id=instance.ann_id)
            for prompt in (
                {"box": np.array(corners(instance.box))},
                {"point_coords": points[:1], "point_labels": np.ones(1)},
                {"point_coords": points, "point_labels": np.ones(3)},
            ):
                masks, predicted, _ = predictor.predict(**prompt, multimask_output=True)
                mask = masks[predicted.argmax()]
                ious.append(100 * (mask & truth).sum() / (mask | truth).sum())
    return ious


def ours(sam: Sam, images: Sequence[ImageFile], instances: Sequence[Instance]) -> list[float]:
    """The same numbers by `measure_masks`."""
    rows = measure_masks(sam, images, instances, MaskMeasure(protocol=PROTOCOLS["blvit"])).rows
    return [iou for row in rows for iou in (row.iou_box, row.iou_1pt, row.iou_3pt)]


def main(annotations: Path, root: Path, number: int) -> None:
    """Print both rates, their ratio turn by turn, and how far the mean IoUs are apart."""
    dataset = read_instances(annotations)
    records = dataset.records
    masked = [
        a
        for a in dataset.instances
        if not a.crowd and a.mask(records[a.image_id].height, records[a.image_id].width).any()
    ]
    images = find_images([records[image_id] for image_id in by_image(masked)][:number], root)
    instances = [instance for image in images for instance in by_image(masked)[image.image_id]]
    sam = sam_model_registry["blvit_tiny"]().eval()
    for work in (plain_loop, ours):
        work(sam, images[:1], by_image(instances)[images[0].image_id])
    spent: dict[str, list[float]] = {"plain loop": [], "ours": []}
    means = {}
    for _ in range(TURNS):
        for name, work in (("plain loop", plain_loop), ("ours", ours)):
            start = time.perf_counter()
            means[name] = np.mean(work(sam, images, instances))
            spent[name].append(time.perf_counter() - start)
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{len(images)} images, {len(instances)} objects, blvit_tiny, median of {TURNS} turns")
    for name, seconds in spent.items():
        print(f"{name}: {len(images) / statistics.median(seconds):.2f} images/s, mean IoU {means[name]:.2f}")
    ratios = sorted(a / b for a, b in zip(*spent.values(), strict=True))
    print(f"ratio: median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    tune_allocator()
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else sys.maxsize)
