"""What the commands in eval/ take."""

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
"""Settings of an evaluation, and the words they take."""
OF_TASK = {
    "mIoU": ("protocol", "box_source", "feed_mask", "oracle", "seeds", "perturb", "include_crowd", "table"),
    "AP": ("refine",),
}
"""Settings that have an effect on one task alone."""
HOW_TO = {"mIoU": "mIoU", "AP": "AP: add detections or boxes"}
"""Each task, and what asks for it."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(WeightsConfig):
    """One measurement: point and box mIoU, or with boxes to prompt by the AP of instance segmentation."""

    model: str | None = None
    """Registry name, the path of a checkpoint of ours, or module:function, which returns a segment_anything Sam (given
    `checkpoint`, if there is one, under that name). Default: the model in `checkpoint`; without one, blvit_s_t."""
    annotations: Path
    """Annotations in LVIS v0.5, LVIS v1 or COCO format."""
    images: Path
    """Directory of the photographs: flat, trainval/, or train2017/ and val2017/ inside."""
    output: Path
    """Directory for summary.json, instances.csv or results.json, and pictures of the worst objects."""
    protocol: str = "blvit"
    """Named protocol of point and box mIoU: blvit, edge-rand, edge-center, ritm, sam-rand, or a JSON file that
    eval/calibrate.py froze."""
    select: str | None = None
    """Mask that is scored: argmax (of three, by predicted IoU), single, oracle (of three, by true IoU), or sam (argmax
    for one point, else single). Default: the protocol's; single for AP."""
    box_source: str | None = None
    """Where box prompts come from: ann (annotated box) or mask (tightest around the mask). Default: the protocol's."""
    feed_mask: bool = False
    """Also give each click of an iterative protocol the logits of the mask it corrects."""
    oracle: bool = False
    """Also score the best of the decoder's three masks for every prompt (columns iou_*_oracle)."""
    subset: str | None = None
    """full, or minival: photographs of COCO's val2017 alone. Default: the protocol's, which is full."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the prompts, which depend on seed and annotation id alone; mIoU is the mean over them."""
    keep_ratios: tuple[float, ...] = ()
    """Keep ratios to measure one after the other, each in a directory of its own."""
    perturb: tuple[str, ...] = ()
    """Also measure under jpeg<quality>, blur<radius>, shift<pixels> and dark, each in a directory of its own."""
    include_crowd: bool = False
    """Measure crowd annotations too."""
    detections: Path | None = None
    """A detector's boxes in Detectron2's results format: measure AP of the masks they prompt instead of mIoU."""
    boxes: str | None = None
    """gt: measure AP with the annotated boxes, the upper bound without a detector."""
    refine: int = 0
    """AP only: times that a box is asked again with the logits of the most confident mask."""
    prompts_per_batch: int = 64
    """Prompts decoded at once; bounds memory."""
    table: str = "csv"
    """Format of the table of instances: csv or parquet (needs pyarrow)."""
    resume: bool = False
    """Go on with what a killed run left in `output`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, words in EVALUATION_CHOICES.items():
            if (value := getattr(self, name)) is not None and value not in words:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(words)}")
        if self.prompts_per_batch < 1:
            raise ValueError(f"prompts_per_batch={self.prompts_per_batch} is not a positive number")
        if self.refine < 0:
            raise ValueError(f"refine={self.refine} is negative; 0 asks once")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} is empty or names one twice; the usual ones are 0,1,2")
        for seed in self.seeds:
            check_seed(seed)
        for ratio in self.keep_ratios:
            check_keep_ratio(ratio)
        if self.keep_ratios and (self.keep_ratio is not None or len(set(self.keep_ratios)) < len(self.keep_ratios)):
            raise ValueError(f"keep_ratios={self.keep_ratios}: name each once, and no keep_ratio beside them")
        if self.detections is not None and self.boxes is not None:
            raise ValueError(f"detections={self.detections} and boxes={self.boxes}: choose one source of boxes")
        self._check_task()

    @property
    def task(self) -> str:
        """What is measured, a name of `OF_TASK`."""
        return "AP" if self.measures_ap else "mIoU"

    @property
    def measures_ap(self) -> bool:
        """Whether AP is measured, rather than mIoU."""
        return self.detections is not None or self.boxes is not None

    def _check_task(self) -> None:
        """A setting of the other task would have no effect."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for other in OF_TASK.keys() - {self.task}:
            if named := [name for name in OF_TASK[other] if getattr(self, name) != defaults[name]]:
                names = ", ".join(named)
                raise ValueError(f"{names}: no effect when measuring {self.task}, a setting for {HOW_TO[other]}")
        if self.measures_ap and self.select == "oracle":
            raise ValueError("select=oracle looks at true masks, which a box to be judged has none of; take argmax")


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """A search for the protocol under which vanilla SAMs give the paper's numbers."""

    vit_b: Path
    """SAM's ViT-B checkpoint, or one of ours of a dense model that stands in for it."""
    vit_h: Path
    """SAM's ViT-H checkpoint, or one of ours of a dense model that stands in for it."""
    annotations: Path
    """Annotations in LVIS format."""
    images: Path
    """Directory of the photographs: flat, trainval/, or train2017/ and val2017/ inside."""
    output: Path
    """Directory for calibration.json, the frozen protocol blvit-cal.json, and each model's means."""
    seed: int = 0
    """Seed of the prompts."""
    prompts_per_batch: int = 64
    """Prompts decoded at once; bounds memory."""
    resume: bool = False
    """Go on with what a killed run left in `output`."""
    device: str = "auto"
    """auto, cpu, cuda or mps. auto takes the first of cuda, mps, cpu that there is."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.prompts_per_batch < 1:
            raise ValueError(f"prompts_per_batch={self.prompts_per_batch} is not a positive number")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Evaluation runs to be joined into one page."""

    positional: ClassVar[str] = "runs"
    """The field that words without a flag fill."""
    runs: tuple[Path, ...]
    """Directories of runs; every summary.json below them counts."""
    output: Path
    """Directory for report.html."""
