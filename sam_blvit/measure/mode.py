"""A model as it is measured, in the middle of whatever else is done with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sam_blvit.model.sam import Sam


@contextmanager
def measuring(sam: Sam, keep_ratio: float | None = None) -> Iterator[None]:
    """While the context lasts `sam` is in eval mode, at `keep_ratio` (None: at its own), and records no gradients.

    Afterwards each of its modules is in the mode it was in, which need not be that of the others.
    """
    modes = [(module, module.training) for module in sam.modules()]
    before = sam.image_encoder.keep_ratio
    try:
        sam.eval()
        if keep_ratio is not None:
            sam.image_encoder.keep_ratio = keep_ratio
        with torch.no_grad():
            yield
    finally:
        sam.image_encoder.keep_ratio = before
        for module, training in modes:
            module.training = training
