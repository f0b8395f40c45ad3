"""What annotations must hold before anything is measured against them.

The one thing to know: training counts a mask's own pixels and makes its own boxes. Evaluation takes the annotated box
as a prompt, and sorts objects into small, medium and large by the annotated area, so here both have to be possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sam_blvit.data.instances import ImageRecord, Instance, check_masks

BOX_SLACK = 1
"""Pixels by which an annotated box may be too narrow and too low for its area: some count pixels, some edges."""


def check_truths(instances: Iterable[Instance], images: Mapping[int, ImageRecord]) -> None:
    """Raise ValueError, one line naming the annotation, unless mask, box and area of each of `instances` can be
    measured on its image, one of `images` by id."""
    instances = list(instances)
    check_masks(instances, images)
    for instance in instances:
        image = images[instance.image_id]
        check_box(instance, image.height, image.width)
        _check_area(instance, image.height, image.width)


def check_box(instance: Instance, height: int, width: int) -> None:
    """Raise ValueError, one line, if the annotated box lies wholly outside its image of (height, width) pixels."""
    x, y, w, h = instance.box
    if x >= width or y >= height or (x < 0 and x + w <= 0) or (y < 0 and y + h <= 0):
        raise ValueError(
            f"annotation {instance.ann_id}: bbox {list(instance.box)} lies outside its image of {width} x {height} "
            "pixels; write x, y, width, height in pixels, or remove the annotation"
        )


def _check_area(instance: Instance, height: int, width: int) -> None:
    """Raise ValueError, one line, where no mask on (height, width) pixels, or none in its box, has the annotated area;
    only for an area of 0 is the mask drawn."""
    area, (_, _, w, h) = instance.area, instance.box
    if not 0 <= area <= height * width:
        problem = f"is not from 0 to the {height * width} pixels of its image"
    elif area > (w + BOX_SLACK) * (h + BOX_SLACK):
        problem = f"is more than its box of {w:g} x {h:g} pixels holds"
    elif area == 0 and (pixels := instance.pixels(height, width)):
        problem = f"but its mask has {pixels} pixels"
    else:
        return
    raise ValueError(
        f"annotation {instance.ann_id}: area {area:g} {problem}; write the number of pixels of its mask, by which "
        "objects are small, medium or large"
    )
