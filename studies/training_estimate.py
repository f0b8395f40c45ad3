"""Estimated hours and memory of the large recipes, computed from counts: the tables of docs/training.md.

$ python studies/training_estimate.py

Only shapes are computed, on fake tensors. Hours are multiply-adds over an assumed share of the GPUs' peak: 3 x encoder
(forward once, backward twice) + teacher + 3 x decoder x masks x rounds. Memory of a process is
    16 bytes for each trained parameter (weight, gradient, two moments), with FSDP2 divided among the processes;
     4 more for its gradient in DDP's buckets, or whole in FSDP2;
     4 for each frozen one, and for each of the teacher's;
and, for each image, what autograd keeps of it in the encoder, at the keep ratio that keeps most, and for each mask and
round in prompt encoder and decoder. Workspace, fragments and the masks being compared come on top.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sam_blvit.cli import run
from sam_blvit.config import EMBEDDING_CHANNELS, FinetuneConfig, ModelConfig, model_config, override
from sam_blvit.cost.macs import FLOP_PER_MAC, G, as_json, count_macs
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.model.windows import TokenGrid
from sam_blvit.train.loss.predict import predict_all
from sam_blvit.train.loss.prompts import plan_rounds
from sam_blvit.train.loss.sampling import Draws
from sam_blvit.train.optim import freeze
from sam_blvit.train.preflight import PASSES
from sam_blvit.train.teacher.targets import teacher_model

CONFIGS = Path(__file__).parents[1] / "configs"
LARGE, GPUS = ("sam_b_t", "sam_b_t_same", "sam_l_s", "sam_h_b", "sam_b_t_paper", "sam_h_b_paper"), 8
"""Recipes for 2 % of SA-1B, and the GPUs that their commands ask for."""
SMALL = "accelerate"
"""The recipe for one GPU."""
OTHER_TEACHERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("`sam_b_t`, teacher cached", {"teacher_cache": Path("cache")}),
)
PEAK_FLOP = 312e12
"""A second, of an A100: dense bf16, by NVIDIA's data sheet."""
ASSUMED_SHARE = 0.30
"""Assumed share of the peak. Not measured."""
SUBSET = 20 * 11_186
"""Images in 2 % of SA-1B: 20 of its 1,000 tars."""
TRAINED_BYTES, WHOLE_GRADIENT_BYTES, FROZEN_BYTES = 16, 4, 4
TOKENS = 3
"""Of a prompt, in the decoder: what it keeps hardly depends on them."""


@dataclass(frozen=True)
class Arithmetic:
    """What a recipe computes."""

    encoder: dict[float, float]
    """Multiply-adds of an image, G, by keep ratio drawn."""
    teacher: float | None
    """G; None: cached."""
    decoder: float
    """G for each mask and round."""
    masks: int
    """Of an image, at most."""
    rounds: int
    """That each mask is asked for."""
    images: float
    """Over the whole run."""

    @property
    def mean(self) -> float:
        """Multiply-adds of an image in the encoder, G."""
        return statistics.fmean(self.encoder.values())

    @property
    def listed(self) -> str:
        """Those of the encoder, one after the other."""
        return ", ".join(f"{macs:,.1f}" for macs in self.encoder.values())

    @property
    def image(self) -> float:
        """Multiply-adds of an image in all, G."""
        return PASSES * self.mean + (self.teacher or 0.0) + PASSES * self.decoder * self.masks * self.rounds

    def hours(self, gpus: int) -> float:
        """On so many GPUs."""
        return FLOP_PER_MAC * G * self.image * self.images / (gpus * ASSUMED_SHARE * PEAK_FLOP * 3600)


@dataclass(frozen=True)
class Memory:
    """Bytes of a process."""

    weights: float
    teacher: float
    image: float
    """Kept of an image in the encoder."""
    checkpointed: float
    """The same with checkpoint_layers."""
    mask_round: float
    """Kept of a mask and round in the decoder."""
    images: int
    masks: int
    rounds: int

    @property
    def total(self) -> float:
        """Without checkpoint_layers."""
        return self.weights + self.teacher + self.images * (self.image + self.masks * self.rounds * self.mask_round)


