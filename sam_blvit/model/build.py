"""Build any model from its config, with fresh weights. `sam_blvit.checkpoint.load` loads weights."""

from __future__ import annotations

from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

from sam_blvit.config import EMBEDDING_CHANNELS, ModelConfig
from sam_blvit.model.encoder import ImageEncoder
from sam_blvit.model.sam import Sam

PIXEL_MEAN = [123.675, 116.28, 103.53]
PIXEL_STD = [58.395, 57.12, 57.375]


def build_sam(config: ModelConfig) -> Sam:
    """A SAM with `config`'s encoder and SAM's own prompt encoder and mask decoder, all weights fresh, in eval mode."""
    sam = Sam(
        image_encoder=ImageEncoder(config),
        prompt_encoder=build_prompt_encoder(config.embedding_grid, config.image_size),
        mask_decoder=build_mask_decoder(),
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
    )
    return sam.eval()


def build_prompt_encoder(grid: int, image_size: int) -> PromptEncoder:
    """SAM's prompt encoder, fresh, for embeddings of `grid` cells a side and images of `image_size` pixels a side."""
    return PromptEncoder(
        embed_dim=EMBEDDING_CHANNELS,
        image_embedding_size=(grid, grid),
        input_image_size=(image_size, image_size),
        mask_in_chans=16,
    )


def build_mask_decoder() -> MaskDecoder:
    """SAM's mask decoder, fresh."""
    return MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=2, embedding_dim=EMBEDDING_CHANNELS, mlp_dim=2048, num_heads=8),
        transformer_dim=EMBEDDING_CHANNELS,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    )
