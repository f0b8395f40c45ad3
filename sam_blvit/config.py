"""Every model as data: one frozen dataclass describes any encoder this package builds.

Standard library only, so the config inside a checkpoint reads anywhere. Layers are counted from 1
here, as the paper counts them; parameter names count blocks from 0, as SAM does.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

COMPUTE_DTYPES = ("float32", "bfloat16")
PATCH_SIZE = 16
SAM_WINDOW = 14
EMBEDDING_CHANNELS = 256
"""Channels of the image embedding that SAM's mask decoder reads."""


def check_keep_ratio(keep_ratio: float) -> float:
    """Return `keep_ratio` as a float, or raise ValueError if it is no number in [0, 1]."""
    if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, Real) or not 0 <= keep_ratio <= 1:
        raise ValueError(f"keep_ratio={keep_ratio!r} is not a number in [0, 1]; the paper's is 0.25")
    return float(keep_ratio)


def check_seed(seed: int) -> None:
    """Raise ValueError unless `seed` is one that NumPy takes."""
    if seed < 0:
        raise ValueError(f"seed={seed} is negative; any whole number from 0 up will do")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A SAM whose image encoder is dense (`routed_from` is None) or big.LITTLE."""

    name: str
    """Registry name."""
    dim: int
    """Channels of the main stream (C)."""
    heads: int
    """Attention heads of a performance block."""
    layers: int
    """Number of layers."""
    global_layers: tuple[int, ...]
    """Layers that attend over all tokens; every other layer attends inside a window."""
    image_size: int = 1024
    """Longest side of the encoder's input, pixels."""
    window: int = SAM_WINDOW
    """Side of a window, tokens. Where it does not divide the grid, windowed attention pads as SAM does."""
    rel_pos_window: int = SAM_WINDOW
    """Window the relative-position tables were made for: they have 2 * rel_pos_window - 1 rows."""
    routed_from: int | None = None
    """First layer that is routed; all before it are dense. None: every layer is dense."""
    routers_after: tuple[int, ...] = ()
    """Layers whose output is scored; a choice holds until the next router."""
    little_layers: tuple[int, ...] = ()
    """Routed layers that have an efficiency block."""
    little_dim: int = 0
    """Channels inside an efficiency block (Ce)."""
    little_heads: int = 0
    """Attention heads of an efficiency block."""
    keep_ratio: float = 0.25
    """Share of the tokens that performance blocks update, until set otherwise at run time."""
    compute_dtype: str = "float32"
    """dtype of matrix products inside the encoder: float32 or bfloat16."""

    def __post_init__(self) -> None:
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(f"compute_dtype={self.compute_dtype!r} is not one of {', '.join(COMPUTE_DTYPES)}")
        if self.image_size < PATCH_SIZE or self.image_size % PATCH_SIZE:
            raise ValueError(f"image_size={self.image_size} is not a positive multiple of {PATCH_SIZE}")
        if not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"window={self.window!r} is not a positive whole number of tokens")
        for name in ("global_layers", "routers_after", "little_layers"):
            if beyond := [layer for layer in getattr(self, name) if not 1 <= layer <= self.layers]:
                raise ValueError(f"{name} names layer {beyond[0]}; {self.name} has layers 1 to {self.layers}")
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} does not divide into heads={self.heads}")
        check_keep_ratio(self.keep_ratio)
        if self.routed_from is None:
            if self.routers_after or self.little_layers:
                raise ValueError(f"{self.name}: routers_after and little_layers need routed_from")
            return
        if self.little_layers and (not self.little_heads or self.little_dim % self.little_heads):
            raise ValueError(f"little_dim={self.little_dim} does not divide into little_heads={self.little_heads}")
        if not self.routers_after or min(self.routers_after) >= self.routed_from:
            raise ValueError(
                f"routed_from={self.routed_from} needs a router after an earlier layer; "
                f"routers_after={self.routers_after}"
            )
        if self.little_layers and min(self.little_layers) < self.routed_from:
            raise ValueError(f"little_layers={self.little_layers} start before routed_from={self.routed_from}")

    @property
    def grid(self) -> int:
        """Tokens along a side of the square input (G)."""
        return self.image_size // PATCH_SIZE

    @property
    def routed(self) -> bool:
        """Whether any layer is routed."""
        return self.routed_from is not None

    @property
    def padded(self) -> bool:
        """Whether windowed attention pads the grid (SAM's windows of 14 in a grid of 64)."""
        return self.grid % self.window != 0

    @property
    def square_input(self) -> bool:
        """Whether photographs are padded to SAM's square: so are those of dense models, and of big.LITTLE models with
        SAM's windows, whose keep ratio 1 is SAM. Other big.LITTLE models pad to whole windows only."""
        return self.padded or not self.routed or self.window == SAM_WINDOW

    def to_json(self) -> str:
        """The config as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """The inverse of `to_json`; ValueError names fields this version does not know."""
        fields: dict[str, Any] = json.loads(text)
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown model config fields {unknown}: written by a newer sam_blvit, which can read it")
        lists_to_tuples: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return cls(**lists_to_tuples)


def _dense(name: str, dim: int, heads: int, layers: int, global_layers: tuple[int, ...]) -> ModelConfig:
    return ModelConfig(name=name, dim=dim, heads=heads, layers=layers, global_layers=global_layers)


VIT_B = _dense("vit_b", 768, 12, 12, (3, 6, 9, 12))
VIT_L = _dense("vit_l", 1024, 16, 24, (6, 12, 18, 24))
VIT_H = _dense("vit_h", 1280, 16, 32, (8, 16, 24, 32))
VIT_TINY = dataclasses.replace(
    _dense("vit_tiny", 192, 3, 12, (3, 6, 9, 12)), image_size=512, window=8, rel_pos_window=8
)

MODELS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        VIT_B,
        VIT_L,
        VIT_H,
        VIT_TINY,
        dataclasses.replace(
            VIT_B,
            name="blvit_b_t",
            window=16,
            routed_from=2,
            routers_after=(1, 4, 7, 10),
            little_layers=tuple(range(2, 13)),
            little_dim=192,
            little_heads=3,
        ),
        dataclasses.replace(
            VIT_L,
            name="blvit_l_s",
            window=16,
            routed_from=7,
            routers_after=(6, 12, 18),
            little_layers=tuple(range(7, 24, 2)),
            little_dim=384,
            little_heads=6,
        ),
        dataclasses.replace(
            VIT_H,
            name="blvit_h_b",
            window=16,
            routed_from=10,
            routers_after=(8, 16, 24),
            little_layers=tuple(range(10, 33, 2)),
            little_dim=768,
            little_heads=12,
        ),
        dataclasses.replace(
            VIT_TINY,
            name="blvit_tiny",
            routed_from=2,
            routers_after=(1, 4, 7, 10),
            little_layers=tuple(range(2, 13)),
            little_dim=64,
            little_heads=1,
        ),
    )
}
"""Every registry name and its model. vit_b, vit_l, vit_h are SAM's own; vit_tiny is the dense teacher of blvit_tiny."""


