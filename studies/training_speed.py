"""Throughput of a training step, its time by part, and on a GPU its memory and MFU, as a Markdown table.

$ python studies/training_speed.py configs/sam_b_t.yaml --data SA1B --random-teacher --peak-teraflops 312

Accepts the settings of tools/finetune.py and runs its steps on its data; nothing is written. Every other step runs
unmodified and gives seconds and memory. In the other steps each part is timed, with a device synchronisation before and
after, which gives the shares. On a GPU all is measured with and without --compile and --checkpoint-layers.
"""

from __future__ import annotations

import functools
import gc
import itertools
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from sam_blvit.checkpoint.load import save_sam
from sam_blvit.cli import run
from sam_blvit.config import FinetuneConfig, ModelConfig, RunConfig, model_config, override
from sam_blvit.cost.latency import now
from sam_blvit.cost.macs import FLOP_PER_MAC, count_macs
from sam_blvit.data.samples import Sample
from sam_blvit.data.sources import Source, training_source
from sam_blvit.model.build import build_sam
from sam_blvit.system.distributed import Processes, joined_processes, pick_device
from sam_blvit.system.machine import processor
from sam_blvit.train.batches import Batch
from sam_blvit.train.loss import objective
from sam_blvit.train.optim import set_rates
from sam_blvit.train.preflight import PASSES
from sam_blvit.train.setup import Training, prepare
from sam_blvit.train.teacher.targets import CachedTeacher, LiveTeacher, teacher_model

PIECES = ("encoder", "teacher", "decoder", "backward", "optimiser", "data", "other")
"""Of a step: the student's forward pass; prompts, decoder and mask loss of all rounds; clipping belongs to the
optimiser; data is waiting for them; other is what remains, such as the distillation loss."""
RATE_SHARE = 0.01
"""Of the peak learning rates: steps at the peak would send random weights astray."""
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class SpeedConfig(FinetuneConfig):
    """A training run and how many of its steps to measure."""

    run: RunConfig = field(default_factory=lambda: RunConfig(output=Path("runs")))
    """Nothing is written."""
    steps: int = 10
    """Steps of either kind that count at each keep ratio, after one of each that warms up."""
    random_teacher: bool = False
    """A teacher of random weights, of the size that teacher_model names: as fast as one that has learnt."""
    peak_teraflops: float | None = None
    """What the device could do at most in this precision, for MFU: dense bf16 is 312 on an A100, 989 on an H100 (SXM)
    or H200, by NVIDIA's data sheets."""


@dataclass(frozen=True)
class SpeedResult:
    """Medians over the steps at one keep ratio."""

    compile: bool
    checkpoint_layers: bool
    keep_ratio: float
    seconds: float
    images_per_second: float
    """Of all processes."""
    masks: float
    """Masks of a step of this process."""
    shares: dict[str, float]
    """Of the seconds, by the names in PIECES; they sum to 1."""
    teraflops: float
    """A second of this device: multiply and add of the student's encoder, forward once and backward twice, on the
    photographs as they are padded. What --checkpoint-layers computes again, teacher and decoder do not count."""
    peak_gib: float | None
    """Of the device's memory; None on a CPU."""


class Clock:
    """Milliseconds that pieces of a step took, by name."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: dict[str, float] = defaultdict(float)

    def around(self, piece: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, whose time counts as `piece`'s."""

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = now(self.device)
            result = call(*args, **kwargs)
            self.spent[piece] += now(self.device) - start
            return result

        return timed

    def into(self, training: Training) -> ExitStack:
        """A context in which the steps of `training` are timed by piece."""
        optimizer, methods = training.stepper.optimizer, ExitStack()
        for piece, owner, name in (
            ("encoder", training.student, "encode_by_shape"),
            ("teacher", LiveTeacher, "targets"),
            ("teacher", CachedTeacher, "targets"),
            ("decoder", objective, "mask_losses"),
            ("backward", torch.Tensor, "backward"),
            ("optimiser", torch.nn.utils, "clip_grad_norm_"),
            ("optimiser", optimizer, "step"),
            ("optimiser", optimizer, "zero_grad"),
        ):
            methods.enter_context(patch.object(owner, name, self.around(piece, getattr(owner, name))))
        return methods


@dataclass(frozen=True)
class Step:
    """One step as measured."""

    milliseconds: float
    pieces: dict[str, float]
    """Milliseconds by piece; of a step that was not taken apart those of data alone."""
    masks: int
    macs: float
    """Multiply-adds of the encoder's forward pass."""
    peak: int | None
    """Bytes."""


def measure(config: SpeedConfig, source: Source, processes: Processes) -> list[SpeedResult]:
    """Measure `config` at each of its keep ratios. ValueError if a step has no finite gradient."""
    training = prepare(config, source, processes, warm=False)
    set_rates(training.stepper.optimizer, RATE_SHARE)
    ratios = sorted(set(config.student.keep_ratios)) if training.student.config.routed else [1.0]
    plain: dict[float, list[Step]] = {ratio: [] for ratio in ratios}
    apart: dict[float, list[Step]] = {ratio: [] for ratio in ratios}
    turns = 1 + config.steps
    with training.batches(start=0, steps=2 * turns * len(ratios)) as batches:
        for _, ratio in itertools.product(range(turns), ratios):  # taking turns: what else the machine does is shared
            plain[ratio].append(step(training, batches, ratio))
            clock = Clock(training.device)
            with clock.into(training):
                apart[ratio].append(step(training, batches, ratio, clock))
    return [row(training, ratio, plain[ratio][1:], apart[ratio][1:]) for ratio in ratios]


