"""Options of the `sam-blvit` commands, and those common to all commands that run a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_blvit.config.model import THRESHOLDS, check_keep_ratio, check_threshold
from sam_blvit.config.options import parse_options

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """The model that a command runs, and its device."""

    model: str | None = None
    """Registry name, or path of a checkpoint of this package. Default: the model in `checkpoint`; without one,
    blvit_s_t."""
    checkpoint: Path | None = None
    """A checkpoint of this package, or a plain SAM .pth of the same size as `model`. Default: the weights of
    blvit_s_t."""
    base: Path | None = None
    """The SAM that the adapter was trained for, if `checkpoint` is an adapter."""
    keep_ratio: float | None = None
    """Share of the tokens that performance blocks update, 0 to 1. Default: the model's own."""
    image_size: int | None = None
    """Longest side of the encoder's input, pixels. Positional embeddings are interpolated. Default: the model's own."""
    compile: bool = False
    """Compile the encoder: faster, but each new image size or keep ratio first takes a minute or more and a copy of the
    weights. Not used where routing is read out (pictures of it, perturbed photographs)."""
    device: str = "auto"
    """auto, cpu, cuda or mps. auto uses the first available of cuda, mps and cpu."""

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"device={self.device!r} is not one of {', '.join(DEVICES)}")
        if self.keep_ratio is not None:
            check_keep_ratio(self.keep_ratio)


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(WeightsConfig):
    """Prompts for one object of a photograph, and the output."""

    point: tuple[str, ...] = ()
    """Points on the object, each X,Y in pixels of the photograph."""
    negative: tuple[str, ...] = ()
    """Points outside the object, each X,Y in pixels of the photograph."""
    box: str | None = None
    """Box around the object, X0,Y0,X1,Y1 in pixels of the photograph."""
    output: Path
    """Directory for the mask, the overlay and the JSON."""
    show_routing: bool = False
    """Also draw the primary tokens of each router."""


@dataclass(frozen=True, kw_only=True)
class EverythingConfig(WeightsConfig):
    """Which masks of a photograph to keep, and the output."""

    output: Path
    """Directory for the picture and the JSON."""
    points_per_side: int = 32
    """Point prompts along each side of the photograph."""
    pred_iou_thresh: float | None = None
    """Masks with a lower predicted IoU are dropped. Default: the model's own."""
    stability_score_thresh: float | None = None
    """Masks with a lower stability score are dropped: the IoU of the mask at a higher and a lower threshold of its
    logits. Default: the model's own."""
    min_mask_region_area: int = 0
    """Fill holes and remove islands of fewer pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points_per_side < 1:
            raise ValueError(f"points_per_side={self.points_per_side}: at least 1 is needed")
        for name in THRESHOLDS:
            if (value := getattr(self, name)) is not None:
                check_threshold(name, value)
        if self.min_mask_region_area < 0:
            raise ValueError(f"min_mask_region_area={self.min_mask_region_area} is negative; 0 leaves masks unchanged")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Files to import weights from."""

    encoder: Path | None = None
    """A plain ViT of the model's width (DINOv2, MAE, DeiT; .pth, .safetensors or .onnx). Default: untrained."""
    decoder: Path | None = None
    """An exported SAM decoder (.onnx), for the prompt encoder and mask decoder. Default: untrained."""
    output: Path
    """The checkpoint to write, .safetensors."""

    def __post_init__(self) -> None:
        if self.encoder is None and self.decoder is None:
            raise ValueError("neither encoder nor decoder is given: name at least one file to import")
        if self.output.suffix != ".safetensors":
            raise ValueError(f"output {self.output} does not end in .safetensors, the format of checkpoints")


@dataclass(frozen=True, kw_only=True)
class FlopsConfig:
    """Options of `sam-blvit flops`."""

    keep_ratio: float | None = None
    """Share of the tokens that performance blocks update, 0 to 1. Default: each model's own."""
    options: tuple[str, ...] = ()
    """Fields of the models to replace, each NAME=VALUE, as in primary_keys=pooled."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        if self.keep_ratio is not None:
            check_keep_ratio(self.keep_ratio)
        parse_options(self.options)


def check_seed(seed: int) -> None:
    """Raise ValueError if `seed` is not a valid seed for NumPy."""
    if seed < 0:
        raise ValueError(f"seed={seed} is negative; use a whole number from 0 up")