def model_config(name: str, **overrides: object) -> ModelConfig:
    """The config of registry name `name` with fields replaced; ValueError lists the names there are."""
    if name not in MODELS:
        raise ValueError(f"no model named {name!r}; there are {', '.join(MODELS)}")
    return override(MODELS[name], **overrides)


def override(config: ModelConfig, **overrides: object) -> ModelConfig:
    """`config` with fields replaced; a torch dtype may stand for compute_dtype. ValueError names unknown fields."""
    unknown = sorted(set(overrides) - {field.name for field in dataclasses.fields(config)})
    if unknown:
        raise ValueError(
            f"{config.name}: unknown option {', '.join(unknown)}; window, image_size, keep_ratio and "
            "compute_dtype are the usual ones"
        )
    if not config.routed and overrides.get("keep_ratio", 1) != 1:
        raise ValueError(f"keep_ratio={overrides['keep_ratio']}: {config.name} is dense, its keep_ratio is always 1")
    if "compute_dtype" in overrides:
        overrides["compute_dtype"] = str(overrides["compute_dtype"]).removeprefix("torch.")
    return dataclasses.replace(config, **overrides)  # type: ignore[arg-type]


DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """Which model a command runs, and where."""

    model: str = "blvit_tiny"
    """Registry name, or the path of a checkpoint of ours."""
    checkpoint: Path | None = None
    """A checkpoint of ours or a plain SAM .pth of the same size. Default: blvit_tiny's own weights."""
    keep_ratio: float | None = None
    """Share of the tokens that performance blocks update, 0 to 1. Default: the model's own."""
    image_size: int | None = None
    """Longest side of the encoder's input, pixels; positions are interpolated to it. Default: the checkpoint's."""
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
class FlopsConfig:
    """What `sam-blvit flops` counts and how it prints."""

    keep_ratio: float | None = None
    """Share of the tokens that performance blocks update, 0 to 1. Default: each model's own."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        if self.keep_ratio is not None:
            check_keep_ratio(self.keep_ratio)


EVALUATION_CHOICES = {
    "select": ("argmax", "single", "oracle", "sam"),
    "box_source": ("ann", "mask"),
    "subset": ("full", "minival"),
    "boxes": ("gt",),
    "table": ("csv", "parquet"),
}
"""Settings of an evaluation, and the words they take."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(WeightsConfig):
    """One measurement: point and box mIoU, or with boxes to prompt by the AP of instance segmentation."""

    model: str = "blvit_tiny"
    """Registry name, the path of a checkpoint of ours, or module:function, which returns a segment_anything Sam (given
    `checkpoint`, if there is one, under that name)."""
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
    """Also measure under jpeg<quality>, shift<pixels> and dark, each in a directory of its own."""
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
    def measures_ap(self) -> bool:
        """Whether AP is measured, rather than mIoU."""
        return self.detections is not None or self.boxes is not None

    def _check_task(self) -> None:
        """A setting of the other task would have no effect."""
        for_miou = ("protocol", "box_source", "feed_mask", "oracle", "seeds", "perturb", "include_crowd", "table")
        idle = for_miou if self.measures_ap else ("refine",)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        if named := [name for name in idle if getattr(self, name) != defaults[name]]:
            task, other = ("AP", "mIoU") if self.measures_ap else ("mIoU", "AP: add detections or boxes")
            raise ValueError(f"{', '.join(named)}: no effect when measuring {task}, a setting for {other}")
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


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One training run: distillation from a teacher SAM plus the mask loss, or the mask loss alone."""

    data: Path
    """Directory of SA-1B .tar files, or of sa_<id>.jpg and sa_<id>.json side by side."""
    output: Path
    """Directory of the run; started again with the same settings it goes on where it stopped."""
    model: str = "blvit_tiny"
    """Registry name of the model to train."""
    checkpoint: Path | None = None
    """Weights to start from: ours or a plain SAM .pth. Default: the teacher's; without a teacher, fresh ones."""
    teacher: Path | None = None
    """Checkpoint of the SAM whose image embeddings are to be matched. Default: none, the mask loss alone."""
    teacher_model: str = "vit_tiny"
    """Registry name of the teacher."""
    exclude: Path | None = None
    """Text file of image ids to keep out of training."""
    image_size: int | None = None
    """Longest side of the input, pixels. Default: the model's own."""
    mask_side: int | None = None
    """Side of the square in which masks are compared, pixels; smaller saves time and memory. Default: image_size."""
    masks_per_image: int = 16
    """Masks drawn from an image, at most."""
    smallest_crop: float = 1.0
    """Share of each side that a random crop keeps at least; 1 crops nothing, as SAM."""
    flip: bool = False
    """Mirror half of the images."""
    steps: int = 1000
    """Steps of the optimiser."""
    batch_size: int = 8
    """Images a step."""
    lr: float = 5e-4
    """Peak learning rate of efficiency blocks, routers, alpha, gamma and the outside vector."""
    encoder_lr: float = 6.25e-5
    """Peak learning rate of performance blocks and neck; 0 freezes them."""
    decoder_lr: float = 5e-5
    """Peak learning rate of the mask decoder; 0 freezes it."""
    prompt_lr: float = 0.0
    """Peak learning rate of the prompt encoder; 0 freezes it."""
    weight_decay: float = 0.1
    """Weight decay of matrices other than positions and embeddings."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    clip_norm: float = 1.0
    """Gradient norm above which gradients are scaled down."""
    distillation_weight: float = 2.5
    """Weight of the distillation loss beside the mask loss (paper, section 4.1)."""
    keep_ratios: tuple[float, ...] = (0.25,)
    """Keep ratios to draw from, one a step; naming one twice doubles its share."""
    precision: str = "fp32"
    """fp32 or bf16 (autocast; losses stay in fp32)."""
    seed: int = 0
    """Seed of weights, order, masks and prompts."""
    workers: int = 2
    """Processes that read data; 0 reads in the training process."""
    log_every: int = 20
    """Steps between lines of log.jsonl."""
    save_every: int = 500
    """Steps between checkpoints."""
    device: str = "auto"
    """auto, cpu, cuda or mps. auto takes the first of cuda, mps, cpu that there is."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("steps", "batch_size", "masks_per_image", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a positive number")
        for name in ("lr", "encoder_lr", "decoder_lr", "prompt_lr", "weight_decay", "warmup_steps", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative")
        if self.mask_side is not None and self.mask_side < 1:
            raise ValueError(f"mask_side={self.mask_side} is not a positive number of pixels")
        if self.clip_norm <= 0:
            raise ValueError(f"clip_norm={self.clip_norm} is not a positive number")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={self.precision!r} is not one of fp32, bf16")
        if not 0 < self.smallest_crop <= 1:
            raise ValueError(f"smallest_crop={self.smallest_crop} is outside (0, 1]")
        if not self.keep_ratios:
            raise ValueError("keep_ratios is empty; the paper's is 0.25")
        for ratio in self.keep_ratios:
            check_keep_ratio(ratio)