def step(training: Training, batches: Iterator[Batch], ratio: float, clock: Clock | None = None) -> Step:
    """Make the next step of `training` at keep `ratio`, as the training loop does."""
    stepper, device = training.stepper, training.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = now(device)
    mine = [next(batches) for _ in range(training.config.optimizer.accumulate)]
    waited = now(device) - start
    plan = stepper.plan(stepper.count(mine), step=training.config.losses.kd_only_steps)
    result = stepper.step(mine, replace(plan, keep_ratio=ratio), with_parts=False)
    spent = now(device) - start
    if not math.isfinite(result.gradient_norm):
        raise ValueError(f"gradient norm {result.gradient_norm}: the optimiser made no step; try another seed")
    samples = [item for batch in mine for item in batch if isinstance(item, Sample)]
    return Step(
        milliseconds=spent,
        pieces={**({} if clock is None else clock.spent), "data": waited},
        masks=sum(len(sample.masks) for sample in samples),
        macs=sum(encoder_macs(training, sample, ratio) for sample in samples),
        peak=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def encoder_macs(training: Training, sample: Sample, ratio: float) -> int:
    """Multiply-adds of the student's encoder on `sample` at keep `ratio`, in the shape to which it is padded there."""
    student = training.student
    height, width = sample.image.shape[-2:]
    if training.config.machine.sharding == "fsdp":
        height = width = student.config.image_size
    config = override(student.config, keep_ratio=ratio) if student.config.routed else student.config
    return macs_of_shape(config, student.image_encoder.padded_size(height, width))


@functools.cache
def macs_of_shape(config: ModelConfig, padded: tuple[int, int]) -> int:
    """Multiply-adds of the encoder on an input of this padded height and width, the longer of which is the model's."""
    return count_macs(config, input_size=padded).encoder.full


def row(training: Training, ratio: float, plain: list[Step], apart: list[Step]) -> SpeedResult:
    """The result at keep `ratio`: seconds of the unmodified steps, shares of the timed ones."""
    seconds = statistics.median(one.milliseconds for one in plain) / 1e3
    total = sum(one.milliseconds for one in apart)
    shares = {piece: sum(one.pieces.get(piece, 0.0) for one in apart) / total for piece in PIECES}
    shares["other"] = 1 - sum(shares.values())
    peaks = [one.peak for one in plain if one.peak is not None]
    return SpeedResult(
        compile=training.config.machine.compile,
        checkpoint_layers=training.config.machine.checkpoint_layers,
        keep_ratio=ratio,
        seconds=seconds,
        images_per_second=training.images_a_step / seconds,
        masks=statistics.mean(one.masks for one in plain),
        shares=shares,
        teraflops=FLOP_PER_MAC * PASSES * statistics.median(one.macs for one in plain) / seconds / 1e12,
        peak_gib=max(peaks) / GIB if peaks else None,
    )


def table(config: SpeedConfig, rows: list[SpeedResult]) -> str:
    """`rows` in Markdown."""
    columns = ["model", "precision", "compiled", "checkpointed", "keep ratio", "s a step", "images/s", *PIECES]
    lines = [[*columns, "masks a step", "TFLOP/s of the encoder", "MFU", "peak GiB"]]
    lines.append(["---"] * len(lines[0]))
    for one in rows:
        mfu = "-" if config.peak_teraflops is None else f"{100 * one.teraflops / config.peak_teraflops:.1f} %"
        switches = ["yes" if on else "no" for on in (one.compile, one.checkpoint_layers)]
        cells = [config.student.model, config.machine.precision, *switches, f"{one.keep_ratio:g}", f"{one.seconds:.3f}"]
        cells += [f"{one.images_per_second:.2f}", *(f"{100 * one.shares[piece]:.1f} %" for piece in PIECES)]
        peak = "-" if one.peak_gib is None else f"{one.peak_gib:.1f}"
        lines.append([*cells, f"{one.masks:.0f}", f"{one.teraflops:.4g}", mfu, peak])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def variants(config: SpeedConfig, device: torch.device) -> list[SpeedConfig]:
    """The configs to measure: on a GPU every combination of the two switches, otherwise `config` itself."""
    if device.type != "cuda":
        return [config]
    switches = itertools.product((False, True), repeat=2)
    machines = (replace(config.machine, compile=compiled, checkpoint_layers=again) for compiled, again in switches)
    return [replace(config, machine=machine) for machine in machines]


def with_random_teacher(config: SpeedConfig, directory: Path) -> SpeedConfig:
    """`config` with a teacher of random weights in `directory`, from which the student also starts."""
    size = {} if config.student.image_size is None else {"image_size": config.student.image_size}
    path = directory / "random_teacher.safetensors"
    torch.manual_seed(config.data.seed)
    save_sam(build_sam(model_config(teacher_model(config), **size)), path)
    return replace(config, teacher=replace(config.teacher, teacher=path), random_teacher=False)


def training_speed(config: SpeedConfig) -> None:
    """Print the table of `config`'s steps. ValueError if data or weights cannot be used."""
    if config.random_teacher:
        with tempfile.TemporaryDirectory() as directory:
            training_speed(with_random_teacher(config, Path(directory)))
        print("The teacher's weights are random, and so is what the student starts from.")
        return
    device = pick_device(config.machine.device)
    with joined_processes(device) as processes:
        source = training_source(config.data)
        rows = []
        for variant in variants(config, device):
            rows += measure(variant, source, processes)
            gc.collect()
            torch._dynamo.reset()
        if processes.first:
            machine = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
            print(
                f"{processes.count} x {machine}, {torch.get_num_threads()} threads, torch {torch.__version__}; prompts "
                f"{config.prompts.prompts}, {config.prompts.correction_rounds} correction rounds, batch "
                f"{config.machine.batch_size} x {config.optimizer.accumulate}, {config.steps} steps each\n"
                f"{table(config, rows)}"
            )


if __name__ == "__main__":
    run(training_speed)
