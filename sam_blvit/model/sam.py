"""SAM around this package's image encoder: segment_anything's class, with inputs padded as the encoder needs.

Shapes:
    B  images    h, w  an image after resizing, longest side `img_size`    G  tokens along a side
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything.modeling import Sam as OriginalSam
from torch import Tensor

from sam_blvit.config import ModelConfig
from sam_blvit.model.decoder import decode, enlarge
from sam_blvit.model.encoder import Encoding, ImageEncoder
from sam_blvit.model.plain import check_float32
from sam_blvit.model.prompts import check_prompts
from sam_blvit.model.resize import Resize


@dataclass(frozen=True)
class PhotographEncoding(Encoding):
    """The encoding of one photograph, B = 1."""

    input_size: tuple[int, int]
    """Height and width (h, w) of the resized photograph, without padding."""


class Sam(OriginalSam):
    """A `segment_anything.modeling.Sam` whose image encoder is dense or big.LITTLE.

    `segment_anything.SamPredictor` and `SamAutomaticMaskGenerator` run on it unchanged.
    """

    image_encoder: ImageEncoder

    @property
    def config(self) -> ModelConfig:
        """The model's config, which is stored in its checkpoints."""
        return self.image_encoder.config

    @property
    def name(self) -> str:
        """The model's name in tables."""
        return self.config.name

    def preprocess(self, x: Tensor) -> Tensor:
        """Normalise pixels `x` (..., 3, h, w), 0 to 255, and zero-pad right and below to the encoder's input.

        This is SAM's square for dense models, and whole windows for a big.LITTLE model without padded windows.
        """
        return self._padded(x, self.image_encoder.padded_size(*x.shape[-2:]))

    @torch.no_grad()
    def encode_photograph(
        self, pixels: NDArray[np.uint8] | Tensor, *, features_of: Collection[int] = (), with_benefits: bool = False
    ) -> PhotographEncoding:
        """Resize, normalise, pad and encode one photograph. A compiled encoder runs eagerly here.

        Args:
            pixels: RGB array (H, W, 3) uint8, which is resized unless its longest side is already `img_size`; or a
                resized tensor (3, h, w), 0 to 255.
            features_of: Layers (from 1) whose outputs are returned.
            with_benefits: Whether to return the benefit of each token at each router.
        """
        side = self.image_encoder.img_size
        image = Resize(side).to_tensor(pixels) if isinstance(pixels, np.ndarray) else pixels
        normalised = self.preprocess(image.to(self.device))
        encoding = self.image_encoder.encode(normalised[None], features_of=features_of, with_benefits=with_benefits)
        return PhotographEncoding(**vars(encoding), input_size=(image.shape[-2], image.shape[-1]))

    def encode_images(self, images: Sequence[Tensor]) -> Tensor:
        """Embed resized images. Images of the same padded size share a batch; no embedding depends on other images.

        Args:
            images: B tensors (3, h, w), 0 to 255.

        Returns:
            (B, 256, G, G)
        """
        groups = self._by_padded_size(images)
        embeddings = torch.cat([self.image_encoder(batch) for _, batch in groups])
        order = torch.tensor([place for places, _ in groups for place in places])
        return embeddings[order.argsort()]

    def encode_by_shape(
        self,
        images: Sequence[Tensor],
        *,
        branch_scale: Tensor | None = None,
        features_of: Collection[int] = (),
        with_benefits: bool = False,
    ) -> list[tuple[list[int], Encoding]]:
        """Encode resized images in groups of the same padded size, so that no embedding depends on other images.

        Args:
            images: B tensors (3, h, w), 0 to 255.
            branch_scale: (B, layers, 2), see `ImageEncoder.encode`.
            features_of: See `ImageEncoder.encode`.
            with_benefits: See `ImageEncoder.encode`.

        Returns:
            For each padded size, the indices of its images in `images` and their encoding.
        """
        return [
            (
                places,
                self.image_encoder.encode(
                    batch,
                    branch_scale=None if branch_scale is None else branch_scale[places],
                    features_of=features_of,
                    with_benefits=with_benefits,
                ),
            )
            for places, batch in self._by_padded_size(images)
        ]

    @torch.no_grad()
    def forward(self, batched_input: list[dict[str, Any]], multimask_output: bool) -> list[dict[str, Tensor]]:
        """Predict masks for a batch, as segment_anything does. Images may have different shapes.

        Args:
            batched_input: One dictionary of an image and its prompts for each image; may be empty.
            multimask_output: Whether to predict three masks for each prompt, or one.

        Returns:
            One dictionary of masks for each image.

        Raises:
            ValueError: If `check_prompts` rejects a prompt.
        """
        if not batched_input:
            return []
        embeddings = self.encode_images([record["image"] for record in batched_input])
        return [
            self._masks_of(record, embedding[None], multimask_output)
            for record, embedding in zip(batched_input, embeddings, strict=True)
        ]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Sam:
        """Apply `to`, `half`, `double` or a wrapper's conversion. Parameters must stay in float32, else ValueError."""
        check_float32(fn(torch.zeros(1)).dtype, self.config.name)
        return super()._apply(fn, recurse)

    def _masks_of(self, record: dict[str, Any], embedding: Tensor, multimask_output: bool) -> dict[str, Tensor]:
        prompts = check_prompts(
            self,
            coords=record.get("point_coords"),
            labels=record.get("point_labels"),
            boxes=record.get("boxes"),
            masks=record.get("mask_inputs"),
        )
        logits, iou = decode(self, embedding, **prompts, multimask_output=multimask_output)
        masks = enlarge(self, logits, record["image"].shape[-2:], record["original_size"])
        return {"masks": masks, "iou_predictions": iou, "low_res_logits": logits}

    def _by_padded_size(self, images: Sequence[Tensor]) -> list[tuple[list[int], Tensor]]:
        """For each padded size of `images`, their indices and their normalised pixels as one batch."""
        groups: dict[tuple[int, int], list[int]] = {}
        for place, image in enumerate(images):
            groups.setdefault(self.image_encoder.padded_size(*image.shape[-2:]), []).append(place)
        return [
            (places, torch.stack([self._padded(images[place], size) for place in places]))
            for size, places in groups.items()
        ]

    def _padded(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if x.ndim < 3 or x.shape[-3] != 3:
            raise ValueError(
                f"image of shape {tuple(x.shape)}: (..., 3, height, width) is expected; put the colours before "
                "height and width"
            )
        if x.shape[-2] > size[0] or x.shape[-1] > size[1]:
            raise ValueError(
                f"image of height {x.shape[-2]} and width {x.shape[-1]} is larger than {self.config.name}'s input of "
                f"{size[0]} x {size[1]}; resize its longest side first, as SamPredictor does"
            )
        x = (x - self.pixel_mean) / self.pixel_std
        return F.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2]))