def recipe(name: str) -> FinetuneConfig:
    """The config of the recipe `name`."""
    seen: list[FinetuneConfig] = []

    def remember(config: FinetuneConfig) -> None:
        seen.append(config)

    named = ["--data", "data", "--holdout", "1", "--teacher", "sam.pth", "--output", "out"]
    run(remember, [str(CONFIGS / f"{name}.yaml"), *named])
    return seen.pop()


def student_of(config: FinetuneConfig) -> ModelConfig:
    """The model that `config` trains."""
    return config.student.model_config


def arithmetic(config: FinetuneConfig) -> Arithmetic:
    """Multiply-adds of `config`, every product counted, on square photographs.

    In the two decimals of `sam-blvit flops`, so that the sums can be made again by hand.
    """
    teacher = as_json(count_macs(model_config(teacher_model(config))))
    steps, images_a_step = config.optimizer.schedule_steps, config.machine.batch_size * config.optimizer.accumulate
    return Arithmetic(
        encoder={
            ratio: _encoder_gmacs(override(student_of(config), keep_ratio=ratio))
            for ratio in config.student.keep_ratios
        },
        teacher=None if config.teacher.teacher_cache else teacher["encoder_full_gmacs"],
        decoder=round(teacher["full_gmacs"] - teacher["encoder_full_gmacs"], 2),
        masks=config.masks_per_image,
        rounds=rounds(config),
        images=config.optimizer.epochs * SUBSET if steps is None else steps * images_a_step,
    )


def _encoder_gmacs(model: ModelConfig) -> float:
    return float(as_json(count_macs(model))["encoder_full_gmacs"])


def rounds(config: FinetuneConfig) -> int:
    """Rounds that each mask is asked for."""
    return 1 + len(plan_rounds(config.prompts.prompts, config.prompts.correction_rounds, Draws(0, 0, 0)))


def memory(config: FinetuneConfig, processes: int) -> Memory:
    """Bytes of one of `processes` under `config`."""
    with torch.device("meta"):
        sam, teacher = build_sam(student_of(config)).train(), build_sam(model_config(teacher_model(config)))
    freeze(sam, config)
    with FakeTensorMode(allow_non_fake_inputs=True), patch("sam_blvit.model.attention.attend", _efficient):
        sam.to_empty(device="cpu")
        images = {again: max(_kept_of_image(sam, config, again)) for again in (False, True)}
        mask_round = _kept_of_mask(sam)
    return Memory(
        weights=_weights(sam, config.machine.sharding, processes),
        teacher=0
        if config.teacher.teacher_cache
        else FROZEN_BYTES * sum(value.numel() for value in teacher.parameters()),
        image=images[False],
        checkpointed=images[True],
        mask_round=mask_round,
        images=config.machine.batch_size,
        masks=config.masks_per_image,
        rounds=rounds(config),
    )


def _weights(sam: Sam, sharding: str, processes: int) -> float:
    """Bytes of `sam`'s parameters, their gradients and optimiser states."""
    trained = sum(value.numel() for value in sam.parameters() if value.requires_grad)
    frozen = sum(value.numel() for value in sam.parameters()) - trained
    own = TRAINED_BYTES / (processes if sharding == "fsdp" else 1)
    whole = WHOLE_GRADIENT_BYTES if processes > 1 else 0
    return trained * (own + whole) + FROZEN_BYTES * frozen


def _kept_of_image(sam: Sam, config: FinetuneConfig, checkpoint_layers: bool) -> list[int]:
    """Bytes that autograd keeps of an image in the encoder, at each keep ratio."""
    encoder = sam.image_encoder
    encoder.checkpoint_layers = checkpoint_layers
    kept = []
    for ratio in config.student.keep_ratios:
        encoder.keep_ratio = ratio
        image = torch.empty(1, 3, encoder.img_size, encoder.img_size)
        kept.append(kept_bytes(lambda image=image: encoder(image), sam))  # type: ignore[misc]
    return kept


