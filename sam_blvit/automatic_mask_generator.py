"""A faster `segment_anything.SamAutomaticMaskGenerator`: masks every object of a photograph, without prompts.

The records equal the original's up to rounding. Most of the time goes into decoding a grid of points, not into the
encoder, so fewer `points_per_side` save more time than a lower keep ratio. The original does every step for every mask.
Here only masks of high predicted IoU are upscaled, and only the masks that are returned get run lengths.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator as OriginalGenerator
from segment_anything.modeling import Sam as OriginalSam
from segment_anything.utils.amg import (
    batched_mask_to_box,
    coco_encode_rle,
    generate_crop_boxes,
    is_box_near_crop_edge,
    remove_small_regions,
)
from torch import Tensor
from torchvision.ops.boxes import batched_nms, box_area

from sam_blvit.config import THRESHOLDS
from sam_blvit.cost.latency import now
from sam_blvit.data.images import to_rgb
from sam_blvit.generator_options import checked_options
from sam_blvit.model.decoder import bytes_of_a_mask, decode_above, enlarge, in_chunks
from sam_blvit.model.sam import Sam
from sam_blvit.predictor import SamPredictor


@dataclass(frozen=True)
class Candidates:
    """n masks at the decoder's resolution: G * G * 64 bytes each, for a photograph of any size."""

    logits: Tensor
    """(n, 4G, 4G)."""
    predicted_iou: Tensor
    """(n,)."""
    stability: Tensor
    """(n,)."""
    boxes: Tensor
    """(n, 4) X0, Y0, X1, Y1 in pixels of the photograph; X1 and Y1 are inclusive."""
    points: Tensor
    """(n, 2) float64 X, Y in pixels of the photograph: the point that each mask was predicted from."""
    crops: Tensor
    """(n,) index of the crop that each mask was found in."""

    def picked(self, index: Tensor) -> Candidates:
        """The candidates that `index` selects, in its order."""
        return Candidates(*(getattr(self, field.name)[index] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Candidates]) -> Candidates:
        """The candidates of all `parts`, in order."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


class SamAutomaticMaskGenerator(OriginalGenerator):
    """A drop-in replacement for SAM's generator that also accepts grey, RGBA and PIL images.

    Options, records and public methods are SAM's. The original's private steps, such as `_process_batch`, are not
    called. `pred_iou_thresh` and `stability_score_thresh` default to the values in the model's config.
    `points_per_batch` is an upper bound: fewer points are decoded at once if `CHUNK_BYTES` holds fewer.

    Raises:
        ValueError: If an option is invalid.
    """

    __signature__ = inspect.signature(OriginalGenerator)  # the original's options and defaults

    def __init__(self, model: OriginalSam, *args: Any, **kwargs: Any) -> None:
        given = self.__signature__.bind(model, *args, **kwargs).arguments
        if isinstance(model, Sam):
            given = {name: getattr(model.config, name) for name in THRESHOLDS} | given
        defaults = {name: option.default for name, option in self.__signature__.parameters.items()}
        super().__init__(**given | {"point_grids": checked_options(defaults | given)})
        self.predictor = SamPredictor(model)
        self.milliseconds: dict[str, float] = {}
        """Time of the last photograph: encoder (resizing and embedding the crops), decoder, and the rest."""

    @torch.no_grad()
    def generate(self, image: np.ndarray | Image.Image) -> list[dict[str, Any]]:
        """Mask every object of an RGB image. Threads may share a generator.

        Returns:
            One record for each mask: `segmentation` in the chosen output mode, `area` in pixels, `bbox` as X, Y,
            width, height, `predicted_iou`, `stability_score`, `point_coords` and `crop_box`.

        Raises:
            ValueError: If `sam_blvit.data.images.to_rgb` does not accept the image, or it is too small for
                `crop_n_layers`.
        """
        start = now(self.predictor.device)
        call = copy.copy(self)  # each call has its own photograph and times
        call.predictor = copy.copy(self.predictor)
        call.milliseconds = {"encoder": 0.0, "decoder": 0.0}
        records = call._records(to_rgb(image))
        everything = now(self.predictor.device) - start
        self.milliseconds = call.milliseconds | {"rest": everything - sum(call.milliseconds.values())}
        return records

    def _records(self, photograph: np.ndarray) -> list[dict[str, Any]]:
        size = (photograph.shape[0], photograph.shape[1])
        crops, layers = self._crops(size)
        found = Candidates.joined([self._in_crop(photograph, crops, *which) for which in enumerate(layers)])
        if len(crops) > 1:  # masks of smaller crops win
            found = found.picked(_distinct(found.boxes, 1 / box_area(crops[found.crops]), self.crop_nms_thresh))
        if self.min_mask_region_area > 0:
            found, runs = self._tidied(found, crops, size)
        else:
            runs = [run_lengths(self._mask(found, i, crops, size)) for i in range(len(found.boxes))]
        return [
            {
                "segmentation": self._segmentation(lengths, size),
                "area": int(lengths[1::2].sum()),
                "bbox": _corner_and_sides(found.boxes[i]),
                "predicted_iou": found.predicted_iou[i].item(),
                "point_coords": [found.points[i].tolist()],
                "stability_score": found.stability[i].item(),
                "crop_box": _corner_and_sides(crops[found.crops[i]]),
            }
            for i, lengths in enumerate(runs)
        ]

    def _crops(self, size: tuple[int, int]) -> tuple[Tensor, list[int]]:
        """Boxes (n, 4) of the crops of a photograph of `size` (H, W), and the layer of each.

        Raises:
            ValueError: If a crop would be empty.
        """
        if 2**self.crop_n_layers <= min(size):  # otherwise there are more crops along a side than pixels
            boxes, layers = generate_crop_boxes(size, self.crop_n_layers, self.crop_overlap_ratio)
            crops = torch.tensor(boxes)
            if (crops[:, 2:] > crops[:, :2]).all():
                return crops, layers
        raise ValueError(
            f"crop_n_layers={self.crop_n_layers} makes empty crops of an image of {size[1]} x {size[0]} "
            "(width x height); use fewer layers"
        )

    def _in_crop(self, photograph: np.ndarray, crops: Tensor, crop: int, layer: int) -> Candidates:
        """The distinct masks that the points of `layer` give in the crop with index `crop`."""
        x0, y0, x1, y1 = crops[crop].tolist()
        start = now(self.predictor.device)
        self.predictor.set_image(photograph[y0:y1, x0:x1])
        self.milliseconds["encoder"] += now(self.predictor.device) - start
        points = torch.as_tensor(self.point_grids[layer] * (x1 - x0, y1 - y0))
        parts = [self._at_points(some) for some in points.split(self.points_per_batch)]
        self.predictor.reset_image()
        found = Candidates.joined(parts)
        whole = [0, 0, photograph.shape[1], photograph.shape[0]]
        found = found.picked(~is_box_near_crop_edge(found.boxes, crops[crop].tolist(), whole))
        found = found.picked(_distinct(found.boxes, found.predicted_iou, self.box_nms_thresh))
        return replace(
            found,
            boxes=found.boxes + torch.tensor([x0, y0, x0, y0]),
            points=found.points + torch.tensor([x0, y0]),
            crops=torch.full_like(found.crops, crop),
        )

    def _at_points(self, points: Tensor) -> Candidates:
        """The masks of `points` (n, 2), in pixels of the current crop, that pass both thresholds."""
        predictor = self.predictor
        start = now(predictor.device)
        coords = torch.as_tensor(
            predictor.transform.apply_coords(points.numpy(), predictor.original_size), device=predictor.device
        )
        labels = torch.ones(len(coords), 1, dtype=torch.int, device=coords.device)
        logits, predicted, above = decode_above(
            predictor.model,
            predictor.features,
            (coords[:, None], labels),
            self.pred_iou_thresh if self.pred_iou_thresh > 0 else -math.inf,
        )
        self.milliseconds["decoder"] += now(predictor.device) - start
        stability, boxes = in_chunks(
            lambda part: self._judged(logits[part]),
            len(logits),
            bytes_of_a_mask(predictor.model, predictor.original_size),
        )
        found = Candidates(
            logits=logits,
            predicted_iou=predicted.cpu(),
            stability=stability,
            boxes=boxes,
            points=points[above.cpu().nonzero()[:, 0]],
            crops=torch.zeros(len(logits), dtype=torch.long),
        )
        if self.stability_score_thresh > 0:
            found = found.picked(stability >= self.stability_score_thresh)
        return found

    def _judged(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Stability scores (n,) and boxes (n, 4) of masks from `logits` (n, 4G, 4G), in pixels of the current crop."""
        if not len(logits):
            return torch.zeros(0), torch.zeros(0, 4, dtype=torch.long)
        predictor, limit, offset = self.predictor, self.predictor.model.mask_threshold, self.stability_score_offset
        sizes = predictor.input_size, predictor.original_size
        full = enlarge(predictor.model, logits[:, None], *sizes, binary=False).squeeze(1)
        strict, masks, loose = (full > level for level in (limit + offset, limit, limit - offset))
        if full.device.type != "cpu":
            inside, outside = (each.flatten(1).sum(1).cpu() for each in (strict, loose))
            return inside / outside, batched_mask_to_box(masks).cpu()
        inside, outside = (torch.tensor([np.count_nonzero(one) for one in each.numpy()]) for each in (strict, loose))
        return inside / outside, torch.from_numpy(boxes_of(masks.numpy()))

    def _mask(self, found: Candidates, index: int, crops: Tensor, size: tuple[int, int]) -> np.ndarray:
        """The mask (H, W) of the candidate with index `index` on a photograph of `size`."""
        x0, y0, x1, y1 = crops[found.crops[index]].tolist()
        transform = self.predictor.transform
        resized = transform.get_preprocess_shape(y1 - y0, x1 - x0, transform.target_length)
        mask = enlarge(self.predictor.model, found.logits[index][None, None], resized, (y1 - y0, x1 - x0))[0, 0]
        whole = np.zeros(size, dtype=bool)
        whole[y0:y1, x0:x1] = mask.cpu().numpy()
        return whole

    def _tidied(self, found: Candidates, crops: Tensor, size: tuple[int, int]) -> tuple[Candidates, list[np.ndarray]]:
        """Fill holes and remove islands below the minimum area.

        If two masks overlap too much afterwards, the unchanged one is kept.

        Returns:
            The remaining candidates and their run lengths.
        """
        runs, boxes, untouched = [], [], []
        for i in range(len(found.boxes)):
            mask, changed = self._mask(found, i, crops, size), False
            for kind in ("holes", "islands"):
                mask, mended = remove_small_regions(mask, self.min_mask_region_area, mode=kind)
                changed = changed or mended
            runs.append(run_lengths(mask))
            boxes.append(torch.from_numpy(boxes_of(mask[None])))
            untouched.append(float(not changed))
        found = replace(found, boxes=torch.cat([found.boxes[:0], *boxes]))
        kept = _distinct(found.boxes, torch.tensor(untouched), max(self.box_nms_thresh, self.crop_nms_thresh))
        return found.picked(kept), [runs[i] for i in kept]

    def _segmentation(self, runs: np.ndarray, size: tuple[int, int]) -> np.ndarray | dict[str, Any]:
        """A mask of a photograph of `size` in the chosen output mode, from its run lengths."""
        if self.output_mode == "binary_mask":
            return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[1], size[0]).T
        rle = {"size": list(size), "counts": runs.tolist()}
        return coco_encode_rle(rle) if self.output_mode == "coco_rle" else rle


def run_lengths(mask: np.ndarray) -> np.ndarray:
    """Run lengths of `mask` (H, W) in column-major order, starting with background: COCO's counts."""
    pixels = mask.T.reshape(-1)
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    first = [0, 0] if pixels[0] else [0]
    return np.diff(np.concatenate([first, changes, [len(pixels)]]))


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) X0, Y0, X1, Y1 around `masks` (n, H, W); X1 and Y1 are inclusive. Empty masks have zeros."""
    columns, rows = np.any(masks, axis=1), np.any(masks, axis=2)
    first = [lines.argmax(axis=1) for lines in (columns, rows)]
    last = [lines.shape[1] - 1 - lines[:, ::-1].argmax(axis=1) for lines in (columns, rows)]
    return np.stack(first + last, axis=1) * np.any(rows, axis=1)[:, None]


def _distinct(boxes: Tensor, scores: Tensor, most_overlap: float) -> Tensor:
    """Non-maximum suppression: indices of the `boxes` (n, 4) to keep, by falling `scores` (n,)."""
    return batched_nms(boxes.float(), scores, torch.zeros(len(boxes)), most_overlap)


def _corner_and_sides(box: Tensor) -> list[int]:
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]
