"""What is read from any source of training data: a photograph and what is marked on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam_blvit.data.instances import Instance

MAX_BAD_SHARE = 0.001
"""Above this share of damaged or incomplete photographs the data are taken to be damaged as a whole."""


@dataclass(frozen=True)
class Annotated:
    """A photograph with its objects."""

    image_id: int
    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    instances: list[Instance]
    """Their masks undecoded; no crowds."""
