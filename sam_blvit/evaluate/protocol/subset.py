"""Subsets of a dataset's photographs by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sam_blvit.data.instances import ImageRecord

MINIVAL_SPLIT = "val2017"


def in_subset(records: Mapping[int, ImageRecord], subset: str, annotations: Path) -> dict[int, ImageRecord]:
    """Those of `records` in `subset`: full, or minival, the photographs of val2017. ValueError if there are none."""
    if subset == "full":
        return dict(records)
    found = {image_id: record for image_id, record in records.items() if record.split == MINIVAL_SPLIT}
    if not found:
        raise ValueError(
            f"subset=minival: {annotations} has no photograph of {MINIVAL_SPLIT} by coco_url; take subset=full"
        )
    return found
