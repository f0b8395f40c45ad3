"""Arithmetic of SAM's mask decoder with projections folded into the few tokens of a prompt.

Layer 1 projects the image once and not once for each prompt. Where each prompt has an image of its own, projections are
folded into the few tokens and not applied to the many pixels. Upscaling keeps channels last.

Shapes:
    P  prompts    T  tokens of a prompt    K  images attended to: 1 for all prompts, or P    N  G * G, pixels of each
    C  channels   H, D  attention heads and the channels of each    M  masks of a prompt
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

from sam_blvit.model.plain import is_plain

MOST_TOKENS = 16
"""With more tokens of a prompt than this, folded projections cost more than SAM's own."""
KNOWN_PARTS = {
    *(MaskDecoder, TwoWayTransformer, TwoWayAttentionBlock, Attention, MLP, MLPBlock, LayerNorm2d),
    *(nn.Sequential, nn.ModuleList, nn.Embedding, nn.Linear, nn.LayerNorm, nn.ConvTranspose2d, nn.GELU, nn.ReLU),
}
"""Modules whose forward may be replaced by arithmetic on their weights; a subclass's may not."""


def is_foldable(decoder: MaskDecoder, sparse: Tensor, embedding: Tensor) -> bool:
    """Whether the functions here may replace the decoder's own forward.

    They may if every module is one of `KNOWN_PARTS` without hooks or replaced methods, the embedding is a square, and
    prompts have few tokens.
    """
    return (
        type(decoder) is MaskDecoder
        and embedding.shape[-2] == embedding.shape[-1]
        and all(is_plain(part, KNOWN_PARTS) for part in decoder.modules())
        and 1 + len(decoder.mask_tokens.weight) + sparse.shape[1] <= MOST_TOKENS
    )


def run_transformer(
    decoder: MaskDecoder, embedding: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor]:
    """The decoder's transformer.

    Args:
        decoder: for which `is_foldable` holds.
        embedding: (1 or P, C, G, G)
        positions: (1, C, G, G) of the pixels.
        sparse: (P, t, C) tokens of the prompts.
        dense: (1 or P, C, G, G), possibly expanded, masks of the prompts.

    Returns:
        Tokens (P, T, C) and images (P, N, C).
    """
    if dense.stride(0) == 0:  # expanded: no prompt has a mask
        dense = dense[:1]
    start = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(len(sparse), -1, -1)
    start = torch.cat([start, sparse], dim=1)  # (P, T, C)
    positions = positions.flatten(2).mT.contiguous()  # (1, N, C)
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
    if len(keys) < len(tokens):  # one image: tokens of all prompts are queries of one group
        q, k, v = (
            _split(x, heads) for x in (q.reshape(1, -1, q.shape[-1]), attention.k_proj(keys), attention.v_proj(values))
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*shape, -1)
        return attention.out_proj(seen)
    scores = _folded_scores(_split(q, heads), keys, attention.k_proj)
    seen = (scores.softmax(dim=-1).flatten(1, 2) @ values).unflatten(1, scores.shape[1:3])  # (P, H, T, C)
    weight = attention.v_proj.weight.unflatten(0, (heads, -1))
    seen = torch.einsum("phtc,hdc->pthd", seen, weight).flatten(2) + attention.v_proj.bias  # weights sum to 1
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
    weights = scores.softmax(dim=2).flatten(1, 2)  # over tokens; faster than over a last dim of seven
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


def mask_logits(decoder: MaskDecoder, tokens: Tensor, image: Tensor, outputs: slice) -> Tensor:
    """Logits (P, M, 4G, 4G) of the masks `outputs`, of tokens (P, T, C) and images (P, N, C)."""
    side = math.isqrt(image.shape[1])
    first, norm, activation, second, last_activation = decoder.output_upscaling
    x = F.layer_norm(
        _quadrupled(image, first).to(norm.weight.dtype), norm.weight.shape, norm.weight, norm.bias, norm.eps
    )
    x = last_activation(_quadrupled(activation(x), second)).flatten(1, -2)  # (P, 16 N, C / 8)
    masks = range(decoder.num_mask_tokens)[outputs]
    heads = torch.stack([decoder.output_hypernetworks_mlps[mask](tokens[:, 1 + mask]) for mask in masks], dim=1)
    logits = (heads @ x.mT).view(len(x), len(masks), side, side, 2, 2, 2, 2)  # row, column, then their halves twice
    return logits.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(len(x), len(masks), 4 * side, 4 * side)


def _quadrupled(x: Tensor, convolution: nn.ConvTranspose2d) -> Tensor:
    """A transposed convolution of 2 x 2 with stride 2 on pixels (..., C): (..., 4, C')."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
    assert convolution.bias is not None
    return F.linear(x, weight, convolution.bias.repeat(4)).unflatten(-1, (4, -1))


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """`norm` in the precision of its weights, if autocast made `x` bfloat16."""
    return norm(x.to(norm.weight.dtype))
