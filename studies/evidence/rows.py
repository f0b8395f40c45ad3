"""The study as data: every row, the tables they make, and the sizes in which all of them are made.

A row is defined by its recipe, configs/evidence/*.yaml, and by its settings here, which override the recipe. Settings
shared by all rows are in `ALL`, `STUDENT` and their size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BASELINE = "dense"
"""The row that others are compared with."""
Settings = Mapping[str, Any]
"""Flags of a command by name."""


@dataclass(frozen=True)
class StudyRow:
    """A model to be trained."""

    what: str
    """A short description."""
    recipe: str | None = None
    """Name of its file in configs/evidence. Default: the row's own."""
    settings: Settings = field(default_factory=dict)
    """What differs from the recipe."""
    start: str = "distilled"
    """distilled: from the teacher, which it must match; continued: from the teacher's weights; scratch."""


FRESH = {"encoder_lr": 5e-4, "decoder_lr": 5e-4, "prompt_lr": 5e-4}
"""Learning rates of an untrained SAM."""
ROWS = {
    BASELINE: StudyRow("the teacher's own size, trained on as the others"),
    "narrow": StudyRow("dense, 128 channels of 192"),
    "shallow": StudyRow("dense, 8 layers of 12"),
    "paper": StudyRow("big.LITTLE as the paper has it, keep .25"),
    "evit": StudyRow("pruned as by EViT, keep .5"),
    "evo_vit": StudyRow("pruned as by Evo-ViT, keep .5"),
    "evit_undistilled": StudyRow("the same without distillation", "evit", start="continued"),
    "evo_vit_undistilled": StudyRow("the same without distillation", "evo_vit", start="continued"),
    "without_little": StudyRow("without efficiency blocks"),
    "random": StudyRow("router: random, scores off"),
    "primary_keys": StudyRow("primary tokens the only keys"),
    "undistilled": StudyRow("without distillation", "paper", start="continued"),
    "unscaled": StudyRow("score scaling off, so routers do not learn", "paper", {"options": ("score_scaling=false",)}),
    "scratch": StudyRow("from scratch, without distillation", "paper", FRESH, start="scratch"),
    "two_class": StudyRow("router: a two-class softmax", "paper", {"options": ("router_scores=two_class",)}),
    "window_14": StudyRow("windows of 14, padded", "paper", {"window": 14}),
    "pooled": StudyRow("keys: primary tokens and 4 x 4 means"),
    "windowed": StudyRow("the same, E-attention windowed"),
    "listwise": StudyRow("a listwise loss for routers"),
    "lambda_1": StudyRow("distillation weight 1", "paper", {"distillation_weight": 1}),
    "lambda_5": StudyRow("distillation weight 5", "paper", {"distillation_weight": 5}),
    "lambda_10": StudyRow("distillation weight 10", "paper", {"distillation_weight": 10}),
    "keep_500": StudyRow("keep .5", "paper", {"keep_ratios": 0.5, "options": ("keep_ratio=0.5",)}),
    "keep_375": StudyRow("keep .375", "paper", {"keep_ratios": 0.375, "options": ("keep_ratio=0.375",)}),
    "keep_125": StudyRow("keep .125", "paper", {"keep_ratios": 0.125, "options": ("keep_ratio=0.125",)}),
    "sampled": StudyRow("keep ratio drawn each step, measured at .25"),
}
TABLES = {
    "Table 2: against dense encoders and token pruning": (
        *(BASELINE, "narrow", "shallow", "paper", "evit", "evo_vit", "evit_undistilled", "evo_vit_undistilled"),
    ),
    "Table 3: what each part brings": (
        *(BASELINE, "paper", "without_little", "random", "primary_keys", "undistilled"),
        *("unscaled", "scratch", "two_class", "window_14"),
    ),
    "Past the paper": (BASELINE, "paper", "pooled", "windowed", "listwise"),
    "Table 4: weight of distillation": ("undistilled", "lambda_1", "paper", "lambda_5", "lambda_10"),
    "Table 5: keep ratio": ("keep_500", "keep_375", "paper", "keep_125", "sampled"),
}
DIAL_ROWS = ("paper", "sampled")
"""Rows whose curve along the keep ratio is measured."""
DIAL = (0.0, 0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of the study: the settings that its rows share."""

    rows: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    """Of training."""
    prompt_seeds: tuple[int, ...] = (0, 1, 2)
    """Of the prompts that a model is measured with."""
    teacher_steps: int
    steps: int
    alone: float
    """Share of the steps, at the start, in which students learn from the teacher's embedding alone."""
    cached: bool
    """Whether the teacher's embeddings are computed once for all rows; then photographs are seen as they are."""
    dial: bool = False
    """Whether the dial's curve is measured."""
    other_sides: tuple[int, ...] = ()
    """Sides, pixels, at which encoders are timed besides their own."""
    settings: Settings
    """Of every training."""

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides, pixels, at which encoders are timed."""
        return (self.settings["image_size"], *self.other_sides)


ALL: Settings = {"drop_path": 0.0, "precision": "bf16"}
"""Settings of every training in every size."""
STUDENT: Settings = {"lr": 1e-3, "encoder_lr": 2e-4, "decoder_lr": 4e-4, "warmup_steps": 20}
"""Settings of every row in every size."""
SIZES = {
    "reduced": Size(
        rows=(BASELINE, "narrow", "paper", "random", "evit", "pooled"),
        prompt_seeds=(0,),
        teacher_steps=20,
        steps=10,
        alone=0.5,
        cached=True,
        settings={
            **{"image_size": 128, "mask_side": 64, "batch_size": 4, "masks_per_image": 4},
            **{"correction_rounds": 0, "workers": 1},
        },
    ),
    "cpu": Size(
        rows=(BASELINE, "paper", "narrow", "random", "shallow", "pooled", "windowed", "listwise", "sampled"),
        prompt_seeds=(0,),
        teacher_steps=2000,
        steps=320,
        alone=0.8,
        cached=True,
        other_sides=(512,),
        settings={
            **{"image_size": 256, "mask_side": 128, "batch_size": 8, "masks_per_image": 8},
            **{"correction_rounds": 0, "workers": 1, "checkpoint_every": 100},
        },
    ),
    "gpu": Size(
        rows=tuple(ROWS),
        seeds=(0, 1),
        teacher_steps=12000,
        steps=3000,
        alone=0.2,
        cached=False,
        dial=True,
        settings={
            **{"image_size": 512, "mask_side": 256, "batch_size": 8, "masks_per_image": 16},
            **{"flip": True, "smallest_crop": 0.5, "workers": 2, "checkpoint_every": 250},
        },
    ),
}
