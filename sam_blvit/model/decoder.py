"""SAM's mask decoder for many prompts on one image: what they share is computed once, and memory is bounded.

It runs the weights of a segment_anything `MaskDecoder` and gives the same results up to rounding, by the arithmetic of
`folded_decoder` where that applies. Masks that are not needed are not computed.

Shapes:
    P  prompts    G  cells along a side of the embedding    C  channels    M  masks of a prompt
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling import Sam as OriginalSam
from torch import Tensor, nn

from sam_blvit.model.folded_decoder import is_foldable, mask_logits, run_transformer
from sam_blvit.model.plain import check_float32

CHUNK_BYTES = 512 << 20
"""Approximate memory for prompts decoded together, or masks enlarged together, beyond their results."""
Logits = Callable[[slice | Tensor], Tensor]
"""Mask logits (n, M, 4G, 4G) of the n prompts that an index selects."""


def decode(
    sam: OriginalSam,
    embedding: Tensor,
    *,
    points: tuple[Tensor, Tensor | None] | None = None,
    boxes: Tensor | None = None,
    masks: Tensor | None = None,
    multimask_output: bool,
) -> tuple[Tensor, Tensor]:
    """Decode P prompts on one image, in chunks of `CHUNK_BYTES`.

    Args:
        sam: any segment_anything Sam.
        embedding: (1, 256, G, G)
        points: coordinates (P, n, 2) in pixels of the resized image, and labels (P, n).
        boxes: (P, 4) X0, Y0, X1, Y1 in pixels of the resized image.
        masks: (P, 1, 4G, 4G) logits, or (1, 1, 4G, 4G) for all prompts.
        multimask_output: three masks for each prompt, or one.

    Returns:
        Mask logits (P, 3 or 1, 4G, 4G) and predicted IoU (P, 3 or 1), float32 even under autocast.

    Raises:
        ValueError: if there are different numbers of points, labels, boxes and masks.
    """
    prompts = (*(points or (None, None)), boxes, masks)
    counts = [len(each) for each in prompts[:3] if each is not None]
    count = max(counts, default=1 if masks is None else len(masks))
    if min(counts, default=count) < count or (masks is not None and len(masks) not in (1, count)):
        numbers = ", ".join(_numbers(*prompts))
        raise ValueError(f"prompts of different numbers: {numbers}; give one of every kind for each prompt")

    def decoded(part: slice) -> tuple[Tensor, Tensor]:
        coords, labels, *rest = (each if each is None or len(each) == 1 else each[part] for each in prompts)
        predicted, logits = _predictions(sam, embedding, coords, labels, *rest, multimask_output=multimask_output)
        return logits(slice(None)).float(), predicted.float()

    tokens = 8 + (0 if points is None else points[0].shape[1])  # at most: 5 of the decoder, 2 corners, 1 of padding
    logits, predicted = in_chunks(decoded, count, _bytes_of_a_prompt(embedding, tokens))
    return logits, predicted


def decode_originally(
    sam: OriginalSam,
    embedding: Tensor,
    *,
    points: tuple[Tensor, Tensor] | None = None,
    boxes: Tensor | None = None,
    multimask_output: bool,
) -> tuple[Tensor, Tensor]:
    """As `decode`, by the decoder's own forward and all prompts at once: the reference for `decode`."""
    sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=None)
    return sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask_output,
    )


