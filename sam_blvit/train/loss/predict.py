"""SAM's prompt encoder and mask decoder on the prompts of several photographs.

One call decodes all prompts with the same number of tokens, from all photographs. Decoding a few masks at a time would
launch thousands of small kernels.

Shapes:
    B  photographs    P  prompts of all of them    T  tokens of a prompt    G  tokens along a side
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from sam_blvit.model.decoder import predict_masks
from sam_blvit.model.sam import Sam

DecoderOutput = tuple[Tensor, Tensor]
"""Logits (P, 4, 4G, 4G) and predicted IoU (P, 4) of every output of the decoder."""


def predict_all(
    sam: Sam, embeddings: Tensor, counts: Sequence[int], coords: Tensor, labels: Tensor, last: Tensor | None
) -> DecoderOutput:
    """Decode all prompts, with all four outputs of the mask decoder.

    Args:
        sam: The model.
        embeddings: (B, 256, G, G). The first photograph has the first `counts[0]` prompts, and so on.
        counts: Number of prompts of each photograph, P in total.
        coords: (P, T, 2), as in PromptBatch.
        labels: (P, T), as in PromptBatch.
        last: (P, 1, 4G, 4G), logits of earlier masks to feed back. None in the first round.
    """
    with torch.autocast(embeddings.device.type, enabled=False):  # coordinates need more than bf16's eight bits
        _, dense = sam.prompt_encoder(points=None, boxes=None, masks=last)
        sparse = embed_points(sam.prompt_encoder, coords, labels)
        positions = sam.prompt_encoder.get_dense_pe()
    return predict_masks(
        sam.mask_decoder,
        image_embeddings=embeddings,
        image_pe=positions,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        counts=counts,
    )


def embed_points(prompt_encoder: PromptEncoder, coords: Tensor, labels: Tensor) -> Tensor:
    """Embed the tokens of prompts.

    The result equals that of the prompt encoder, which takes points and boxes separately and supports only some
    mixtures of them.

    Args:
        prompt_encoder: SAM's prompt encoder.
        coords: (P, T, 2), as in PromptBatch.
        labels: (P, T), -1 to 3, as in PromptBatch.

    Returns:
        (P, T, 256)
    """
    kinds = torch.cat([prompt_encoder.not_a_point_embed.weight, *(e.weight for e in prompt_encoder.point_embeddings)])
    places = prompt_encoder.pe_layer.forward_with_coords(coords + 0.5, prompt_encoder.input_image_size)
    return torch.where(labels[..., None] >= 0, places, 0) + kinds[labels + 1]
