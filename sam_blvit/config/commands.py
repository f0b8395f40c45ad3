"""What the `sam-blvit` commands take, and what every command that runs a model takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_blvit.config.model import THRESHOLDS, check_keep_ratio, check_threshold
from sam_blvit.config.options import parse_options

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """Which model a command runs, and where."""

    model: str | None = None
    """Registry name, or path of one of our checkpoints. Default: the model in `checkpoint`; without one, blvit_s_t."""
    checkpoint: Path | None = None
    """One of our checkpoints, or a plain SAM .pth of the size that `model` names. Default: blvit_s_t's own weights."""
    base: Path | None = None
    """The SAM that an adapter was trained for, if the checkpoint is an adapter."""
    keep_ratio: float | None = None
    """Share of the tokens that performance blocks update, 0 to 1. Default: the model's own."""
    image_size: int | None = None
    """Longest side of the encoder's input, pixels; positions are interpolated to it. Default: the checkpoint's."""
    compile: bool = False
    """Compile the encoder for each image size and keep ratio that it meets: a minute or more each and a copy of the
    weights, quicker then. Where routing is looked at (pictures of it, perturbed photographs) it runs as it is."""
    device: str = "auto"
    """auto, cpu, cuda or mps. auto takes the first of cuda, mps, cpu that there is."""

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"device={self.device!r} is not one of {', '.join(DEVICES)}")
        if self.keep_ratio is not None:
            check_keep_ratio(self.keep_ratio)


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(WeightsConfig):
    """Prompts for one object of a photograph, and where its mask goes."""

    point: tuple[str, ...] = ()
    """Points on the object, each X,Y in pixels of the photograph."""
    negative: tuple[str, ...] = ()
    """Points off the object, each X,Y in pixels of the photograph."""
    box: str | None = None
    """Box around the object, X0,Y0,X1,Y1 in pixels of the photograph."""
    output: Path
    """Directory for the mask, the overlay and the JSON."""
    show_routing: bool = False
    """Also draw which tokens each router sent to the performance block."""


@dataclass(frozen=True, kw_only=True)
class EverythingConfig(WeightsConfig):
    """Which masks of a photograph count, and where they go."""

    output: Path
    """Directory for the picture and the JSON."""
    points_per_side: int = 32
    """Points that are asked about along each side of the photograph."""
    pred_iou_thresh: float | None = None
    """Masks of which the model predicts a lower IoU are left out. Default: the model's own."""
    stability_score_thresh: float | None = None
    """Masks are left out that change more than this when their threshold moves; 1 is no change. Default: the model's
    own."""
    min_mask_region_area: int = 0
    """Holes and islands of fewer pixels are filled and removed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points_per_side < 1:
            raise ValueError(f"points_per_side={self.points_per_side}: at least 1 point is needed")
        for name in THRESHOLDS:
            if (value := getattr(self, name)) is not None:
                check_threshold(name, value)
        if self.min_mask_region_area < 0:
            raise ValueError(
                f"min_mask_region_area={self.min_mask_region_area} is negative; 0 leaves masks as they are"
            )


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Which files weights are brought in from."""

    encoder: Path | None = None
    """A plain ViT of the model's width (DINOv2, MAE, DeiT; .pth, .safetensors or .onnx). Default: untrained."""
    decoder: Path | None = None
    """An exported SAM decoder (.onnx), for prompt encoder and mask decoder. Default: untrained."""
    output: Path
    """The checkpoint to write, .safetensors."""

    def __post_init__(self) -> None:
        if self.encoder is None and self.decoder is None:
            raise ValueError("neither encoder nor decoder is given: name at least one file to import")
        if self.output.suffix != ".safetensors":
            raise ValueError(f"output {self.output} is not named .safetensors, as our checkpoints are")


@dataclass(frozen=True, kw_only=True)
class FlopsConfig:
    """What `sam-blvit flops` counts and how it prints."""

    keep_ratio: float | None = None
    """Share of the tokens that performance blocks update, 0 to 1. Default: each model's own."""
    options: tuple[str, ...] = ()
    """Fields of the models to replace, NAME=VALUE each, as in primary_keys=pooled."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        if self.keep_ratio is not None:
            check_keep_ratio(self.keep_ratio)
        parse_options(self.options)


def check_seed(seed: int) -> None:
    """Raise ValueError unless `seed` is one that NumPy takes."""
    if seed < 0:
        raise ValueError(f"seed={seed} is negative; any whole number from 0 up will do")
