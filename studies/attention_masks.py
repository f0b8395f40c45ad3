"""How close masks stay to plain float32 attention, for every other attention backend, in both precisions.

$ python studies/attention_masks.py instances.json IMAGES [NUMBER_OF_IMAGES]

blvit_tiny masks each object of the photographs from its box; a mask is compared with the one that the same weights
give in float32 with attention step by step.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam_blvit import compile_encoder, sam_model_registry
from sam_blvit.data.images import read_image
from sam_blvit.data.instances import ImageFile, Instance, find_images, read_instances
from sam_blvit.data.prompts import corners
from sam_blvit.evaluate.photographs import by_image
from sam_blvit.model.attention_backends import BACKENDS, attention_backend
from sam_blvit.model.sam import Sam
from sam_blvit.predictor import SamPredictor
from sam_blvit.system.allocator import tune_allocator

CPU_BACKENDS = [backend for backend in BACKENDS if backend != "flex"]


def masks_of(sam: Sam, images: Sequence[ImageFile], instances: Sequence[Instance]) -> list[NDArray[np.bool_]]:
    """The mask of every object's box."""
    predictor = SamPredictor(sam)
    of_image = by_image(instances)
    masks = []
    for image in images:
        predictor.set_image(read_image(image.path))
        for instance in of_image[image.image_id]:
            mask, _, _ = predictor.predict(box=np.array(corners(instance.box)), multimask_output=False)
            masks.append(mask[0])
    return masks


def line(name: str, masks: Sequence[NDArray[np.bool_]], reference: Sequence[NDArray[np.bool_]]) -> str:
    """Mean IoU with the reference masks, the lowest, and how many lie below 0.95."""
    ious = [
        (mask & other).sum() / union if (union := (mask | other).sum()) else 1.0
        for mask, other in zip(masks, reference, strict=True)
    ]
    return f"| {name} | {np.mean(ious):.4f} | {np.min(ious):.3f} | {sum(iou < 0.95 for iou in ious)} |"


def main(annotations: Path, root: Path, number: int) -> None:
    """Print a Markdown table."""
    dataset = read_instances(annotations)
    of_image = by_image([instance for instance in dataset.instances if not instance.crowd])
    images = find_images([dataset.records[image_id] for image_id in of_image][:number], root)
    boxes = [instance for image in images for instance in of_image[image.image_id]]
    with attention_backend("eager"):
        reference = masks_of(sam_model_registry["blvit_tiny"](), images, boxes)
    print(f"{len(images)} images, {len(boxes)} objects\n")
    print("| backend | mean IoU | lowest | below 0.95 |\n|---|---|---|---|")
    for dtype in ("float32", "bfloat16"):
        sam = sam_model_registry["blvit_tiny"](compute_dtype=dtype)
        for backend in CPU_BACKENDS:
            with attention_backend(backend):
                print(line(f"{dtype}, {backend}", masks_of(sam, images, boxes), reference), flush=True)
        compile_encoder(sam.image_encoder)
        print(line(f"{dtype}, compiled", masks_of(sam, images, boxes), reference), flush=True)


if __name__ == "__main__":
    tune_allocator()
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else sys.maxsize)
