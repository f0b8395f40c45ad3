"""What a student learns from: prompts and masks, and the losses."""

from __future__ import annotations

from dataclasses import dataclass

from sam_blvit.config.checks import check_at_least, check_finite, check_words

PROMPTS = ("mixed", "sam11", "evs")


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Masks and prompts of each photograph."""

    masks_per_image: int | None = None
    """Masks drawn from an image, at most. Default: 64 among the images of a step of a process, at least 16."""
    mask_side: int | None = None
    """Side of the square in which masks are compared, pixels; 256 saves time and memory, but there a mask of 100 pixels
    of SA-1B is about one. Default: image_size."""
    point_sample: int = 0
    """Pixels of each mask, most of them where the answer is unsure, that focal and dice loss look at; 12544 saves
    memory. 0: all."""
    prompts: str = "mixed"
    """mixed (a box, one point or several, then corrections), sam11 (SAM's own eleven rounds) or evs (one round)."""
    correction_rounds: int = 2
    """Rounds of mixed prompts, and of no others, with one more point where the last mask was wrong; one without a point
    follows them."""
    smallest_crop: float = 1.0
    """Share of each side that a random crop keeps at least; 1 crops nothing, as SAM."""
    flip: bool = False
    """Mirror half of the images."""

    def __post_init__(self) -> None:
        check_words(self, {"prompts": PROMPTS})
        check_at_least(self, 1, "masks_per_image", "mask_side")
        check_at_least(self, 0, "point_sample", "correction_rounds")
        if not 0 < self.smallest_crop <= 1:
            raise ValueError(f"smallest_crop={self.smallest_crop} is outside (0, 1]")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Losses beside the mask loss, and their weights."""

    distillation_weight: float = 2.5
    """Weight of the distillation loss beside the mask loss (paper, section 4.1)."""
    distillation_mse: float = 0.0
    """Weight of the squared distance of embeddings beside their cosine."""
    distillation_layers: float = 0.0
    """Weight of a distillation loss on the tokens after each global layer but the last; wants a teacher of the
    student's size."""
    listwise_weight: float = 0.0
    """Weight of a loss that tells each router, and the layers before it, which tokens gain most by the performance
    block; costs another pass of the encoder without a gradient."""
    kd_only_steps: int = 0
    """Steps at the start with the distillation losses alone."""

    def __post_init__(self) -> None:
        check_at_least(self, 0, "distillation_weight", "distillation_mse", "distillation_layers")
        check_at_least(self, 0, "listwise_weight", "kd_only_steps")
        check_finite(self)
        if self.kd_only_steps and not (self.distillation_weight or self.distillation_mse or self.distillation_layers):
            raise ValueError(
                f"kd_only_steps={self.kd_only_steps}: nothing to learn in them, as distillation_weight, "
                "distillation_mse and distillation_layers are 0; give one a weight"
            )
