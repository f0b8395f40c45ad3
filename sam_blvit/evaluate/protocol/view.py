"""A photograph as SAM's decoder sees it: embedded once, then asked with any number of prompts.

Works with anything of segment_anything's shape: an image encoder with `img_size`, a prompt encoder, a mask decoder,
`preprocess`, `postprocess_masks` and `mask_threshold`.

Shapes:
    P  prompts of a batch    n  points of a prompt    H, W  the photograph    G  tokens along a side
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam as OriginalSam
from torch import Tensor

from sam_blvit.config import EVALUATION_CHOICES
from sam_blvit.model.decoder import decode, enlarge
from sam_blvit.model.resize import Resize
from sam_blvit.model.router import Routing
from sam_blvit.model.sam import Sam
from sam_blvit.predictor import SamPredictor


@dataclass(frozen=True)
class Prompt:
    """P prompts of one kind, in pixels of the photograph."""

    points: NDArray[np.floating | np.integer] | None = None
    """(P, n, 2), each X, Y."""
    labels: NDArray[np.integer] | None = None
    """(P, n), 1 on the object, 0 off it."""
    boxes: NDArray[np.floating] | None = None
    """(P, 4), each X0, Y0, X1, Y1."""
    logits: Tensor | None = None
    """(P, 1, 4G, 4G) of an earlier answer."""

    @property
    def one_point(self) -> bool:
        """Whether each prompt is a single point, which may mean a part or the whole."""
        return self.points is not None and self.points.shape[1] == 1 and self.boxes is None


@dataclass(frozen=True)
class Answer:
    """One mask for each prompt."""

    masks: NDArray[np.bool_]
    """(P, H, W)."""
    predicted: NDArray[np.floating]
    """(P,) predicted IoU, percent."""
    logits: Tensor
    """(P, 1, 4G, 4G)."""


@dataclass(frozen=True)
class View:
    """An embedded photograph."""

    sam: OriginalSam
    embedding: Tensor
    """(1, 256, G, G)."""
    size: tuple[int, int]
    """Height and width of the photograph."""
    resized: tuple[int, int]
    """Height and width as the encoder saw it, without padding."""
    routings: Mapping[int, Routing] = field(default_factory=dict)
    """What routers chose, by the layer they follow, if asked for; nothing where the model has none or none ran."""

    @classmethod
    def of(
        cls, sam: OriginalSam, resized: NDArray[np.uint8], size: tuple[int, int], *, with_routings: bool = False
    ) -> View:
        """Embed a photograph of `size` (H, W) from its `resized` pixels (h, w, 3)."""
        if with_routings and isinstance(sam, Sam):
            encoding = sam.encode_photograph(resized)
            return cls(
                sam=sam,
                embedding=encoding.embedding,
                size=size,
                resized=encoding.input_size,
                routings=encoding.routings,
            )
        predictor = SamPredictor(sam)
        image = predictor.transform.to_tensor(resized)[None].to(sam.device)
        predictor.set_torch_image(image, size)
        return cls(sam=sam, embedding=predictor.features, size=size, resized=predictor.input_size)

    @torch.no_grad()
    def answer(self, prompt: Prompt, select: str, truth: NDArray[np.bool_] | None = None) -> Answer:
        """The mask that the rule `select` picks for each prompt: argmax, single, oracle or sam.

        A mask is picked from the decoder's own small ones, so that one a prompt is enlarged; the oracle alone needs
        all of them enlarged, and the `truth` (P, H, W).
        """
        assert select in EVALUATION_CHOICES["select"]
        multimask = select in ("argmax", "oracle") or (select == "sam" and prompt.one_point)
        logits, predicted = self._decoded(prompt, multimask=multimask)
        if select == "oracle":
            assert truth is not None, "the oracle looks at the truth"
            best = self._ious(logits, truth).argmax(dim=1).to(logits.device)
        else:
            best = predicted.argmax(dim=1)
        each = torch.arange(len(logits), device=logits.device)
        chosen = logits[each, best][:, None]
        return Answer(
            masks=self._enlarged(chosen)[:, 0].cpu().numpy(),
            predicted=100 * predicted[each, best].float().cpu().numpy().astype(np.float64),
            logits=chosen,
        )

    @torch.no_grad()
    def best_iou(self, prompt: Prompt, truth: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Highest IoU (P,), percent, that one of the decoder's three masks has with the `truth` (P, H, W)."""
        logits, _ = self._decoded(prompt, multimask=True)
        return self._ious(logits, truth).amax(dim=1).numpy()

    def _decoded(self, prompt: Prompt, *, multimask: bool) -> tuple[Tensor, Tensor]:
        logits, predicted = decode(self.sam, self.embedding, **self._tensors(prompt), multimask_output=multimask)
        if not (logits.isfinite().all() and predicted.isfinite().all()):
            raise ValueError("the model's masks or predicted IoUs hold NaN or infinity; check its weights and dtype")
        return logits, predicted

    def _ious(self, logits: Tensor, truth: NDArray[np.bool_]) -> Tensor:
        """IoU (P, 3) float64, percent, of every mask with the `truth` (P, H, W), from whole numbers of pixels."""
        masks = self._enlarged(logits).flatten(2)
        true = torch.as_tensor(truth, device=masks.device)[:, None].flatten(2)
        return 100 * (masks & true).sum(-1).cpu().double() / (masks | true).sum(-1).cpu().double()

    def _enlarged(self, logits: Tensor) -> Tensor:
        return enlarge(self.sam, logits, self.resized, self.size)

    def _tensors(self, prompt: Prompt) -> dict[str, Any]:
        resize = Resize(self.sam.image_encoder.img_size)
        points = boxes = None
        if prompt.points is not None:
            assert prompt.labels is not None
            points = (self._tensor(resize.apply_coords(prompt.points, self.size)), self._tensor(prompt.labels))
        if prompt.boxes is not None:
            boxes = self._tensor(resize.apply_boxes(prompt.boxes, self.size))
        return {"points": points, "boxes": boxes, "masks": prompt.logits}

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=self.sam.device)
