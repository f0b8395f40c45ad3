"""What every source of training data returns: a photograph and its annotated objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam_blvit.data.instances import Instance

MAX_BAD_SHARE = 0.001
"""If a larger share of photographs is damaged or incomplete, the whole data set is treated as damaged."""


@dataclass(frozen=True)
class Annotated:
    """A photograph with its objects."""

    image_id: int
    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    instances: list[Instance]
    """Their masks undecoded; no crowds."""
