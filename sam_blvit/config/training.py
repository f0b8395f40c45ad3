"""What the commands in tools/ take."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_blvit.config.commands import DEVICES, check_seed
from sam_blvit.config.model import check_keep_ratio, model_config
from sam_blvit.config.options import parse_options

SAME = "same"
"""As a teacher's name: the dense model of the size of the registry's student, whatever options make of that."""
TRAINING_CHOICES = {
    "device": DEVICES,
    "freeze": ("none", "performance"),
    "precision": ("auto", "fp32", "bf16"),
    "preset": ("default", "paper"),
    "prompts": ("mixed", "sam11", "evs"),
    "sharding": ("ddp", "fsdp"),
    "unit": ("tar", "image"),
    "warm_start": ("none", "layerwise"),
}
"""Settings of training, and the words they take."""
PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "batch_size": 8,
        "lr": 5e-4,
        "encoder_lr": 6.25e-5,
        "decoder_lr": 5e-5,
        "drop_path": 0.1,
        "keep_ratios": (0.0, 0.125, 0.25, 0.5, 1.0),
    },
    "paper": {
        "batch_size": 1,
        "lr": 5e-4,
        "encoder_lr": 5e-4,
        "decoder_lr": 5e-4,
        "drop_path": 0.0,
        "keep_ratios": (0.25,),
    },
}
"""Readings of the paper's one line on optimisation, for 8 GPUs: `paper` takes it at its word (global batch 8, one
rate), `default` reads 8 images a GPU, and lets what is pretrained move slower."""


@dataclass(frozen=True, kw_only=True)
class TrainingDataConfig:
    """Which photographs and masks."""

    data: Path
    """Directory of SA-1B: .tar files; sa_<id>.jpg and sa_<id>.json side by side; or images/ and annotations/ (or
    masks/), perhaps each with train/ and val/. With `annotations`: the directory of the photographs."""
    annotations: Path | None = None
    """Annotations of your own data in COCO's instance format."""
    manifest: Path | None = None
    """List of the photographs to use, as tools/make_subset.py writes it. Default: all of `data`."""
    exclude: Path | None = None
    """Text file of image ids to leave out."""
    holdout: int = 0
    """Photographs drawn by `seed` and kept out of training, to validate with."""
    seed: int = 0
    """Seed of weights, order, masks and prompts."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        _check_words(self)
        _check_at_least(self, 0, "holdout")
        if self.annotations is not None and self.manifest is not None:
            raise ValueError(
                f"manifest={self.manifest} lists photographs in SA-1B's layout; leave it out beside annotations, and "
                "name what is not to be used with exclude"
            )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(TrainingDataConfig):
    """Whose image embeddings are to be matched, on which images."""

    teacher: Path | None = None
    """The SAM whose image embeddings are to be matched: a checkpoint, or any exported encoder (.onnx). It sees each
    photograph at its own input size. Default: none, the mask loss alone."""
    teacher_model: str = SAME
    """Registry name of the teacher; same: the dense model of the size of `model`. No effect on an exported one."""
    teacher_decoder: Path | None = None
    """The exported decoder (.onnx) of an exported teacher. Default: the file beside it with "decoder" for "encoder"."""
    model: str = "blvit_s_t"
    """Registry name of the model to train."""
    image_size: int | None = None
    """Longest side of the input, pixels. Default: the model's own."""
    batch_size: int | None = None
    """Images a process takes at once. Default: the preset's."""
    precision: str = "auto"
    """Of matrix products: fp32, bf16 (autocast; losses stay in fp32), or auto: bf16 where the processor has it."""
    workers: int = 2
    """Processes that read data, for each process that computes; 0 reads where it computes."""
    device: str = "auto"
    """auto, cpu, cuda or mps. auto takes the first of cuda, mps, cpu that there is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least(self, 1, "batch_size")
        _check_at_least(self, 0, "workers")


@dataclass(frozen=True, kw_only=True)
class CacheConfig(TeacherConfig):
    """A teacher's embeddings, written once for many runs."""

    output: Path
    """Directory of the shards; started again it goes on where it stopped."""
    mirrored: bool = False
    """Keep the embeddings of mirrored photographs, for mirrored_cache; they need a directory of their own."""
    shard_images: int = 500
    """Images a shard; at 1024 px each takes 2 MiB."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least(self, 1, "shard_images")
        if self.teacher is None:
            raise ValueError("teacher is not given: name the checkpoint of the SAM whose embeddings are to be kept")
        if self.holdout:
            raise ValueError(f"holdout={self.holdout}: no effect, embeddings of all photographs are kept; leave it out")


@dataclass(frozen=True, kw_only=True)
class SubsetConfig:
    """A part of SA-1B, drawn by seed."""

    data: Path
    """Directory of SA-1B: .tar files; sa_<id>.jpg and sa_<id>.json side by side; or images/ and annotations/."""
    output: Path
    """Directory for train.tsv, validation.tsv and subset.json."""
    unit: str = "tar"
    """What is drawn: whole tar files (EdgeSAM's way, quick to copy) or images."""
    fraction: float = 0.02
    """Share of the tars, or of the images, to train on; 0.02 of SA-1B's 1,000 tars are 20."""
    validation: int = 1000
    """Images to validate with, from what is not trained on: with unit tar from one further tar."""
    seed: int = 0
    """Seed of the draw."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        _check_words(self)
        _check_at_least(self, 0, "validation")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction} is outside (0, 1]; the paper's is 0.02")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TeacherConfig):
    """One training run: distillation from a teacher SAM plus the mask loss, or the mask loss alone."""

    output: Path
    """Directory of the run."""
    preset: str = "default"
    """default, or paper: batch size, rates, drop path and keep ratios that are not named otherwise."""

    # the student
    checkpoint: Path | None = None
    """Weights to start from: ours or a plain SAM .pth. Default: the teacher's; without a teacher, fresh ones."""
    base: Path | None = None
    """The SAM that `checkpoint` was trained for, if that is an adapter."""
    window: int | None = None
    """Side of a window, tokens; 14 pads as SAM does, and makes keep ratio 1 SAM itself. Default: the model's own."""
    options: tuple[str, ...] = ()
    """Fields of the model to replace, NAME=VALUE each, as in primary_keys=pooled or dim=128; recorded in the
    checkpoint."""
    freeze: str = "none"
    """performance: train efficiency blocks, routers, alpha and gamma alone. The SAM inside stays what it was, bit for
    bit, and an adapter is saved instead of a whole model."""
    warm_start: str = "none"
    """layerwise: before anything else, each efficiency block is regressed onto its performance block's update."""
    warm_start_images: int = 64
    """Photographs that the layerwise warm start looks at."""
    warm_start_steps: int = 200
    """Steps of the layerwise warm start for each efficiency block."""

    # masks and prompts
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

    # losses
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
    keep_ratios: tuple[float, ...] | None = None
    """Keep ratios to draw from, one a step; naming one twice doubles its share. Default: the preset's."""
    teacher_cache: Path | None = None
    """Directory that tools/cache_teacher.py wrote with this teacher. Default: the teacher runs beside the student."""
    mirrored_cache: Path | None = None
    """Directory that tools/cache_teacher.py --mirrored wrote, beside teacher_cache where flip mirrors photographs."""

    # optimiser
    epochs: float = 10.0
    """Times that every photograph is seen: the schedule's length."""
    schedule_steps: int | None = None
    """The schedule's length in steps, instead of epochs."""
    max_steps: int | None = None
    """Steps after which the run stops, wherever its schedule stands; started again with more it goes on."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    lr: float | None = None
    """Peak learning rate of efficiency blocks, routers, alpha, gamma and the outside vector. Default: the preset's."""
    encoder_lr: float | None = None
    """Peak learning rate of performance blocks and neck; 0 freezes them. Default: the preset's."""
    neck_lr: float | None = None
    """Peak learning rate of neck and enlargement, where they start untrained. Default: encoder_lr."""
    decoder_lr: float | None = None
    """Peak learning rate of the mask decoder; 0 freezes it. Default: the preset's."""
    prompt_lr: float = 0.0
    """Peak learning rate of the prompt encoder; 0 freezes it."""
    frozen_layers: int = 0
    """Performance blocks from the first on that stay as they are, with patches and positions: a dense model saves their
    backward pass."""
    layer_decay: float = 1.0
    """Factor on the rate of performance blocks for each layer below the last."""
    drop_path: float | None = None
    """Chance that the last layer's update of an image is dropped, falling to 0 at the first. Default: the preset's."""
    weight_decay: float = 0.1
    """Weight decay of matrices other than positions and embeddings."""
    warmup_steps: int = 1000
    """Steps of linear warm-up; at most a tenth of the schedule."""
    clip_norm: float = 1.0
    """Gradient norm above which gradients are scaled down."""
    ema: float = 0.0
    """Decay a step of a moving average of the weights, which is what is validated and saved; 0 keeps none."""
    max_bad_steps: int = 10
    """Steps skipped for a gradient that is no number after which the run ends."""

    # machine
    sharding: str = "ddp"
    """ddp (every process holds the model) or fsdp (FSDP2: each holds a part; for vit_h)."""
    checkpoint_layers: bool = False
    """Activation checkpointing of every encoder layer and decoder round: less memory, a third more time."""
    compile: bool = False
    """torch.compile the image encoder."""

    # what is kept and said
    resume: str = "auto"
    """auto goes on with the newest checkpoint in `output` that loads, if there is one; never starts anew, and refuses
    an output that holds a run."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between lines of log.jsonl."""
    picture_every: int = 0
    """Steps between pictures of masks and routing; 0 draws none."""
    tensorboard: bool = False
    """Also log for TensorBoard (pip install tensorboard)."""
    validate_every: int = 0
    """Steps between validations; 0 validates at the end alone. Wants holdout, val_manifest or val_annotations."""
    val_manifest: Path | None = None
    """List of photographs of `data` to validate with, as tools/make_subset.py writes it."""
    val_annotations: Path | None = None
    """Annotations in LVIS or COCO format to validate with."""
    val_images: Path | None = None
    """Directory of their photographs."""
    val_limit: int = 500
    """Photographs of each kind to validate with, at most."""

    # instead of training
    preflight: bool = False
    """Check data, checkpoint, memory (by real steps at full size) and disk, print steps, hours and GB, and stop."""
    dry_run_data: bool = False
    """Measure how fast data come, and what share of a step waits for them, and stop."""

    def __post_init__(self) -> None:
        for name, value in PRESETS.get(self.preset, {}).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        super().__post_init__()
        if self.masks_per_image is None:
            object.__setattr__(self, "masks_per_image", max(16, 64 // (self.batch_size or 1)))
        _check_at_least(self, 1, "masks_per_image", "mask_side", "max_steps", "schedule_steps")
        _check_at_least(
            self,
            1,
            "accumulate",
            "checkpoint_every",
            "log_every",
            "max_bad_steps",
            "val_limit",
            "window",
            "warm_start_images",
        )
        _check_at_least(self, 1, "warm_start_steps")
        _check_at_least(
            self, 0, "lr", "encoder_lr", "neck_lr", "decoder_lr", "prompt_lr", "weight_decay", "warmup_steps"
        )
        _check_at_least(self, 0, "point_sample", "correction_rounds", "distillation_weight", "distillation_mse")
        _check_at_least(
            self,
            0,
            "distillation_layers",
            "listwise_weight",
            "kd_only_steps",
            "frozen_layers",
            "picture_every",
            "validate_every",
        )
        self._check_ranges()
        self._check_together()
        self._check_distillation()
        self._check_model()

    @property
    def validates(self) -> bool:
        """Whether there is anything to validate with."""
        return bool(self.holdout) or self.val_manifest is not None or self.val_annotations is not None

    @property
    def model_overrides(self) -> dict[str, object]:
        """Fields of the model that this run replaces."""
        given = {"window": self.window, "image_size": self.image_size}
        return {name: value for name, value in given.items() if value is not None} | parse_options(self.options)

    def _check_ranges(self) -> None:
        if self.resume not in ("auto", "never"):
            raise ValueError(f"resume={self.resume!r} is not one of auto, never")
        if not self.epochs > 0:
            raise ValueError(f"epochs={self.epochs} is not a positive number; the paper's is 10")
        if self.clip_norm <= 0:
            raise ValueError(f"clip_norm={self.clip_norm} is not a positive number")
        for name, low, high in (("smallest_crop", 0, 1), ("layer_decay", 0, 1)):
            if not low < getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} is outside ({low}, {high}]")
        for name in ("drop_path", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is outside [0, 1)")
        if not self.keep_ratios:
            raise ValueError("keep_ratios is empty; the paper's is 0.25")
        for ratio in self.keep_ratios:
            check_keep_ratio(ratio)
        for name in (field.name for field in dataclasses.fields(self)):
            if isinstance(value := getattr(self, name), float) and not math.isfinite(value):
                raise ValueError(f"{name}={value} is not a finite number")

    def _check_together(self) -> None:
        """Settings that have no effect, or the wrong one, without or beside another."""
        if self.preflight and self.dry_run_data:
            raise ValueError("preflight and dry_run_data each run instead of training; choose one")
        if self.prompts != "mixed" and self.correction_rounds != FinetuneConfig.correction_rounds:
            raise ValueError(
                f"correction_rounds={self.correction_rounds}: no effect, prompts={self.prompts} has rounds of its own; "
                f"leave it at {FinetuneConfig.correction_rounds}, or take prompts=mixed"
            )
        if self.val_images is not None and self.val_annotations is None:
            raise ValueError(
                f"val_images={self.val_images}: no effect without val_annotations, what is on them; add it"
            )
        if self.val_annotations is not None and self.val_images is None:
            raise ValueError(f"val_annotations={self.val_annotations} wants val_images, where its photographs are")
        if self.annotations is not None and self.val_manifest is not None:
            raise ValueError(
                f"val_manifest={self.val_manifest} lists SA-1B's photographs; use holdout beside annotations"
            )
        if self.holdout and self.val_manifest is not None:
            raise ValueError(
                f"holdout={self.holdout} and val_manifest={self.val_manifest}: choose one to validate with"
            )
        if self.listwise_weight and self.sharding == "fsdp":
            raise ValueError(
                f"listwise_weight={self.listwise_weight} looks into layers whose weights sharding=fsdp keeps apart; "
                "take sharding=ddp"
            )
        if self.validate_every and not self.validates:
            raise ValueError(
                f"validate_every={self.validate_every}: nothing to validate with; add holdout, val_manifest or "
                "val_annotations"
            )

    def _check_distillation(self) -> None:
        """The teacher, and what is wanted of it."""
        distils = (
            "teacher_cache",
            "mirrored_cache",
            "teacher_model",
            "teacher_decoder",
            "distillation_layers",
            "distillation_mse",
            "kd_only_steps",
        )
        idle = [name for name in distils if getattr(self, name) != getattr(FinetuneConfig, name)]
        if self.teacher is None and idle:
            raise ValueError(f"{', '.join(idle)}: no effect without a teacher; name its checkpoint with teacher")
        if self.teacher is not None and self.teacher.suffix == ".onnx" and self.distillation_layers:
            raise ValueError("an exported teacher gives final embeddings alone; leave out distillation_layers")
        if self.teacher_cache is not None and self.smallest_crop < 1:
            raise ValueError("teacher_cache holds embeddings of whole photographs; leave out smallest_crop")
        if self.teacher_cache is not None and self.flip and self.mirrored_cache is None:
            raise ValueError(
                "flip: teacher_cache holds embeddings of photographs as they are; write another cache with --mirrored "
                "and name it with mirrored_cache, or leave out flip"
            )
        if self.mirrored_cache is not None and (self.teacher_cache is None or not self.flip):
            raise ValueError("mirrored_cache: no effect without teacher_cache and flip; name both, or leave it out")
        if self.teacher_cache is not None and self.distillation_layers:
            raise ValueError("teacher_cache holds final embeddings alone; leave out distillation_layers")
        if self.kd_only_steps and not (self.distillation_weight or self.distillation_mse or self.distillation_layers):
            raise ValueError(
                f"kd_only_steps={self.kd_only_steps}: nothing to learn in them, as distillation_weight, "
                "distillation_mse and distillation_layers are 0; give one a weight"
            )

    def _check_model(self) -> None:
        """What the model has to have, and to start from."""
        if self.base is not None and self.checkpoint is None:
            raise ValueError(f"base={self.base}: no effect without an adapter above it; name that with checkpoint")
        model = model_config(self.model, **self.model_overrides)
        wanting = [name for name in ("warm_start", "freeze") if getattr(self, name) != "none"]
        if not model.routed and (idle := [*wanting, *(["listwise_weight"] if self.listwise_weight else [])]):
            raise ValueError(f"{', '.join(idle)}: no effect, {self.model} is dense; name a big.LITTLE model with model")
        if self.warm_start != "none" and not model.little_layers:
            raise ValueError(
                f"warm_start={self.warm_start}: no effect, the model has no efficiency blocks; leave it out"
            )
        if self.listwise_weight and model.router != "learned":
            raise ValueError(f"listwise_weight={self.listwise_weight}: no effect with router={model.router}")
        if self.frozen_layers > model.layers:
            raise ValueError(f"frozen_layers={self.frozen_layers}: {self.model} has {model.layers} layers")
        if self.window is not None and self.window > model.grid:
            raise ValueError(
                f"window={self.window} is more than the {model.grid} tokens along a side of {self.model} "
                f"at image_size={model.image_size}; name a smaller window or a larger image_size"
            )
        if wanting and self.teacher is None and self.checkpoint is None:
            raise ValueError(f"{', '.join(wanting)}: wants a trained SAM to start from; name teacher or checkpoint")


def _check_words(config: object) -> None:
    for name, words in TRAINING_CHOICES.items():
        if (value := getattr(config, name, None)) is not None and value not in words:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(words)}")


def _check_at_least(config: object, least: int, *names: str) -> None:
    for name in names:
        if (value := getattr(config, name)) is not None and not value >= least:
            kind = "a positive number" if least == 1 else "negative" if value < 0 else "a number from 0 up"
            raise ValueError(f"{name}={value} is {'not ' if kind != 'negative' else ''}{kind}")
