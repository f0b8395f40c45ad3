"""Seconds of this package's everything mode and of segment_anything's on the same model, by stage.

$ python studies/everything_speed.py [--model blvit_tiny] [--image-size 1024] [--points-per-side 32]

At 1024 px the decoder has SAM's own size in blvit_tiny too, with trained weights. The two take turns on the CPU, so
that other load affects both equally; their masks are compared first. Half of the masks pass each threshold, because a
small model's predictions are lower than SAM's, for which the defaults are made.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import segment_anything
import skimage.data
import torch
from segment_anything import automatic_mask_generator as original
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from sam_blvit import SamAutomaticMaskGenerator, sam_model_registry
from sam_blvit import automatic_mask_generator as everything
from sam_blvit.data.images import read_image
from sam_blvit.model import decoder
from sam_blvit.model.encoder import ImageEncoder
from sam_blvit.system.allocator import tune_allocator
from sam_blvit.system.machine import processor

STAGES: dict[str, list[tuple[Any, str]]] = {
    "encoder": [(ImageEncoder, "encode")],
    "prompt encoder": [(PromptEncoder, "forward")],
    "decoder, attention": [(TwoWayTransformer, "forward"), (decoder, "run_transformer")],
    "decoder, masks": [(MaskDecoder, "forward"), (decoder, "mask_logits")],
    "enlarging": [(Sam, "postprocess_masks")],
    "stability, boxes": [
        (original, "calculate_stability_score"),
        (original, "batched_mask_to_box"),
        (SamAutomaticMaskGenerator, "_judged"),
    ],
    "suppression": [(original, "batched_nms"), (everything, "batched_nms")],
    "run lengths": [
        (original, "mask_to_rle_pytorch"),
        (original, "rle_to_mask"),
        (everything, "run_lengths"),
        (SamAutomaticMaskGenerator, "_segmentation"),
    ],
    "the rest": [(segment_anything.SamAutomaticMaskGenerator, "generate"), (SamAutomaticMaskGenerator, "generate")],
}
"""What runs in each stage, of either generator; the time of a stage is without the others that it calls."""
Records = list[dict[str, Any]]


@contextmanager
def clocked() -> Iterator[Counter[str]]:
    """While the context lasts, seconds of each stage add up in what it gives."""
    spent: Counter[str] = Counter()
    inner: list[float] = [0.0]

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - start
                spent[stage] += seconds - inner.pop()
                inner[-1] += seconds

        return run

    with ExitStack() as patches:
        for stage, functions in STAGES.items():
            for owner, name in functions:
                patches.enter_context(patch.object(owner, name, timed(stage, getattr(owner, name))))
        yield spent


def half_pass(sam: Sam, photograph: np.ndarray) -> dict[str, float]:
    """Thresholds that half of the masks at a few points pass: of predicted IoU, and of stability the rest."""
    everything_there = {"pred_iou_thresh": 0, "stability_score_thresh": 0, "box_nms_thresh": 1}
    records = SamAutomaticMaskGenerator(sam, points_per_side=8, **everything_there).generate(photograph)
    least = float(np.median([record["predicted_iou"] for record in records]))
    stable = [record["stability_score"] for record in records if record["predicted_iou"] > least]
    return {"pred_iou_thresh": least, "stability_score_thresh": float(np.nanmedian(stable))}


def most_different(mine: Records, theirs: Records) -> float:
    """Largest share of a mask's pixels in which the two differ; ValueError where they are not the same masks."""
    if len(mine) != len(theirs):
        raise ValueError(f"{len(mine)} masks, and {len(theirs)} of segment_anything's generator")
    if not mine:
        raise ValueError("no masks to compare; lower the thresholds")
    shares = [0.0]
    for one, other in zip(mine, theirs, strict=True):
        both = np.count_nonzero(one["segmentation"] | other["segmentation"])
        shares.append(np.count_nonzero(one["segmentation"] != other["segmentation"]) / max(both, 1))
        same_scores = all(abs(one[key] - other[key]) < 1e-3 for key in ("predicted_iou", "stability_score"))
        if shares[-1] > 0.01 or one["point_coords"] != other["point_coords"] or not same_scores:
            raise ValueError(f"the masks at {one['point_coords']} and {other['point_coords']} differ")
    return max(shares)


def main() -> None:
    """Print the medians of both, their ratio turn by turn, and the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="blvit_tiny")
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--photograph", type=Path, help="default: scikit-image's coffee")
    parser.add_argument("--default-allocator", action="store_true")
    given = parser.parse_args()
    tuned = not given.default_allocator and tune_allocator()
    sam = sam_model_registry[given.model](image_size=given.image_size)
    photograph = read_image(given.photograph) if given.photograph else skimage.data.coffee()
    options = {"points_per_side": given.points_per_side, **half_pass(sam, photograph)}
    generators = {
        "segment_anything": segment_anything.SamAutomaticMaskGenerator(sam, **options),
        "ours": SamAutomaticMaskGenerator(sam, **options),
    }
    theirs, mine = (generator.generate(photograph) for generator in generators.values())
    difference = most_different(mine, theirs)
    turns: dict[str, list[Counter[str]]] = {name: [] for name in generators}
    for _ in range(given.turns):
        for name, generator in generators.items():
            with clocked() as spent:
                generator.generate(photograph)
            turns[name].append(spent)
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    print(f"allocator {'tuned' if tuned else 'as it is'}; {given.model} at {given.image_size} px, {options}")
    height, width = photograph.shape[:2]
    print(f"{width} x {height} pixels, {len(mine)} masks in both, at most {difference:.3%} of a mask's pixels differ")
    print(f"\n| seconds, median of {given.turns} | {' | '.join(generators)} |\n|---|---|---|")
    for stage in STAGES:
        print("|", " | ".join([stage, *(f"{statistics.median(s[stage] for s in turns[n]):.2f}" for n in turns)]), "|")
    totals = {name: [sum(spent.values()) for spent in each] for name, each in turns.items()}
    print("|", " | ".join(["together", *(f"{statistics.median(each):.2f}" for each in totals.values())]), "|")
    ratios = sorted(a / b for a, b in zip(*totals.values(), strict=True))
    print(f"\nratio: median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main()
