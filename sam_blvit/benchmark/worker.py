"""A process that measures the cells of one group, or one of them alone, and says what it sees as it goes.

$ python -m sam_blvit.benchmark.worker EVENTS < JOB.json

EVENTS gets one JSON object a line: what belongs to a cell carries its index; {"error": ...} is bad input and ends all.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling import Sam as OriginalSam

from sam_blvit.benchmark.cells import Cell, photograph_size
from sam_blvit.benchmark.memory import PeakMemory
from sam_blvit.checkpoint.load import SHIPPED, build_from_registry, load_any, load_sam
from sam_blvit.config import MODELS, WeightsConfig, override
from sam_blvit.cost.latency import now
from sam_blvit.cost.macs import count_macs, sam_macs
from sam_blvit.model.compiled import compiled
from sam_blvit.model.decoder import decode, decode_originally
from sam_blvit.model.sam import Sam
from sam_blvit.system.allocator import tune_allocator
from sam_blvit.system.files import first_line, parse_json
from sam_blvit.system.machine import machine

Tell = Callable[..., None]
Result = TypeVar("Result")
WARM_UP = 2
"""Calls after the first: CUDA graphs are recorded in the second."""
MATMUL = {"cpu": (4096, 768, 3072), "cuda": (8192, 8192, 8192), "mps": (4096, 4096, 4096)}
"""Rows, inner and columns of the product that stands for what a device can do; on a CPU SAM ViT-B's own."""


@dataclass(frozen=True)
class Job:
    """What a process does."""

    cells: list[Cell]
    rounds: int
    """0: only the first calls."""
    cold: bool
    """Whether seconds and memory of the first calls count."""

    def to_json(self) -> str:
        """The job as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The inverse of `to_json`."""
        content = parse_json(text)
        return cls(**{**content, "cells": [Cell(**cell) for cell in content["cells"]]})


@dataclass(frozen=True)
class Subject:
    """A model that is ready to be timed."""

    encode: Callable[[], object]
    answer: Callable[[], object]
    """One box on one image's embedding, to a mask of the image's size."""


