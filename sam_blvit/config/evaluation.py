"""Options of the commands in eval/."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sam_blvit.config.commands import WeightsConfig, check_seed
from sam_blvit.config.model import check_keep_ratio

EVALUATION_CHOICES = {
    "select": ("argmax", "single", "oracle", "sam"),
    "box_source": ("ann", "mask"),
    "subset": ("full", "minival"),
    "boxes": ("gt",),
    "table": ("csv", "parquet"),
}
"""Settings of an evaluation, and the words allowed in each."""
OF_TASK = {
    "mIoU": ("protocol", "box_source", "feed_mask", "oracle", "seeds", "perturb", "include_crowd", "table"),
    "AP": ("refine",),
}
"""Settings that affect one task only."""
HOW_TO = {"mIoU": "mIoU", "AP": "AP: add detections or boxes"}
"""Each task, and how to select it."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(WeightsConfig):
    """One evaluation: point and box mIoU, or the AP of instance segmentation if box prompts are given."""

    model: str | None = None
    """Registry name, path of a checkpoint of this package, or module:function. The function returns a segment_anything
    Sam and gets `checkpoint` as a keyword, if given. Default: the model in `checkpoint`; without one, blvit_s_t."""
    annotations: Path
    """Annotations in LVIS v0.5, LVIS v1 or COCO format."""
    images: Path
    """Directory of the photographs: flat, or with trainval/, or with train2017/ and val2017/."""
    output: Path
    """Directory for summary.json, instances.csv or results.json, and pictures of the worst objects."""
    protocol: str = "blvit"
    """Protocol of point and box mIoU: blvit, edge-rand, edge-center, ritm, sam-rand, or a JSON file written by
    eval/calibrate.py."""
    select: str | None = None
    """Which mask is scored: argmax (of three, by predicted IoU), single, oracle (of three, by true IoU), or sam (argmax
    for one point, else single). Default: the protocol's; single for AP."""
    box_source: str | None = None
    """Where box prompts come from: ann (annotated box) or mask (tight box of the mask). Default: the protocol's."""
    feed_mask: bool = False
    """In iterative protocols, feed the logits of the previous mask back with each click."""
    oracle: bool = False
    """Also score the best of the decoder's three masks by true IoU, for every prompt (columns iou_*_oracle)."""
    subset: str | None = None
    """full, or minival (only photographs of COCO's val2017). Default: the protocol's, which is full."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the prompts, which depend only on the seed and the annotation id. mIoU is the mean over the seeds."""
    keep_ratios: tuple[float, ...] = ()
    """Keep ratios to evaluate one after the other, each in its own directory."""
    perturb: tuple[str, ...] = ()
    """Also evaluate on perturbed photographs: jpeg<quality>, blur<radius>, shift<pixels> or dark, each in its own
    directory."""
    include_crowd: bool = False
    """Include crowd annotations."""
    detections: Path | None = None
    """A detector's boxes in Detectron2's results format. Measures the AP of the masks they prompt, instead of mIoU."""
    boxes: str | None = None
    """gt: measure AP with the annotated boxes as prompts, an upper bound for any detector."""
    refine: int = 0
    """AP only: how often each box is decoded again with the logits of its most confident mask."""
    prompts_per_batch: int = 64
    """Prompts decoded at once; bounds memory."""
    table: str = "csv"
    """Format of the table of instances: csv or parquet (needs pyarrow)."""
    resume: bool = False
    """Continue an interrupted evaluation in `output`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, words in EVALUATION_CHOICES.items():
            if (value := getattr(self, name)) is not None and value not in words:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(words)}")
        if self.prompts_per_batch < 1:
            raise ValueError(f"prompts_per_batch={self.prompts_per_batch} is not a positive number")
        if self.refine < 0:
            raise ValueError(f"refine={self.refine} is negative; 0 decodes each box once")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} is empty or has duplicates; name each seed once, as in 0,1,2")
        for seed in self.seeds:
            check_seed(seed)
        for ratio in self.keep_ratios:
            check_keep_ratio(ratio)
        if self.keep_ratios and (self.keep_ratio is not None or len(set(self.keep_ratios)) < len(self.keep_ratios)):
            raise ValueError(f"keep_ratios={self.keep_ratios}: name each once, and leave out keep_ratio")
        if self.detections is not None and self.boxes is not None:
            raise ValueError(f"detections={self.detections} and boxes={self.boxes}: choose one source of boxes")
        self._check_task()

    @property
    def task(self) -> str:
        """What is measured: mIoU or AP."""
        return "AP" if self.measures_ap else "mIoU"

    @property
    def measures_ap(self) -> bool:
        """Whether AP is measured instead of mIoU."""
        return self.detections is not None or self.boxes is not None

    def _check_task(self) -> None:
        """Refuse settings of the other task, which would have no effect."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for other in OF_TASK.keys() - {self.task}:
            if named := [name for name in OF_TASK[other] if getattr(self, name) != defaults[name]]:
                names = ", ".join(named)
                raise ValueError(f"{names}: no effect when measuring {self.task}, a setting for {HOW_TO[other]}")
        if self.measures_ap and self.select == "oracle":
            raise ValueError("select=oracle needs true masks, which detections do not have; use argmax")


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """A search for the protocol under which the original SAMs reproduce the paper's numbers."""

    vit_b: Path
    """SAM's ViT-B checkpoint, or a checkpoint of this package with a dense model to use instead."""
    vit_h: Path
    """SAM's ViT-H checkpoint, or a checkpoint of this package with a dense model to use instead."""
    annotations: Path
    """Annotations in LVIS format."""
    images: Path
    """Directory of the photographs: flat, or with trainval/, or with train2017/ and val2017/."""
    output: Path
    """Directory for calibration.json, the chosen protocol (blvit-cal.json), and each model's means."""
    seed: int = 0
    """Seed of the prompts."""
    prompts_per_batch: int = 64
    """Prompts decoded at once; bounds memory."""
    resume: bool = False
    """Continue an interrupted calibration in `output`."""
    device: str = "auto"
    """auto, cpu, cuda or mps. auto uses the first available of cuda, mps and cpu."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.prompts_per_batch < 1:
            raise ValueError(f"prompts_per_batch={self.prompts_per_batch} is not a positive number")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Evaluation runs to compare on one page."""

    positional: ClassVar[str] = "runs"
    """The field for positional arguments."""
    runs: tuple[Path, ...]
    """Directories of runs. Every summary.json below them is included."""
    output: Path
    """Directory for report.html."""