def _kept_of_mask(sam: Sam) -> float:
    """Bytes that autograd keeps of a mask and round in prompt encoder and decoder."""
    grid, masks = sam.config.embedding_grid, 16
    embedding = torch.empty(1, EMBEDDING_CHANNELS, grid, grid, requires_grad=True)
    last = torch.empty(masks, 1, 4 * grid, 4 * grid)
    coords, labels = torch.empty(masks, TOKENS, 2), torch.ones(masks, TOKENS, dtype=torch.long)
    return kept_bytes(lambda: predict_all(sam, embedding, [masks], coords, labels, last), sam) / masks


def kept_bytes(forward: Callable[[], object], sam: Sam) -> int:
    """Bytes of the tensors that `forward` leaves for the backward pass under bf16 autocast, `sam`'s weights aside."""
    weights = {value.untyped_storage()._cdata for value in sam.parameters()}
    kept = {}  # the storages themselves: one that is freed gives its number to the next

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        _ = forward()  # kept until all are counted
    return sum(storage.nbytes() for storage in kept.values())


class _Efficient(torch.autograd.Function):
    """Keeps what PyTorch's memory-efficient attention does; a CPU has no such kernel to look at."""

    @staticmethod
    def forward(context: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        out = torch.empty_like(q)
        context.save_for_backward(q, k, v, bias, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out


def _efficient(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, grid: TokenGrid) -> Tensor:
    bias = grid.outer_sum(by_row, by_col)
    return _Efficient.apply(q, k.to(q.dtype), v.to(q.dtype), bias.to(q.dtype))


def hours_row(name: str, counted: Arithmetic, gpus: int) -> str:
    """A line of the table of hours."""
    teacher = "-" if counted.teacher is None else f"{counted.teacher:,.1f}"
    cells = [name, counted.listed, f"{counted.mean:,.1f}", teacher, f"{counted.masks}", f"{counted.image:,.0f}"]
    return f"| {' | '.join(cells)} | {counted.hours(gpus):.1f} |"


def memory_row(name: str, counted: Memory) -> str:
    """A line of the table of memory."""
    decoder = f"{counted.images} x {counted.masks} x {counted.rounds} x {counted.mask_round / G:.3f}"
    cells = [name, f"{counted.weights / G:.2f}", f"{counted.teacher / G:.2f}"]
    cells += [f"{counted.images} x {counted.image / G:.2f}", decoder, f"{counted.total / G:.0f}"]
    return f"| {' | '.join(cells)} | {counted.checkpointed / G:.2f} |"


def main() -> None:
    """Print both tables, with the minutes of the recipe for one GPU between them."""
    print("| | encoder at the keep ratios drawn | mean | teacher | masks | G an image | hours |")
    print("|---|---|---|---|---|---|---|")
    for name in LARGE:
        print(hours_row(f"`{name}`", arithmetic(recipe(name)), GPUS), flush=True)
    for name, changes in OTHER_TEACHERS:
        print(hours_row(name, arithmetic(replace(recipe("sam_b_t"), **changes)), GPUS), flush=True)
    small = arithmetic(recipe(SMALL))
    print(
        f"\n`{SMALL}`, {small.images:,.0f} images on one GPU: encoder {small.listed}, mean {small.mean:.1f}; "
        f"{small.image:,.0f} G an image, {60 * small.hours(1):.1f} minutes"
    )
    print("\n| GB | weights | teacher | encoder | decoder | in all | an image with `--checkpoint-layers` |")
    print("|---|---|---|---|---|---|---|")
    for name, processes in (*((name, GPUS) for name in LARGE), (SMALL, 1)):
        print(memory_row(f"`{name}`", memory(recipe(name), processes)), flush=True)


if __name__ == "__main__":
    main()
