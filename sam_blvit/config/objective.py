"""The training objective: prompts, masks and losses."""

from __future__ import annotations

from dataclasses import dataclass

from sam_blvit.config.checks import check_at_least, check_finite, check_words

PROMPTS = ("mixed", "sam11", "evs")


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Masks and prompts drawn from each photograph."""

    masks_per_image: int | None = None
    """Largest number of masks drawn per image. Default: 64 / batch_size, but at least 16."""
    mask_side: int | None = None
    """Side of the square in which masks are compared, pixels. 256 saves time and memory, but shrinks a mask of 100
    pixels in SA-1B to about one. Default: image_size."""
    point_sample: int = 0
    """Points per mask at which focal and dice loss are computed, most of them where the output is uncertain. 12544
    saves memory. 0: all pixels."""
    prompts: str = "mixed"
    """Style of prompts: mixed (a box, one point or several, then corrections), sam11 (SAM's own eleven rounds) or evs
    (one round, as EfficientViT-SAM)."""
    correction_rounds: int = 2
    """With mixed prompts only: correction rounds, each with one more point in an error of the last mask. A final round
    without a new point follows."""
    smallest_crop: float = 1.0
    """Smallest share of each side that a random crop keeps. 1: no crops, as in SAM."""
    flip: bool = False
    """Mirror images horizontally with probability 0.5."""

    def __post_init__(self) -> None:
        check_words(self, {"prompts": PROMPTS})
        check_at_least(self, 1, "masks_per_image", "mask_side")
        check_at_least(self, 0, "point_sample", "correction_rounds")
        if not 0 < self.smallest_crop <= 1:
            raise ValueError(f"smallest_crop={self.smallest_crop} is outside (0, 1]")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the losses that are added to the mask loss."""

    distillation_weight: float = 2.5
    """Weight of the distillation loss relative to the mask loss (paper, section 4.1)."""
    distillation_mse: float = 0.0
    """Weight of the mean squared error between embeddings, added to their cosine loss."""
    distillation_layers: float = 0.0
    """Weight of a distillation loss on the tokens after each global layer except the last. Requires a teacher of the
    student's size."""
    listwise_weight: float = 0.0
    """Weight of a loss that teaches each router, and the layers before it, which tokens gain most from the performance
    block. Costs another pass of the encoder without gradients."""
    kd_only_steps: int = 0
    """Initial steps with only the distillation losses."""

    def __post_init__(self) -> None:
        check_at_least(self, 0, "distillation_weight", "distillation_mse", "distillation_layers")
        check_at_least(self, 0, "listwise_weight", "kd_only_steps")
        check_finite(self)
        if self.kd_only_steps and not (self.distillation_weight or self.distillation_mse or self.distillation_layers):
            raise ValueError(
                f"kd_only_steps={self.kd_only_steps}: these steps have no loss, because distillation_weight, "
                "distillation_mse and distillation_layers are 0; set one of them"
            )
