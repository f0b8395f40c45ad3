"""A model as it is measured, in the middle of whatever else is done with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from segment_anything.modeling import Sam as OriginalSam

from sam_blvit.model.sam import Sam


@contextmanager
def measuring(sam: OriginalSam, keep_ratio: float | None = None) -> Iterator[None]:
    """While the context lasts `sam` is in eval mode, at `keep_ratio` (None: at its own), and records no gradients.

    A Sam that is not ours has no keep ratio.

    Afterwards each of its modules is in the mode it was in, which need not be that of the others.
    """
    modes = [(module, module.training) for module in sam.modules()]
    before = sam.image_encoder.keep_ratio if isinstance(sam, Sam) else None
    try:
        sam.eval()
        if isinstance(sam, Sam) and keep_ratio is not None:
            sam.image_encoder.keep_ratio = keep_ratio
        with torch.no_grad():
            yield
    finally:
        if isinstance(sam, Sam) and before is not None:
            sam.image_encoder.keep_ratio = before
        for module, training in modes:
            module.training = training
