"""ONNX files as PyTorch's exporter writes them: a decoder by segment_anything's own wrapper, and a small encoder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam as OriginalSam
from segment_anything.utils.onnx import SamOnnxModel
from torch import nn

from sam_blvit.exported.sam import ExportedSam
from sam_blvit.model.build import PIXEL_MEAN, PIXEL_STD, build_mask_decoder, build_prompt_encoder


def export(model: nn.Module, inputs: dict[str, torch.Tensor], path: Path, **options: Any) -> Path:
    """`model` as ONNX, its linear layers' weights folded and unnamed, as by default."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            opset_version=17,
            dynamo=False,
            **options,
        )
    return path


def sam_with(encoder: nn.Module, *, grid: int, side: int) -> OriginalSam:
    """A SAM of segment_anything's modules around `encoder`, every weight random."""
    sam = OriginalSam(
        image_encoder=encoder,
        prompt_encoder=build_prompt_encoder(grid, side),
        mask_decoder=build_mask_decoder(),
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
    ).eval()
    with torch.no_grad():
        for value in sam.parameters():
            value.add_(0.02 * torch.randn_like(value))
    return sam


class SmallEncoder(nn.Module):
    """Pixels to an embedding, by one convolution and one product: an encoder of nobody's shape."""

    def __init__(self, *, side: int, cell: int) -> None:
        super().__init__()
        self.img_size = side
        self.patches = nn.Conv2d(3, 32, cell, stride=cell)
        self.leave = nn.Linear(32, 256)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 0.1 * self.leave(self.patches(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def export_sam(directory: Path, *, side: int = 128, cell: int = 16) -> tuple[OriginalSam, Path, Path]:
    """A small SAM, and its encoder and decoder as files beside each other."""
    torch.manual_seed(3)
    sam = sam_with(SmallEncoder(side=side, cell=cell), grid=side // cell, side=side)
    directory.mkdir(parents=True, exist_ok=True)
    encoder = export(
        sam.image_encoder,
        {"input": torch.zeros(1, 3, side, side)},
        directory / "small_encoder.onnx",
        dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
        output_names=["output"],
    )
    return sam, encoder, export_decoder(sam, directory / "small_decoder.onnx")


def export_decoder(sam: OriginalSam | ExportedSam, path: Path) -> Path:
    """The prompt encoder and mask decoder of `sam`, as segment_anything's script exports them."""
    grid = sam.prompt_encoder.image_embedding_size[0]
    inputs = {
        "image_embeddings": torch.randn(1, 256, grid, grid),
        "point_coords": torch.rand(1, 5, 2) * sam.image_encoder.img_size,
        "point_labels": torch.randint(0, 4, (1, 5)).float(),
        "mask_input": torch.randn(1, 1, 4 * grid, 4 * grid),
        "has_mask_input": torch.tensor([1.0]),
        "orig_im_size": torch.tensor([96.0, 128.0]),
    }
    return export(
        SamOnnxModel(sam, return_single_mask=True),
        inputs,
        path,
        output_names=["masks", "iou_predictions", "low_res_masks"],
        dynamic_axes={"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}},
    )
