"""SAM's resizing of photographs and of their coordinates."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor


class Resize(ResizeLongestSide):
    """SAM's resizing with sides of at least one pixel and coordinates in float32 (MPS has no float64)."""

    def to_tensor(self, photograph: NDArray[np.uint8]) -> Tensor:
        """Resize `photograph` (H, W, 3) to (3, h, w) uint8. It is not resampled if its longest side already fits.

        Raises:
            ValueError: If it has another shape or dtype.
        """
        if photograph.ndim != 3 or photograph.shape[2] != 3 or photograph.dtype != np.uint8:
            raise ValueError(
                f"photograph of shape {photograph.shape} and dtype {photograph.dtype}: (H, W, 3) uint8 is expected; "
                "SamPredictor.set_image also accepts grey, RGBA and PIL images"
            )
        fits = max(photograph.shape[:2]) == self.target_length
        resized = np.array(photograph) if fits else self.apply_image(photograph)
        return torch.from_numpy(resized).permute(2, 0, 1)

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, ...]) -> np.ndarray:
        """Convert `coords` (..., 2) from pixels of an image of `original_size` (H, W) to pixels of the resized one."""
        return super().apply_coords(coords, original_size).astype(np.float32)

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """Height and width of an image of `oldh` x `oldw` once its longest side is `long_side_length`."""
        height, width = ResizeLongestSide.get_preprocess_shape(oldh, oldw, long_side_length)
        return max(height, 1), max(width, 1)
