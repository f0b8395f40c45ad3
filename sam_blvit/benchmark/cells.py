"""What is measured: a cell is one model under one set of circumstances, a group is all cells of one shape.

The cells of a group are timed in turn in one process, so that their ratios mean something.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sam_blvit.checkpoint.load import read_checkpoint
from sam_blvit.config import ASPECTS, MODELS, BenchmarkConfig, ModelConfig, model_config, override
from sam_blvit.exported.sam import exported_pair
from sam_blvit.system.distributed import pick_device, pick_dtype

AS_EXPORTED = ("float32", "onnxruntime")
"""Dtype, in which the machine's rate is measured beside it, and way of an exported model."""
DEFAULT_MODELS = ("blvit_b_t", "vit_b", "segment_anything:build_sam_vit_b")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model under one set of circumstances."""

    model: str
    """Registry name, path of a checkpoint of ours, module:function, or onnx:ENCODER,DECODER."""
    keep_ratio: float | None
    """Share of the tokens that performance blocks update; None for a model without routers."""
    dtype: str
    way: str
    device: str
    allocator: str | None
    """None but on a CPU."""
    threads: int | None
    """None: as many as PyTorch takes."""
    batch: int
    side: int | None
    """Longest side of the image, pixels; None: the model's own."""
    aspect: str

    @property
    def foreign(self) -> bool:
        """Whether the model is not ours: `module:function`, or an exported pair."""
        return is_foreign(self.model)

    @property
    def exported(self) -> bool:
        """Whether onnxruntime runs the encoder."""
        return exported_pair(self.model) is not None

    @property
    def dtype_name(self) -> str:
        """The dtype, and how it comes about in a model that is not ours."""
        if self.exported:
            return "as exported"
        return f"{self.dtype} autocast" if self.foreign and self.dtype != "float32" else self.dtype

    @property
    def shape(self) -> str:
        """What all cells of a group share, in words."""
        allocator = [] if self.allocator is None else [f"{self.allocator} allocator"]
        threads = [] if self.threads is None else [f"{self.threads} thread{'s' * (self.threads > 1)}"]
        side = "each model's own side" if self.side is None else f"{self.side} pixels"
        return ", ".join([self.device, *allocator, *threads, f"batch {self.batch}", side, self.aspect])


@dataclass(kw_only=True)
class Row:
    """A cell, and what came of it."""

    cell: Cell
    input_size: list[int] | None = None
    """Height and width that the encoder is given, pixels."""
    macs: int | None = None
    """Multiply-adds of the encoder for one image, every product counted; None if they could not be."""
    weights: str | None = None
    """Where they come from: random, file or function."""
    segment_anything: bool = False
    """Whether the encoder is segment_anything's own."""
    first_seconds: float | None = None
    """The encoder's first call, compilation included."""
    peak_bytes: int | None = None
    """The most memory that the encoder took beyond what was taken once its model was built."""
    encoder_ms: list[float] = field(default_factory=list)
    """One a round."""
    decoder_ms: list[float] = field(default_factory=list)
    """One a round: a box to a mask of the image's size, batch 1."""
    problem: str | None = None
    """Why there are no times."""

    def take(self, event: dict[str, Any]) -> None:
        """Add what a measuring process says."""
        for name, value in event.items():
            if name in ("encoder_ms", "decoder_ms"):
                getattr(self, name).append(value)
            else:
                setattr(self, name, value)


@dataclass(kw_only=True)
class Group:
    """All cells of one shape, in the order in which they were asked for: the first is what others are compared with."""

    rows: list[Row]
    machine: dict[str, Any] = field(default_factory=dict)
    """What the group was measured on."""
    rates: dict[str, list[float]] = field(default_factory=dict)
    """Multiply-adds a second of a large matrix product, one a round, by dtype."""

    @property
    def shape(self) -> str:
        """What its cells share, in words."""
        return self.rows[0].cell.shape


def plan(models: Sequence[str], config: BenchmarkConfig) -> list[Group]:
    """Every combination that `config` asks for; ValueError, one line, for a model or device that is not there."""
    devices = [pick_device(name).type for name in config.devices]
    subjects = [(model, keep_ratio) for model in models for keep_ratio in _keep_ratios(model, config)]
    groups = []
    for device, batch, side, aspect in itertools.product(
        devices, config.batches, config.sides or (None,), config.aspects
    ):
        for threads, allocator in _processes(device, config):
            shape: Any = {"device": device, "allocator": allocator, "threads": threads}
            shape |= {"batch": batch, "side": side, "aspect": aspect}
            dtypes = tuple(dict.fromkeys(dtype_name(dtype, device) for dtype in config.dtypes))
            cells = [
                Cell(model=model, keep_ratio=keep_ratio, dtype=dtype, way=way, **shape)
                for model, keep_ratio in subjects
                for dtype, way in ([AS_EXPORTED] if exported_pair(model) else itertools.product(dtypes, config.ways))
            ]
            groups.append(Group(rows=[Row(cell=cell) for cell in cells]))
    return groups


def dtype_name(name: str, device: str) -> str:
    """float32 or bfloat16, which auto stands for on `device`."""
    return str(pick_dtype(name, torch.device(device))).removeprefix("torch.")


def photograph_size(side: int, aspect: str) -> tuple[int, int]:
    """Height and width of a photograph whose longest side has `side` pixels."""
    width, height = ASPECTS[aspect]
    return round(side * height / width), side


def is_foreign(model: str) -> bool:
    """Whether `model` is `module:function` or an exported pair."""
    return ":" in model and not Path(model).is_file()


def _processes(device: str, config: BenchmarkConfig) -> list[tuple[int | None, str | None]]:
    """Threads and allocator of the processes that measure on `device`."""
    return list(itertools.product(config.threads or (None,), config.allocators)) if device == "cpu" else [(None, None)]


def _keep_ratios(model: str, config: BenchmarkConfig) -> list[float | None]:
    if is_foreign(model):
        return [None]
    settings = _config_of(model)
    for side in config.sides:
        override(settings, image_size=side)
    return list(config.keep_ratios or (settings.keep_ratio,)) if settings.routed else [None]


def _config_of(model: str) -> ModelConfig:
    if model in MODELS or not Path(model).suffix:
        return model_config(model)
    _, config = read_checkpoint(model)
    if config is None:
        raise ValueError(f"{model} is a plain SAM checkpoint, without a config; name the registry's model of its size")
    return config
