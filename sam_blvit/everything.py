"""`segment_anything.SamAutomaticMaskGenerator` on our predictor: every object of a photograph, without prompts.

Most of its time goes into decoding a grid of points, not into the encoder: fewer `points_per_side`
make it quicker before a lower keep ratio does, and `points_per_batch` bounds its memory.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator as OriginalGenerator
from segment_anything.modeling import Sam as OriginalSam

from sam_blvit.data.images import to_rgb
from sam_blvit.predictor import SamPredictor


class SamAutomaticMaskGenerator(OriginalGenerator):
    """A drop-in for SAM's own generator; grey, RGBA and PIL images are taken too."""

    __signature__ = inspect.signature(OriginalGenerator)  # the original's options and defaults, whatever they are

    def __init__(self, model: OriginalSam, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.predictor = SamPredictor(model)

    def generate(self, image: np.ndarray | Image.Image) -> list[dict[str, Any]]:
        """One record for each mask of `image`, RGB: `segmentation` in the chosen output mode, `area` in pixels, `bbox`
        as X, Y, width, height, `predicted_iou`, `stability_score`, `point_coords` and `crop_box`.

        Raises ValueError for an image that `sam_blvit.data.images.to_rgb` does not take.
        """
        return super().generate(to_rgb(image))
