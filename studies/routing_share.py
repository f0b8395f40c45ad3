"""The share of routing in an encoder's time at batch 1: scores, choice, gathers, gates and scatters.

$ python studies/routing_share.py [MODEL] [IMAGE_SIDE] [float32|bfloat16]

Every routing function is replaced by one that also notes its time; the medians of the parts are compared with the
median of whole, untouched passes, in turns.
"""

import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from sam_blvit import sam_model_registry
from sam_blvit.cost.latency import now
from sam_blvit.model import attention, big_little, encoder, router, windows
from sam_blvit.model.encoder import ImageEncoder
from sam_blvit.system.allocator import tune_allocator
from sam_blvit.system.machine import processor

TURNS = 9
PARTS = {
    "scores": [(router.TokenRouter, "forward")],
    "choice of primary tokens": [(encoder, "route")],
    "gather": [(attention, "take_tokens"), (big_little, "take_tokens")],
    "positions of the chosen": [(attention, "_take_own"), (windows.WindowLayout, "tokens_of")],
    "score scaling": [(big_little.BigLittleLayer, "_gated")],
    "scatter": [(big_little, "add_tokens")],
}
"""Parts of routing, and the functions that are each."""


@contextmanager
def timed(spent: Counter[str], device: torch.device) -> Iterator[None]:
    """Within the context, add up milliseconds by part in `spent`. Nested parts count for the inner part only."""
    inner: list[float] = [0.0]

    def noting(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            inner.append(0.0)
            start = now(device)
            result = function(*args, **kwargs)
            whole = now(device) - start
            spent[part] += whole - inner.pop()
            inner[-1] += whole
            return result

        return noted

    patches = [patch.object(o, name, noting(part, getattr(o, name))) for part, of in PARTS.items() for o, name in of]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


@torch.no_grad()
def shares(image_encoder: ImageEncoder, side: int, device: torch.device) -> tuple[float, dict[str, float]]:
    """Median milliseconds of a pass, and of the parts of routing in one."""
    images = torch.randn(1, 3, side, side, device=device)
    passes, parts = [], []
    for turn in range(TURNS + 1):
        start = now(device)
        image_encoder(images)
        whole = now(device) - start
        spent: Counter[str] = Counter()
        with timed(spent, device):
            image_encoder(images)
        if turn:
            passes.append(whole)
            parts.append(spent)
    return statistics.median(passes), {part: statistics.median(spent[part] for spent in parts) for part in PARTS}


def main(model: str, side: int, dtype: str) -> None:
    """Print milliseconds and shares."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sam = sam_model_registry[model](image_size=side, compute_dtype=dtype).to(device)
    whole, parts = shares(sam.image_encoder, side, device)
    print(f"{processor()}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}, tuned allocator")
    print(f"{model}, {side} px, {dtype}, batch 1, eager, median of {TURNS} turns: {whole:.1f} ms")
    for part, spent in {**parts, "routing": sum(parts.values())}.items():
        print(f"{part}: {spent:.2f} ms, {spent / whole:.2%}")


if __name__ == "__main__":
    tune_allocator()
    given = dict(enumerate(sys.argv))
    main(given.get(1, "blvit_b_t"), int(given.get(2, 1024)), given.get(3, "bfloat16"))
