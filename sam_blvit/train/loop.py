"""The training loop, readable in the order it runs. A run started again in its directory goes on where it was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from sam_blvit.checkpoint import build_from_registry, read_metadata, save_sam
from sam_blvit.config import FinetuneConfig, model_config
from sam_blvit.data.sa1b import Sa1bDataset, Sample, find_pairs, read_ids
from sam_blvit.distributed import pick_device
from sam_blvit.files import file_sha256, write_atomically
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.train.objective import training_loss
from sam_blvit.train.optim import parameter_groups, schedule

STATE_FILE = "training_state.pt"
MODEL_FILE = "last.safetensors"
LOG_FILE = "log.jsonl"
TEACHER_KEY = "teacher_sha256"


def finetune(config: FinetuneConfig) -> Path:
    """Train or distil as `config` says; returns the file with the model, which `sam_model_registry` loads."""
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    config.output.mkdir(parents=True, exist_ok=True)
    student, teacher = _start(config)
    dataset = _dataset(config, student.config.image_size)
    student.to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(student, config))
    step = _resume(config, student, optimizer)
    loader = DataLoader(
        dataset,
        batch_sampler=Batches(len(dataset), config.batch_size, first=step, last=config.steps, seed=config.seed),
        collate_fn=list,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )
    autocast = torch.autocast(device.type, dtype=torch.bfloat16) if config.precision == "bf16" else nullcontext()
    progress = tqdm(_samples(loader), initial=step, total=config.steps, desc=config.model, unit="step")
    for samples in progress:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(step, config)
        student.image_encoder.keep_ratio = keep_ratio_of(step, config)
        with autocast:
            losses = training_loss(
                student,
                teacher,
                samples,
                distillation_weight=config.distillation_weight,
                seed=[config.seed, step],
            )
        if not torch.isfinite(losses["loss"]):
            images = ", ".join(str(sample.image_id) for sample in samples)
            raise ValueError(f"the loss is {losses['loss']} at step {step}, images {images}; try a lower --lr")
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), config.clip_norm)
        optimizer.step()
        step += 1
        if step % config.log_every == 0 or step == config.steps:
            row = {name: round(value.item(), 5) for name, value in losses.items()}
            _log(config.output, {"step": step, **row, "gradient_norm": round(norm.item(), 3)})
            progress.set_postfix({name: row[name] for name in ("loss", "dice", "distillation") if name in row})
        if step % config.save_every == 0 or step == config.steps:
            _save(config, student, optimizer, step)
    print(f"{config.output / MODEL_FILE}: {config.model} after {step} steps")
    return config.output / MODEL_FILE


def keep_ratio_of(step: int, config: FinetuneConfig) -> float:
    """The keep ratio of `step`, drawn from the config's set by (seed, step): the same in every process."""
    if model_config(config.model).routed_from is None:
        return 1.0
    return float(np.random.default_rng([config.seed, step]).choice(config.keep_ratios))


class Batches(Sampler[list[tuple[int, int]]]):
    """Places (epoch, index) of the samples of each step, a fresh permutation an epoch, from any step on."""

    def __init__(self, length: int, batch_size: int, *, first: int, last: int, seed: int) -> None:
        self.length, self.batch_size, self.first, self.last, self.seed = length, batch_size, first, last, seed

    def __len__(self) -> int:
        return max(0, self.last - self.first)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: dict[int, Any] = {}
        for step in range(self.first, self.last):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                epoch, place = divmod(position, self.length)
                if epoch not in order:
                    order = {epoch: np.random.default_rng([self.seed, epoch]).permutation(self.length)}
                batch.append((epoch, int(order[epoch][place])))
            yield batch


def _samples(loader: DataLoader[Sample]) -> Iterator[list[Sample]]:
    """What `loader` gives; an error in one of its processes comes as the one line that it was, without their trace."""
    try:
        yield from loader
    except ValueError as error:
        raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from error


def _dataset(config: FinetuneConfig, image_size: int) -> Sa1bDataset:
    pairs = find_pairs(config.data)
    exclude = set(read_ids(config.exclude)) if config.exclude is not None else set()
    kept = [pair for pair in pairs if pair.image_id not in exclude]
    print(f"{len(kept)} images of {config.data}, {len(pairs) - len(kept)} kept out; {image_size} px")
    if not kept:
        raise ValueError(f"all {len(pairs)} images of {config.data} are in {config.exclude}: none is left to train on")
    return Sa1bDataset(
        kept,
        image_size=image_size,
        mask_side=config.mask_side or image_size,
        masks_per_image=config.masks_per_image,
        smallest_crop=config.smallest_crop,
        flip=config.flip,
        seed=config.seed,
    )


def _start(config: FinetuneConfig) -> tuple[Sam, Sam | None]:
    """The student at its start and the teacher, if there is one."""
    size = {} if config.image_size is None else {"image_size": config.image_size}
    start = config.checkpoint or config.teacher
    if start is None:
        return build_sam(model_config(config.model, **size)), None
    student = build_from_registry(config.model, start, **size)
    if config.teacher is None:
        return student, None
    teacher = build_from_registry(config.teacher_model, config.teacher, image_size=student.config.image_size)
    if read_metadata(start).get(TEACHER_KEY) != file_sha256(config.teacher):  # else it is a student of that teacher
        _check_same_decoder(student, teacher, config)
    return student, teacher.to(pick_device(config.device)).requires_grad_(False)


def _check_same_decoder(student: Sam, teacher: Sam, config: FinetuneConfig) -> None:
    """Each SAM was trained end to end with its own decoder: features of one pull away from another's."""
    theirs = teacher.state_dict()
    for name, value in student.state_dict().items():
        if not name.startswith("image_encoder.") and not torch.equal(value, theirs[name]):
            raise ValueError(
                f"{config.checkpoint} has another prompt encoder or mask decoder than teacher {config.teacher} "
                f"({name} differs); start from the teacher's checkpoint"
            )


def _run_identity(config: FinetuneConfig) -> str:
    """What must not change between the parts of one run."""
    fields = dataclasses.asdict(config)
    for name in ("output", "device", "workers", "log_every", "save_every"):
        del fields[name]
    return json.dumps(fields, default=str, sort_keys=True)


def _save(config: FinetuneConfig, student: Sam, optimizer: torch.optim.Optimizer, step: int) -> None:
    state = {
        "step": step,
        "config": _run_identity(config),
        "model": student.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    teacher = {} if config.teacher is None else {TEACHER_KEY: file_sha256(config.teacher)}
    save_sam(student, config.output / MODEL_FILE, metadata={"step": str(step), **teacher})
    write_atomically(config.output / STATE_FILE, lambda to: torch.save(state, to))  # last: it says that all is there


def _resume(config: FinetuneConfig, student: Sam, optimizer: torch.optim.Optimizer) -> int:
    """Load the run's last state, if there is one; the step to go on from."""
    path = config.output / STATE_FILE
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["config"] != _run_identity(config):
        raise ValueError(f"{config.output} holds a run with other settings; name another --output or remove it")
    student.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"going on from step {state['step']} of {config.steps}")
    return int(state["step"])


def _log(output: Path, row: dict[str, Any]) -> None:
    with (output / LOG_FILE).open("a") as file:
        file.write(json.dumps(row) + "\n")
