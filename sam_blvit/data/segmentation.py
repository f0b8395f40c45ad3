"""Polygons and run lengths of annotations, checked for what pycocotools would crash on or draw wrongly.

Malformed ones raise KeyError, TypeError, ValueError or AttributeError; `Instance` names the annotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pycocotools import mask as coco_mask

from sam_blvit.data.fields import checked_number
from sam_blvit.data.ids import checked_count


def drawable(segmentation: Any, height: int, width: int) -> list[list[float]] | dict[str, Any]:
    """`segmentation` as pycocotools can draw it on (height, width) pixels: polygons, perhaps none, or compressed run
    lengths. Nothing is drawn."""
    if isinstance(segmentation, dict):
        return _checked_runs(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise TypeError(f"{type(segmentation).__name__} instead of polygons or run lengths")
    if unlisted := [polygon for polygon in segmentation if not isinstance(polygon, list)]:
        raise TypeError(f"{unlisted[0]!r:.40} is not a list of x and y")
    polygons = [_checked_polygon(polygon, height, width) for polygon in segmentation]
    return [polygon for polygon in polygons if len(polygon) >= 6]  # fewer than three corners enclose nothing


def _checked_polygon(polygon: list[Any], height: int, width: int) -> list[float]:
    """Corners that pycocotools can draw: it takes memory for every step along an edge, and NaN never ends."""
    corners = [checked_number(value) for value in polygon]
    if len(corners) % 2:
        raise ValueError(f"polygon of {len(corners)} numbers; x and y alternate")
    side = max(height, width)
    if corners and not -side <= min(corners) <= max(corners) <= 2 * side:
        raise ValueError(f"polygon reaches {max(corners, key=abs):g}, far outside {width} x {height} pixels")
    return corners


def _checked_runs(runs: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """Run lengths that cover the image: pycocotools leaves what they do not cover uninitialised."""
    counts = runs["counts"]
    if list(runs["size"]) != [height, width]:
        swapped = ", height and width swapped" if list(runs["size"]) == [width, height] else ""
        raise ValueError(f"size {runs['size']} instead of {[height, width]}{swapped}")
    if isinstance(counts, list):
        lengths = [checked_count(value) for value in counts]
    else:
        lengths = run_lengths(counts if isinstance(counts, bytes) else counts.encode("ascii"))
    if sum(lengths) != height * width or min(lengths, default=0) < 0:
        raise ValueError(f"run lengths cover {sum(lengths)} of {height * width} pixels")
    return packed(lengths, height, width)


def packed(lengths: list[int], height: int, width: int) -> dict[str, Any]:
    """Run `lengths` as pycocotools compresses them."""
    return coco_mask.frPyObjects({"size": [height, width], "counts": lengths}, height, width)


def run_lengths(text: bytes) -> list[int]:
    """The numbers in COCO's compressed run lengths: 5 bits a character, lowest first, each but the first three as the
    difference to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) * (bits >> 4 & 1)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("run lengths end in the middle of a number")
    return runs
