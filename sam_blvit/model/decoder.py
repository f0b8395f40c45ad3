"""SAM's mask decoder for many prompts on one image: what they share is computed once, and memory is bounded.

Runs the weights of a segment_anything `MaskDecoder`, with its results to rounding. What it saves: layer 1 projects the
image once, not once a prompt; where each prompt has an image of its own, projections are folded into the few tokens
instead of applied to the many pixels; upscaling keeps channels last; masks that nobody asked for are not made.

Shapes:
    P  prompts    T  tokens of a prompt    K  images attended to: 1 for all prompts, or P    N  G * G, pixels of each
    C  channels   H, D  attention heads and the channels of each    M  masks of a prompt
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling import Sam as OriginalSam
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

from sam_blvit.model.plain import check_float32, is_plain

CHUNK_BYTES = 512 << 20
"""Memory that prompts decoded together, or masks enlarged together, may take beyond their results, about."""
MOST_TOKENS = 16
"""From more tokens a prompt on folded projections cost more than SAM's own, and the decoder's own forward runs."""
KNOWN_PARTS = {
    *(MaskDecoder, TwoWayTransformer, TwoWayAttentionBlock, Attention, MLP, MLPBlock, LayerNorm2d),
    *(nn.Sequential, nn.ModuleList, nn.Embedding, nn.Linear, nn.LayerNorm, nn.ConvTranspose2d, nn.GELU, nn.ReLU),
}
"""Modules whose forward may be replaced by arithmetic on their weights; a subclass's may not."""
Logits = Callable[[slice | Tensor], Tensor]
"""Mask logits (n, M, 4G, 4G) of the n prompts that an index picks."""


