"""`segment_anything.SamPredictor` with checked prompts and support for any photograph.

Results on ordinary input equal the original's up to float32 rounding. Invalid input that gives a stack trace from
inside the model or an empty mask in the original raises a one-line error here: a point at NaN, a box with swapped
corners, labels that do not match their points. Any number of prompts may be passed at once.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from segment_anything import SamPredictor as OriginalPredictor
from segment_anything.modeling import Sam as OriginalSam

from sam_blvit.data.images import to_rgb
from sam_blvit.model.compiled import compile_encoder
from sam_blvit.model.decoder import decode, enlarge
from sam_blvit.model.encoder import ImageEncoder
from sam_blvit.model.plain import is_plain
from sam_blvit.model.prompts import LABELS, check_prompts
from sam_blvit.model.resize import Resize
from sam_blvit.model.sam import PhotographEncoding, Sam

IMAGE_FORMATS = ("RGB", "BGR")


class NoImageError(ValueError, RuntimeError):
    """No image is set. Also a RuntimeError, which code written for segment_anything catches."""


class SamPredictor(OriginalPredictor):
    """Embeds a photograph once, then predicts masks for any number of prompts; a drop-in for SAM's predictor.

    Threads may share a predictor: each call uses the photograph that was set last, from beginning to end. Threads that
    set different photographs need separate predictors, which may share the model.
    """

    original_size: tuple[int, int]
    encoding: PhotographEncoding | None
    """The encoder's output for the current image. None if no image is set, or if the encoder returns only the
    embedding: a compiled, hooked or wrapped encoder, or another model's."""

    def __init__(self, sam_model: OriginalSam) -> None:
        self._lock = threading.RLock()
        super().__init__(sam_model)
        self.transform = Resize(sam_model.image_encoder.img_size)

    def __getstate__(self) -> dict[str, Any]:
        """The attributes without the lock; every copy gets its own lock."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the attributes when copying or unpickling."""
        self.__dict__.update(state, _lock=threading.RLock())

    def compile(self) -> None:
        """Compile the model's encoder for every user of the model; see `sam_blvit.compile_encoder`."""
        compile_encoder(self.model.image_encoder)

    def set_image(self, image: np.ndarray | Image.Image, image_format: str = "RGB") -> None:
        """Embed an image. After an error no image is set.

        Args:
            image: A uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a PIL image.
            image_format: Order of the colours, RGB or BGR.

        Raises:
            ValueError: If the image has another shape or type, or the format is unknown.
        """
        with self._lock:
            self.reset_image()
            if image_format not in IMAGE_FORMATS:
                raise ValueError(f"image_format={image_format!r} is not one of {', '.join(IMAGE_FORMATS)}")
            super().set_image(to_rgb(image), image_format)

    def set_torch_image(self, transformed_image: torch.Tensor, original_image_size: Sequence[int]) -> None:
        """Embed a resized image. After an error no image is set.

        Args:
            transformed_image: (1, 3, h, w), resized by `transform`.
            original_image_size: (H, W) of the photograph before resizing.

        Raises:
            ValueError: If the image has another shape or size.
        """
        with self._lock:
            self.reset_image()
            shape, side = tuple(transformed_image.shape), self.transform.target_length
            if len(shape) != 4 or shape[:2] != (1, 3):
                raise ValueError(
                    f"image of shape {shape}: (1, 3, height, width) is expected; set_image takes (H, W, 3)"
                )
            if max(shape[2:]) != side:
                raise ValueError(
                    f"image of height {shape[2]} and width {shape[3]}: a longest side of {side} is expected; resize it "
                    "with transform.apply_image_torch, or call set_image"
                )
            size, model = _checked_size(original_image_size), self.model
            if not isinstance(model, Sam) or not is_plain(model.image_encoder, (ImageEncoder,)):
                super().set_torch_image(transformed_image, size)  # it calls the encoder as a module
                return
            self.encoding = model.encode_photograph(transformed_image[0])
            self.features = self.encoding.embedding
            self.input_size, self.original_size = self.encoding.input_size, size
            self.is_image_set = True

    def reset_image(self) -> None:
        """Forget the current image."""
        with self._lock:
            super().reset_image()
            self.encoding = None

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict masks for one prompt. Coordinates are pixels of the current image, (H, W).

        Without any prompt the model chooses an object.

        Args:
            point_coords: (n, 2) X, Y of each point. Points may lie outside the image, as in the original.
            point_labels: (n,) 1 on the object, 0 off it.
            box: (4,) X0, Y0, X1, Y1. It must overlap the image but may reach over its edge, as detectors' boxes do.
            mask_input: (1, 256, 256) logits of an earlier prediction (a quarter of the encoder's side).
            multimask_output: Whether to return three masks (C = 3) or one (C = 1).
            return_logits: Whether to return logits instead of boolean masks.

        Returns:
            Masks (C, H, W), predicted IoU (C,) and low-resolution logits (C, 256, 256).

        Raises:
            ValueError: If a prompt is invalid.
        """
        with self._lock:
            self._require_image()
            labels = None
            if point_coords is None and point_labels is not None:
                raise ValueError("point_labels without point_coords; pass both or neither")
            if point_coords is not None:
                point_coords, labels = checked_points(point_coords, point_labels)
            if box is not None:
                box = checked_box(box, size=self.original_size)
            if mask_input is not None:
                mask_input = self._checked_mask(mask_input)
            return super().predict(point_coords, labels, box, mask_input, multimask_output, return_logits)

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: torch.Tensor | None,
        point_labels: torch.Tensor | None,
        boxes: torch.Tensor | None = None,
        mask_input: torch.Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predict masks for P prompts. Coordinates are pixels of the resized image (see `transform`).

        In addition to its results it needs about `sam_blvit.model.decoder.CHUNK_BYTES`, for any number of prompts.

        Args:
            point_coords: (P, n, 2) X, Y of each point.
            point_labels: (P, n) 1 on the object, 0 off it.
            boxes: (P, 4) X0, Y0, X1, Y1.
            mask_input: (P, 1, 4G, 4G) logits of earlier predictions.
            multimask_output: Whether to return three masks (C = 3) or one (C = 1) for each prompt.
            return_logits: Whether to return logits instead of boolean masks.

        Returns:
            Masks (P, C, H, W), predicted IoU (P, C) and low-resolution logits (P, C, 4G, 4G).

        Raises:
            ValueError: If `sam_blvit.model.prompts.check_prompts` rejects a prompt.
        """
        with self._lock:
            self._require_image()
            prompts = check_prompts(self.model, coords=point_coords, labels=point_labels, boxes=boxes, masks=mask_input)
            logits, predicted = decode(self.model, self.features, **prompts, multimask_output=multimask_output)
            masks = enlarge(self.model, logits, self.input_size, self.original_size, binary=not return_logits)
        return masks, predicted, logits

    def get_image_embedding(self) -> torch.Tensor:
        """The embedding (1, 256, G, G) of the current image."""
        with self._lock:
            self._require_image()
            return super().get_image_embedding()

    def _require_image(self) -> None:
        if not self.is_image_set:
            raise NoImageError("no image is set; call set_image(image) first")

    def _checked_mask(self, mask_input: ArrayLike) -> np.ndarray:
        mask = _as_floats(mask_input, "mask_input").astype(np.float32)
        expected = (1, *self.model.prompt_encoder.mask_input_size)
        if mask.shape != expected:
            raise ValueError(
                f"mask_input of shape {mask.shape}: {expected} is expected, low-resolution logits that predict returned"
            )
        if not np.isfinite(mask).all():
            raise ValueError("mask_input has NaN or infinity; pass low-resolution logits that predict returned")
        return mask


def checked_points(coords: ArrayLike, labels: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Check and convert points and labels.

    Returns:
        Points (n, 2) float64 and their labels (n,) int32.

    Raises:
        ValueError: If a shape does not match, a point is not finite or a label is unknown.
    """
    points = _as_floats(coords, "point_coords")
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"point_coords of shape {points.shape}: (n, 2) is expected, one X, Y for each point")
    if labels is None:
        raise ValueError("point_coords without point_labels; pass one label for each point, 1 on the object, 0 off it")
    marks = _as_floats(labels, "point_labels")
    if marks.shape != (len(points),):
        raise ValueError(f"point_labels of shape {marks.shape} for {len(points)} points: ({len(points)},) is expected")
    wrong = marks[~np.isin(marks, LABELS)]
    if wrong.size:
        raise ValueError(f"point label {wrong[0]:g} is not 1 (on the object) or 0 (off it)")
    with np.errstate(over="ignore"):
        finite = np.isfinite(points.astype(np.float32)).all(-1)
    if not finite.all():
        x, y = points[~finite][0]
        raise ValueError(f"point_coords has {x:g},{y:g}, which is not a position; pass finite X, Y in pixels")
    return points, marks.astype(np.int32)


def check_inside(points: np.ndarray, *, size: tuple[int, int]) -> None:
    """Raise ValueError if one of `points` (n, 2) lies outside an image of `size` (H, W)."""
    height, width = size
    outside = points[~((points >= 0) & (points < (width, height))).all(-1)]
    if len(outside):
        x, y = outside[0]
        raise ValueError(f"point {x:g},{y:g} is outside the image of {width} x {height} pixels (width x height)")


def checked_box(box: ArrayLike, *, size: tuple[int, int]) -> np.ndarray:
    """Check and convert a box.

    Returns:
        X0, Y0, X1, Y1 (4,) float64.

    Raises:
        ValueError: If the box is malformed or does not overlap an image of `size` (H, W).
    """
    corners = _as_floats(box, "box")
    if corners.shape not in ((4,), (1, 4)):
        raise ValueError(f"box of shape {corners.shape}: 4 numbers are expected, X0, Y0, X1, Y1")
    corners = corners.reshape(4)
    text = ",".join(f"{corner:g}" for corner in corners)
    with np.errstate(over="ignore"):
        finite = np.isfinite(corners.astype(np.float32)).all()
    if not finite:
        raise ValueError(f"box {text} has NaN or infinity; pass X0, Y0, X1, Y1 in pixels")
    x0, y0, x1, y1 = corners
    if x0 > x1 or y0 > y1:
        raise ValueError(f"box {text} has swapped corners; pass X0, Y0, X1, Y1 (not x, y, w, h), X0 <= X1 and Y0 <= Y1")
    height, width = size
    if x1 < 0 or y1 < 0 or x0 >= width or y0 >= height:
        raise ValueError(f"box {text} is outside the image of {width} x {height} pixels (width x height)")
    return corners


def _checked_size(size: Sequence[int]) -> tuple[int, int]:
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        height, width = 0, 0
    if min(height, width) < 1:
        raise ValueError(f"original_image_size={size!r} is not (H, W), two positive integers")
    return height, width


def _as_floats(values: ArrayLike, name: str) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers on the CPU: {str(error).splitlines()[0]}") from error
