"""Latency of a model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from segment_anything.modeling import Sam as OriginalSam

from sam_blvit.model.decoder import decode

REPEATS = 5


@torch.no_grad()
def milliseconds(sam: OriginalSam) -> dict[str, Any]:
    """Median milliseconds of `sam`'s encoder and of decoding one box, batch 1, on its whole square input.

    The encoder's time starts at normalised pixels on the device; the decoder's ends at masks of the square's size.
    """
    side = sam.image_encoder.img_size
    images = torch.zeros(1, 3, side, side, device=sam.device)
    box = torch.tensor([[side / 4, side / 4, side / 2, side / 2]], device=sam.device)
    embedding = sam.image_encoder(images)

    def answer() -> None:
        logits, _ = decode(sam, embedding, boxes=box, multimask_output=False)
        sam.postprocess_masks(logits, (side, side), (side, side))

    return {
        "encoder": round(median_milliseconds(lambda: sam.image_encoder(images), sam.device), 3),
        "decoder": round(median_milliseconds(answer, sam.device), 3),
        "how": f"batch 1, {side} x {side} pixels, eager, median of {REPEATS} after warm-up",
    }


def now(device: torch.device) -> float:
    """Clock in milliseconds, read after `device` has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() * 1e3


def median_milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """Median milliseconds of REPEATS calls of `work`, after one warm-up call."""
    work()
    spent = []
    for _ in range(REPEATS):
        start = now(device)
        work()
        spent.append(now(device) - start)
    return statistics.median(spent)