def decode(
    sam: OriginalSam,
    embedding: Tensor,
    *,
    points: tuple[Tensor, Tensor | None] | None = None,
    boxes: Tensor | None = None,
    masks: Tensor | None = None,
    multimask_output: bool,
) -> tuple[Tensor, Tensor]:
    """Masks of any segment_anything Sam for P prompts on one image, in chunks of `CHUNK_BYTES`.

    `embedding` (1, 256, G, G); `points` coordinates (P, n, 2) and labels (P, n); `boxes` (P, 4); `masks`
    (P, 1, 4G, 4G) logits, or one for all; coordinates in pixels of the resized image.
    Returns mask logits (P, 3 or 1, 4G, 4G) and predicted IoU (P, 3 or 1), float32 under autocast too. ValueError for
    points, labels, boxes and masks of different numbers.
    """
    prompts = (*(points or (None, None)), boxes, masks)
    counts = [len(each) for each in prompts[:3] if each is not None]
    count = max(counts, default=1 if masks is None else len(masks))
    if min(counts, default=count) < count or (masks is not None and len(masks) not in (1, count)):
        raise ValueError(f"prompts of different numbers: {', '.join(_numbers(*prompts))}; each wants one of every kind")

    def decoded(part: slice) -> tuple[Tensor, Tensor]:
        coords, labels, *rest = (each if each is None or len(each) == 1 else each[part] for each in prompts)
        predicted, logits = _answers(sam, embedding, coords, labels, *rest, multimask_output=multimask_output)
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
    """As `decode`, by the decoder's own forward and all prompts at once: what `decode` is measured beside."""
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
    """Of three masks for each of P prompts the n whose predicted IoU is above `least`, in order; no other is made.

    Arguments are `decode`'s. Returns logits (n, 4G, 4G), predicted IoU (n,), and whose they are, (P, 3) bool.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    size = _chunk_size(_bytes_of_a_prompt(embedding, 8 + points[0].shape[1]))
    for coords, labels in zip(*(each.split(size) for each in points), strict=True):
        predicted, logits = _answers(sam, embedding, coords, labels, None, None, multimask_output=True)
        predicted = predicted.float()  # before the comparison: under autocast it is rounded
        above = predicted > least
        some = above.any(dim=1)
        found.append((logits(some)[above[some]].float(), predicted[above], above))
    logits_of_all, predicted_of_all, above_of_all = (torch.cat(each) for each in zip(*found, strict=True))
    return logits_of_all, predicted_of_all, above_of_all


def enlarge(
    sam: OriginalSam, logits: Tensor, resized: tuple[int, int], size: tuple[int, int], *, binary: bool = True
) -> Tensor:
    """Masks (P, M, H, W) bool, or logits if not `binary`, of an image of `size` (H, W) from `logits` (P, M, 4G, 4G).

    `resized` (h, w) is the image's size as the encoder saw it. In chunks of `CHUNK_BYTES`.
    """

    def enlarged(part: slice) -> tuple[Tensor]:
        full = sam.postprocess_masks(logits[part], resized, size)
        return (full > sam.mask_threshold if binary else full,)

    (whole,) = in_chunks(enlarged, len(logits), bytes_of_a_mask(sam, size) * logits.shape[1])
    return whole


def bytes_of_a_mask(sam: OriginalSam, size: tuple[int, int]) -> int:
    """What enlarging one mask to `size` (H, W) takes: it passes through the square of the encoder's input."""
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
    """`MaskDecoder.predict_masks`, its results to rounding: logits (P, 4, 4G, 4G) and predicted IoU (P, 4).

    `image_embeddings` (B, C, G, G), of which the first has the first of `counts` prompts, and so on; one has all.
    `image_pe` (1, C, G, G); `sparse_prompt_embeddings` (P, t, C); `dense_prompt_embeddings` (P, C, G, G), or
    (1, C, G, G), possibly expanded, for all.
    """
    counts = [len(sparse_prompt_embeddings)] if counts is None else counts
    if not _foldable(decoder, sparse_prompt_embeddings, image_embeddings):
        dense = dense_prompt_embeddings.expand(len(sparse_prompt_embeddings), -1, -1, -1)
        prompts = zip(sparse_prompt_embeddings.split(counts), dense.split(counts), strict=True)
        answers = [
            decoder.predict_masks(
                image_embeddings=image,
                image_pe=image_pe,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=masks,
            )
            for image, (sparse, masks) in zip(image_embeddings.split(1), prompts, strict=True)
        ]
        logits, predicted = (torch.cat(parts) for parts in zip(*answers, strict=True))
        return logits, predicted
    if len(counts) > 1:
        of_images = zip(image_embeddings.split(1), counts, strict=True)
        image_embeddings = torch.cat([image.expand(count, -1, -1, -1) for image, count in of_images])
    tokens, image = _attend(decoder, image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
    return _logits(decoder, tokens, image, slice(None)), decoder.iou_prediction_head(tokens[:, 0])


def in_chunks(work: Callable[[slice], tuple[Tensor, ...]], count: int, bytes_of_one: int) -> tuple[Tensor, ...]:
    """What `work` returns for slices of `count` things, joined: as many at once as `CHUNK_BYTES` holds, or one."""
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
    """How many there are of each kind of prompt, in words."""
    kinds = {"points": coords, "labels": labels, "boxes": boxes, "masks": masks}
    return [f"{len(each)} {kind}" for kind, each in kinds.items() if each is not None]


def _bytes_of_a_prompt(embedding: Tensor, tokens: int) -> int:
    """Of float32 at the widest place: upscaling makes 16 N x C / 8 twice of some N x C; attention two maps."""
    return 4 * embedding[0, 0].numel() * (7 * embedding.shape[1] + 2 * 8 * tokens)


def _answers(
    sam: OriginalSam,
    embedding: Tensor,
    coords: Tensor | None,
    labels: Tensor | None,
    boxes: Tensor | None,
    masks: Tensor | None,
    *,
    multimask_output: bool,
) -> tuple[Tensor, Logits]:
    """Predicted IoU (P, M), and what makes the logits of some of the prompts, or of all."""
    if not torch.is_autocast_enabled(embedding.device.type):  # which brings dtypes together
        for part in ("prompt_encoder", "mask_decoder"):
            weights = (each.dtype for each in getattr(sam, part).parameters() if each.is_floating_point())
            check_float32(next(weights, torch.float32), part)
    exact = all(weight.dtype == torch.float32 for weight in sam.prompt_encoder.parameters())
    # coordinates want more than the eight bits that a caller's autocast to bfloat16 leaves them
    with torch.autocast(embedding.device.type, enabled=False) if exact else nullcontext():
        points = None if coords is None else (coords, labels)
        sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
        positions = sam.prompt_encoder.get_dense_pe()
    decoder = sam.mask_decoder
    if not _foldable(decoder, sparse, embedding):
        logits, predicted = decoder(
            image_embeddings=embedding,
            image_pe=positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
        )
        return predicted, logits.__getitem__
    outputs = slice(1, None) if multimask_output else slice(0, 1)
    tokens, image = _attend(decoder, embedding, positions, sparse, dense)
    predicted = decoder.iou_prediction_head(tokens[:, 0])[:, outputs]
    return predicted, lambda prompts: _logits(decoder, tokens[prompts], image[prompts], outputs)


def _foldable(decoder: MaskDecoder, sparse: Tensor, embedding: Tensor) -> bool:
    """Whether the decoder's arithmetic is known, nobody listens to its modules or replaces them, the embedding is a
    square, and prompts have few tokens."""
    return (
        type(decoder) is MaskDecoder
        and embedding.shape[-2] == embedding.shape[-1]
        and all(is_plain(part, KNOWN_PARTS) for part in decoder.modules())
        and 1 + len(decoder.mask_tokens.weight) + sparse.shape[1] <= MOST_TOKENS
    )


def _attend(
    decoder: MaskDecoder, embedding: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor]:
    """The decoder's transformer: tokens (P, T, C) and images (P, N, C). `embedding` (1 or P, C, G, G)."""
    if dense.stride(0) == 0:  # expanded: no prompt brings a mask
        dense = dense[:1]
    start = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(len(sparse), -1, -1)
    start = torch.cat([start, sparse], dim=1)
    positions = positions.flatten(2).mT.contiguous()
    image = (embedding + dense).flatten(2).mT.contiguous()  # (K, N, C)
    transformer, tokens = decoder.transformer, start
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            tokens = _norm(layer.norm1, layer.self_attn(tokens, tokens, tokens))
        else:
            placed = tokens + start
            tokens = _norm(layer.norm1, tokens + layer.self_attn(placed, placed, tokens))
        placed_image = image + positions
        update = _tokens_to_image(layer.cross_attn_token_to_image, tokens + start, placed_image, image)
        tokens = _norm(layer.norm2, tokens + update)
        tokens = _norm(layer.norm3, tokens + layer.mlp(tokens))
        update = _image_to_tokens(layer.cross_attn_image_to_token, placed_image, tokens + start, tokens)
        image = _norm(layer.norm4, image + update)
    update = _tokens_to_image(transformer.final_attn_token_to_image, tokens + start, image + positions, image)
    return _norm(transformer.norm_final_attn, tokens + update), image


def _tokens_to_image(attention: Attention, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`attention` of `tokens` (P, T, C) to `keys` and `values` (K, N, C): (P, T, C)."""
    heads, shape = attention.num_heads, tokens.shape[:2]
    q = attention.q_proj(tokens)
    if len(keys) < len(tokens):  # one image: the tokens of all prompts are one row of queries
        q, k, v = (
            _split(x, heads) for x in (q.reshape(1, -1, q.shape[-1]), attention.k_proj(keys), attention.v_proj(values))
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*shape, -1)
        return attention.out_proj(seen)
    scores = _folded_scores(_split(q, heads), keys, attention.k_proj)
    seen = (scores.softmax(dim=-1).flatten(1, 2) @ values).unflatten(1, scores.shape[1:3])  # (P, H, T, C)
    weight = attention.v_proj.weight.unflatten(0, (heads, -1))
    seen = torch.einsum("phtc,hdc->pthd", seen, weight).flatten(2) + attention.v_proj.bias  # weights of a row sum to 1
    return attention.out_proj(seen)


def _image_to_tokens(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`attention` of an image's `queries` (K, N, C) to the tokens `keys` and `values` (P, T, C): (P, N, C)."""
    heads = attention.num_heads
    k, v = _split(attention.k_proj(keys), heads), _split(attention.v_proj(values), heads)
    if len(queries) < len(keys):
        q = _split(attention.q_proj(queries), heads)[0] / math.sqrt(k.shape[-1])
        scores = torch.einsum("phtd,hnd->phtn", k, q)
    else:
        scores = _folded_scores(k, queries, attention.q_proj)
    weights = scores.softmax(dim=2).flatten(1, 2)  # over tokens: dim 2 is quicker than a last one of seven
    out = torch.einsum("phtd,chd->phtc", v, attention.out_proj.weight.unflatten(1, (heads, -1)))
    return weights.mT @ out.flatten(1, 2) + attention.out_proj.bias


def _folded_scores(tokens: Tensor, image: Tensor, projection: nn.Linear) -> Tensor:
    """Attention scores (P, H, T, N) of projected `tokens` (P, H, T, D) and the `projection` of an `image` (P, N, C)."""
    tokens = tokens / math.sqrt(tokens.shape[-1])
    heads = tokens.shape[1]
    folded = torch.einsum("phtd,hdc->phtc", tokens, projection.weight.unflatten(0, (heads, -1)))
    bias = torch.einsum("phtd,hd->pht", tokens, projection.bias.unflatten(0, (heads, -1)))
    scores = torch.baddbmm(bias.flatten(1)[:, :, None], folded.flatten(1, 2), image.mT)
    return scores.unflatten(1, tokens.shape[1:3])


def _split(x: Tensor, heads: int) -> Tensor:
    """(P, T, H * D) as (P, H, T, D)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _logits(decoder: MaskDecoder, tokens: Tensor, image: Tensor, outputs: slice) -> Tensor:
    """Logits (P, M, 4G, 4G) of the decoder's masks `outputs`."""
    side = math.isqrt(image.shape[1])
    first, norm, activation, second, last_activation = decoder.output_upscaling
    x = F.layer_norm(
        _quadrupled(image, first).to(norm.weight.dtype), norm.weight.shape, norm.weight, norm.bias, norm.eps
    )
    x = last_activation(_quadrupled(activation(x), second)).flatten(1, -2)  # (P, 16 N, C / 8)
    masks = range(decoder.num_mask_tokens)[outputs]
    heads = torch.stack([decoder.output_hypernetworks_mlps[mask](tokens[:, 1 + mask]) for mask in masks], dim=1)
    logits = (heads @ x.mT).view(len(x), len(masks), side, side, 2, 2, 2, 2)  # row, column, then twice their halves
    return logits.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(len(x), len(masks), 4 * side, 4 * side)


def _quadrupled(x: Tensor, convolution: nn.ConvTranspose2d) -> Tensor:
    """What a transposed convolution of 2 x 2 with stride 2 makes of each of the pixels (..., C): (..., 4, C')."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
    assert convolution.bias is not None
    return F.linear(x, weight, convolution.bias.repeat(4)).unflatten(-1, (4, -1))


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """`norm` in its weights' precision, where autocast made `x` bfloat16."""
    return norm(x.to(norm.weight.dtype))