def main() -> None:
    """Do the job on the first line of standard input; its end is the end of whoever waits for this process."""
    job = Job.from_json(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    with Path(sys.argv[1]).open("a", buffering=1) as events:

        def tell(**event: Any) -> None:
            events.write(json.dumps(event) + "\n")

        work(job, tell)


def _end_with_input() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


@torch.no_grad()
def work(job: Job, tell: Tell) -> None:
    """Measure `job`'s cells; what can only be set for a whole process is set as they want it."""
    cell = job.cells[0]
    if cell.allocator == "tuned":
        tune_allocator()
    if cell.threads is not None:
        torch.set_num_threads(cell.threads)
    device = torch.device(cell.device)
    tell(machine=machine(device))
    subjects: dict[int, Subject] = {}
    for index, cell in enumerate(job.cells):
        of_cell = partial(tell, cell=index)
        if (subject := attempt(partial(prepare, cell, of_cell, cold=job.cold), cell, of_cell)) is not None:
            subjects[index] = subject
    products = {dtype: matmul(device, dtype) for dtype in {cell.dtype: None for cell in job.cells}}
    for turn in range(job.rounds):
        time_round(job.cells, subjects, turn, tell)
        for dtype, (product, macs) in products.items():
            product()
            tell(dtype=dtype, macs_per_second=macs / milliseconds(product, device) * 1e3)


def time_round(cells: list[Cell], subjects: dict[int, Subject], turn: int, tell: Tell) -> None:
    """Time each of `subjects` once, another one first in each turn; one that fails is not timed again."""
    order = list(subjects)
    first = turn % max(len(order), 1)
    for index in order[first:] + order[:first]:
        of_cell = partial(tell, cell=index)
        timed = partial(time_once, subjects[index], torch.device(cells[index].device))
        if (spent := attempt(timed, cells[index], of_cell)) is None:
            del subjects[index]
        else:
            of_cell(**spent)


def time_once(subject: Subject, device: torch.device) -> dict[str, float]:
    """Milliseconds of one call each."""
    return {
        "encoder_ms": milliseconds(subject.encode, device),
        "decoder_ms": milliseconds(subject.answer, device),
    }


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """What one `call` takes, from one idle `device` to the next."""
    start = now(device)
    call()
    return now(device) - start


def prepare(cell: Cell, tell: Tell, *, cold: bool) -> Subject | None:
    """Build `cell`'s model, say what it is, and call it until it is warm; None if it does not take the side."""
    sam = build(cell)
    own_side = sam.image_encoder.img_size
    if cell.side not in (None, own_side):
        tell(problem=f"takes a side of {own_side} pixels only")
        return None
    photograph = photograph_size(own_side, cell.aspect)
    size = sam.image_encoder.padded_size(*photograph) if isinstance(sam, Sam) else (own_side, own_side)
    tell(
        input_size=size,
        macs=encoder_macs(sam, photograph),
        weights=weights(cell),
        segment_anything=isinstance(sam.image_encoder, ImageEncoderViT),
    )
    encode = encoder_call(sam, cell, size)
    gc.collect()
    peak = PeakMemory(sam.device)
    spent = milliseconds(encode, sam.device)
    for _ in range(WARM_UP):
        encode()
    if cold:
        tell(first_seconds=spent / 1e3, peak_bytes=peak.beyond())
    embedding = encode()[:1].float()
    height, width = photograph
    box = torch.tensor([[width / 4, height / 4, width / 2, height / 2]], device=sam.device)

    def answer() -> torch.Tensor:
        ask = decode_originally if cell.foreign else decode
        logits, _ = ask(sam, embedding, boxes=box, multimask_output=False)
        return sam.postprocess_masks(logits, photograph, photograph)

    answer()
    return Subject(encode, answer)


def build(cell: Cell) -> OriginalSam:
    """`cell`'s model on its device. Bad input, ValueError, ends the process: it is not the model's fault."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # random weights are said in the report
            if cell.foreign:
                return load_any(WeightsConfig(model=cell.model, device=cell.device))
            options: dict[str, Any] = {"compute_dtype": cell.dtype, "keep_ratio": cell.keep_ratio}
            options["image_size"] = cell.side
            options = {name: value for name, value in options.items() if value is not None}
            load = build_from_registry if cell.model in MODELS else load_sam
            return load(cell.model, **options).to(cell.device)
    except ValueError as error:
        raise BadInputError(first_line(error)) from error


class BadInputError(Exception):
    """No cell can be measured before the command line is changed."""


def encoder_call(sam: OriginalSam, cell: Cell, size: tuple[int, int]) -> Callable[[], torch.Tensor]:
    """The encoder of `sam`, in `cell`'s dtype and way, on a batch of normalised pixels of `size`."""
    device = sam.device
    images = torch.randn(cell.batch, 3, *size, device=device)
    encoder = compiled(sam.image_encoder) if cell.way == "compiled" else sam.image_encoder  # eager, or onnxruntime's

    def precision() -> AbstractContextManager[object]:
        if not cell.foreign or cell.dtype == "float32":
            return nullcontext()
        return torch.autocast(device.type, getattr(torch, cell.dtype))

    def encode() -> torch.Tensor:
        with precision():
            return encoder(images)

    return encode


def encoder_macs(sam: OriginalSam, photograph: tuple[int, int]) -> int | None:
    """Multiply-adds of `sam`'s encoder for one photograph, every product counted; None if it cannot be run on fake
    tensors, as some rivals' own kernels cannot."""
    if isinstance(sam, Sam):
        config = override(sam.config, compute_dtype="float32")  # whose products no kernel hides from the counter
        return count_macs(config, input_size=photograph).encoder.full
    try:
        return sam_macs(sam)[0].full
    except Exception:  # whatever a foreign module raises
        return None


def weights(cell: Cell) -> str:
    """Where `cell`'s weights come from."""
    if cell.foreign:
        return "file" if cell.exported else "function"
    return "random" if cell.model in MODELS and cell.model != SHIPPED else "file"


def matmul(device: torch.device, dtype: str) -> tuple[Callable[[], object], int]:
    """A large matrix product on `device`, and its multiply-adds."""
    rows, inner, columns = MATMUL[device.type]
    options: Any = {"dtype": getattr(torch, dtype), "device": device}
    left, right = torch.randn(rows, inner, **options), torch.randn(inner, columns, **options)
    product = torch.empty(rows, columns, **options)  # made once: no page faults
    return partial(torch.mm, left, right, out=product), rows * inner * columns


def attempt(work: Callable[[], Result], cell: Cell, tell: Tell) -> Result | None:
    """What `work` returns; whatever it raises is said as `cell`'s problem, and None comes back."""
    try:
        return work()
    except BadInputError as error:
        tell(error=str(error))
        raise SystemExit(1) from None
    except Exception as error:  # anybody's code
        tell(problem=problem_of(error, cell))
    gc.collect()
    torch.cuda.empty_cache()
    return None


def problem_of(error: Exception, cell: Cell) -> str:
    """What `error` means for `cell`, in one line."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return "does not fit"
    verb = "compile" if cell.way == "compiled" else "run"
    return f"does not {verb}: {type(error).__name__}: {first_line(error)}"


if __name__ == "__main__":
    main()
