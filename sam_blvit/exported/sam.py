"""A Sam from a pair of ONNX files: onnxruntime's encoder, and the decoder's own weights in PyTorch.

The decoder's weights are read and run in PyTorch, so all four masks are available, whichever the export returns.
"""

from __future__ import annotations

from pathlib import Path

from segment_anything.modeling import Sam as OriginalSam

from sam_blvit.checkpoint.format import CheckpointError, check_values
from sam_blvit.exported.decoder import read_decoder
from sam_blvit.exported.encoder import ExportedEncoder
from sam_blvit.exported.graph import Graph
from sam_blvit.model.build import PIXEL_MEAN, PIXEL_STD, build_mask_decoder, build_prompt_encoder

PREFIX = "onnx:"
"""Prefix of a model name that stands for a pair of ONNX files: onnx:ENCODER,DECODER."""
ONNX = ".onnx"
ENCODER, DECODER = "encoder", "decoder"


class ExportedSam(OriginalSam):
    """segment_anything's Sam around an exported encoder."""

    image_encoder: ExportedEncoder

    @property
    def name(self) -> str:
        """Name in tables: the encoder's file without suffix."""
        return self.image_encoder.path.stem


def load_exported(encoder: str | Path, decoder: str | Path | None = None) -> ExportedSam:
    """The SAM in `encoder` and `decoder`, in eval mode.

    Args:
        encoder: ONNX file, images (B, 3, S, S) with SAM's normalisation to embeddings (B, 256, E, E).
        decoder: ONNX file as segment_anything's exporter writes it. Default: the file beside `encoder` that has
            "decoder" where its name has "encoder".

    Raises:
        CheckpointError: if a file is missing, is not of that kind, or has a weight that is not finite.
    """
    image_encoder = ExportedEncoder(encoder)
    check_values(Graph.read(encoder).parameters(), what=str(encoder))
    grid, side = image_encoder.embedding_grid, image_encoder.img_size
    sam = ExportedSam(
        image_encoder=image_encoder,
        prompt_encoder=build_prompt_encoder(grid, side),
        mask_decoder=build_mask_decoder(),
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
    )
    sam.load_state_dict(read_decoder(decoder or decoder_beside(Path(encoder)), sam), strict=False)  # all it has
    return sam.eval()


def decoder_beside(encoder: Path) -> Path:
    """The decoder's file that belongs to `encoder`, by its name.

    Raises:
        CheckpointError: if there is none.
    """
    beside = encoder.with_name(encoder.name.replace(ENCODER, DECODER))
    if beside == encoder or not beside.is_file():
        raise CheckpointError(
            f"{encoder} has no decoder beside it (a file of the same name with {DECODER} for {ENCODER}); name one"
        )
    return beside


def exported_pair(model: str) -> tuple[Path, Path | None] | None:
    """The files that `model` names as onnx:ENCODER or onnx:ENCODER,DECODER; None for any other name."""
    if not model.startswith(PREFIX):
        return None
    encoder, _, decoder = model.removeprefix(PREFIX).partition(",")
    return Path(encoder), Path(decoder) if decoder else None