def decode_above(
    sam: OriginalSam, embedding: Tensor, points: tuple[Tensor, Tensor], least: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode only masks of high predicted IoU, out of three for each of P prompts.

    Args:
        sam: as in `decode`.
        embedding: as in `decode`.
        points: as in `decode`.
        least: masks whose predicted IoU is above this are decoded.

    Returns:
        Of the n masks, in order: logits (n, 4G, 4G) and predicted IoU (n,). And which they are, (P, 3) bool.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    size = _chunk_size(_bytes_of_a_prompt(embedding, 8 + points[0].shape[1]))
    for coords, labels in zip(*(each.split(size) for each in points), strict=True):
        predicted, logits = _predictions(sam, embedding, coords, labels, None, None, multimask_output=True)
        predicted = predicted.float()  # before the comparison: under autocast it is rounded
        above = predicted > least
        some = above.any(dim=1)
        found.append((logits(some)[above[some]].float(), predicted[above], above))
    logits_of_all, predicted_of_all, above_of_all = (torch.cat(each) for each in zip(*found, strict=True))
    return logits_of_all, predicted_of_all, above_of_all


def enlarge(
    sam: OriginalSam, logits: Tensor, resized: tuple[int, int], size: tuple[int, int], *, binary: bool = True
) -> Tensor:
    """Enlarge mask logits to the size of the image, in chunks of `CHUNK_BYTES`.

    Args:
        sam: the model that made them.
        logits: (P, M, 4G, 4G)
        resized: height and width of the image as the encoder saw it.
        size: H and W of the image.
        binary: whether masks are returned, or logits.

    Returns:
        (P, M, H, W), bool if `binary`.
    """

    def enlarged(part: slice) -> tuple[Tensor]:
        full = sam.postprocess_masks(logits[part], resized, size)
        return (full > sam.mask_threshold if binary else full,)

    (whole,) = in_chunks(enlarged, len(logits), bytes_of_a_mask(sam, size) * logits.shape[1])
    return whole


def bytes_of_a_mask(sam: OriginalSam, size: tuple[int, int]) -> int:
    """Memory for enlarging one mask to `size` (H, W); it passes through the square of the encoder's input."""
    return 4 * (2 * sam.image_encoder.img_size**2 + math.prod(size))


def predict_masks(
    decoder: MaskDecoder,
    *,
    image_embeddings: Tensor,
    image_pe: Tensor,
    sparse_prompt_embeddings: Tensor,
    dense_prompt_embeddings: Tensor,
    counts: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """`MaskDecoder.predict_masks` up to rounding, for prompts on one or several images.

    Args:
        decoder: segment_anything's.
        image_embeddings: (B, C, G, G)
        image_pe: (1, C, G, G)
        sparse_prompt_embeddings: (P, t, C)
        dense_prompt_embeddings: (P, C, G, G), or (1, C, G, G), possibly expanded, for all prompts.
        counts: number of prompts on each image, in order. None: all on the only image.

    Returns:
        Logits (P, 4, 4G, 4G) and predicted IoU (P, 4).
    """
    counts = [len(sparse_prompt_embeddings)] if counts is None else counts
    if not is_foldable(decoder, sparse_prompt_embeddings, image_embeddings):
        dense = dense_prompt_embeddings.expand(len(sparse_prompt_embeddings), -1, -1, -1)
        prompts = zip(sparse_prompt_embeddings.split(counts), dense.split(counts), strict=True)
        decoded = [
            decoder.predict_masks(
                image_embeddings=image,
                image_pe=image_pe,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=masks,
            )
            for image, (sparse, masks) in zip(image_embeddings.split(1), prompts, strict=True)
        ]
        logits, predicted = (torch.cat(parts) for parts in zip(*decoded, strict=True))
        return logits, predicted
    if len(counts) > 1:
        of_images = zip(image_embeddings.split(1), counts, strict=True)
        image_embeddings = torch.cat([image.expand(count, -1, -1, -1) for image, count in of_images])
    tokens, image = run_transformer(
        decoder, image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings
    )
    return mask_logits(decoder, tokens, image, slice(None)), decoder.iou_prediction_head(tokens[:, 0])


def in_chunks(work: Callable[[slice], tuple[Tensor, ...]], count: int, bytes_of_one: int) -> tuple[Tensor, ...]:
    """Results of `work` on slices of `count` items, joined: as many at once as fit in `CHUNK_BYTES`, at least one."""
    size = _chunk_size(bytes_of_one)
    if count <= size:
        return work(slice(0, count))
    wholes: tuple[Tensor, ...] = ()
    for start in range(0, count, size):
        parts = work(slice(start, start + size))
        wholes = wholes or tuple(part.new_empty(count, *part.shape[1:]) for part in parts)
        for whole, part in zip(wholes, parts, strict=True):
            whole[start : start + size] = part
    return wholes


def _chunk_size(bytes_of_one: int) -> int:
    return max(1, CHUNK_BYTES // bytes_of_one)


def _numbers(coords: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None) -> list[str]:
    """The number of each kind of prompt, for an error message."""
    kinds = {"points": coords, "labels": labels, "boxes": boxes, "masks": masks}
    return [f"{len(each)} {kind}" for kind, each in kinds.items() if each is not None]


def _bytes_of_a_prompt(embedding: Tensor, tokens: int) -> int:
    """Peak in float32, N = G * G: upscaling has two of 16 N x C / 8 and some N x C, attention two maps."""
    return 4 * embedding[0, 0].numel() * (7 * embedding.shape[1] + 2 * 8 * tokens)


def _predictions(
    sam: OriginalSam,
    embedding: Tensor,
    coords: Tensor | None,
    labels: Tensor | None,
    boxes: Tensor | None,
    masks: Tensor | None,
    *,
    multimask_output: bool,
) -> tuple[Tensor, Logits]:
    """Predicted IoU (P, M), and a function that gives the logits of selected prompts."""
    if not torch.is_autocast_enabled(embedding.device.type):  # which brings dtypes together
        for name in ("prompt_encoder", "mask_decoder"):
            part = getattr(sam, name)
            parameters = part.parameters() if isinstance(part, nn.Module) else ()  # a wrapped Sam may have a function
            dtypes = (parameter.dtype for parameter in parameters if parameter.is_floating_point())
            check_float32(next(dtypes, torch.float32), name)
    exact = all(weight.dtype == torch.float32 for weight in sam.prompt_encoder.parameters())
    # coordinates need more than the eight bits that a caller's autocast to bfloat16 would leave
    with torch.autocast(embedding.device.type, enabled=False) if exact else nullcontext():
        points = None if coords is None else (coords, labels)
        sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
        positions = sam.prompt_encoder.get_dense_pe()
    decoder = sam.mask_decoder
    if not is_foldable(decoder, sparse, embedding):
        logits, predicted = decoder(
            image_embeddings=embedding,
            image_pe=positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
        )
        return predicted, logits.__getitem__
    outputs = slice(1, None) if multimask_output else slice(0, 1)
    tokens, image = run_transformer(decoder, embedding, positions, sparse, dense)
    predicted = decoder.iou_prediction_head(tokens[:, 0])[:, outputs]
    return predicted, lambda prompts: mask_logits(decoder, tokens[prompts], image[prompts], outputs)
