"""Evaluation runs that tests write, of few objects and round numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from PIL import Image

from sam_blvit.evaluate.metrics.summary import PROMPTS

COLUMNS = ["seed", "ann_id", "image_id", "category_id", "area", "npix"]
COLUMNS += [f"{kind}_{prompt}" for kind in ("iou", "piou", "biou") for prompt in PROMPTS]
PROTOCOL = {"name": "blvit", "first": "uniform", "select": "argmax", "average": "instance", "subset": "full"}
COMMON = {
    "model": "blvit_tiny",
    "keep_ratio": 0.25,
    "checkpoint": {"file": "tiny.safetensors", "sha256": "c0ffee00" * 8},
    "image_size": 512,
    "annotations": {"file": "instances.json", "sha256": "abcdef01" * 8},
    "subset": "full",
    "perturbation": "clean",
    "macs": {"paper": 5.12, "full": 5.91, "encoder_paper": 4.0, "encoder_full": 4.5},
    "milliseconds": {"encoder": 61.2, "decoder": 9.8, "how": "batch 1, median of 5"},
    "git": "ba40707",
    "device": "cpu",
    "processor": "EPYC",
    "threads": 2,
    "torch": "2.15.0",
    "wall_seconds": 103.2,
}


def by_prompt(box: float | None, one: float | None, three: float | None) -> dict[str, float | None]:
    return {"box": box, "1pt": one, "3pt": three}


def rows_of(objects: int = 6, shift: float = 0.0) -> list[dict[str, float]]:
    """Two objects a photograph; box IoU 40 + `shift`, predicted 70."""
    ids = [
        {"seed": 0, "ann_id": i, "image_id": i // 2, "category_id": 1, "area": 50.0, "npix": 40} for i in range(objects)
    ]
    scores = dict.fromkeys(COLUMNS[6:], 40.0 + shift) | {f"piou_{prompt}": 70.0 for prompt in PROMPTS}
    return [row | scores for row in ids]


def write_csv(directory: Path, rows: list[dict[str, Any]]) -> None:
    with (directory / "instances.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_json(directory: Path, content: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "summary.json").write_text(json.dumps(content))


def miou_run(directory: Path, *, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    """A run of mIoU whose summary differs from the usual one in `changes`."""
    summary = {
        **COMMON,
        "task": "miou",
        "miou": {
            "instance": by_prompt(47.81, 17.52, 31.83),
            "image": by_prompt(50.0, 20.0, 30.0),
            "category": by_prompt(51.0, 21.0, 32.0),
            "small": by_prompt(11.1, 1.0, 1.0),
            "medium": by_prompt(22.2, 1.0, 1.0),
            "large": by_prompt(None, None, None),
        },
        "boundary": {"instance": by_prompt(33.4, 5.0, 6.0)},
        "seeds": {"seeds": [0], "instance": by_prompt(1, 1, 1), "std": None},
        "counts": {"images": 3, "instances": 6, "skipped_empty": 0, "crowd_used": 0, "crowd_excluded": 0},
        "protocol": PROTOCOL,
        "protocol_label": "blvit",
        "include_crowd": False,
        "primary_kept": None,
    }
    write_json(directory, summary | changes)
    write_csv(directory, rows or rows_of())
    return directory


def ap_run(directory: Path, **changes: Any) -> Path:
    """A run of AP whose summary differs from the usual one in `changes`."""
    asked = {"task": "ap", "judge": "lvis", "boxes": "gt", "select": "single", "refine": 0}
    write_json(directory, COMMON | asked | {"ap": {"AP": 12.34, "AP50": 23.4, "APs": None}} | changes)
    return directory


def with_worst(directory: Path) -> Path:
    """Add a picture of a bad object to a run."""
    (directory / "worst").mkdir()
    Image.new("RGB", (8, 6), "red").save(directory / "worst" / "01_123.jpg")
    entry = {"file": "01_123.jpg", "ann_id": 123, "image_id": 7, "category_id": 5, "iou_box": 3.21, "piou_box": 80.1}
    (directory / "worst" / "worst.json").write_text(json.dumps([entry]))
    return directory
