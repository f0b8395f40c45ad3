"""The training loop, in the order in which it runs. A run that is started again in its directory is resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tqdm import tqdm

from sam_blvit.checkpoint.adapter import BASE_KEY, save_adapter
from sam_blvit.checkpoint.load import save_sam
from sam_blvit.config import FinetuneConfig
from sam_blvit.data.samples import Sample
from sam_blvit.model.sam import Sam
from sam_blvit.train.batches import Batch
from sam_blvit.train.optim import schedule, set_rates
from sam_blvit.train.parallel import whole
from sam_blvit.train.run.failures import TooMany, count_bad_step, count_damaged
from sam_blvit.train.run.identity import run_identity, run_origin
from sam_blvit.train.run.interrupt import REQUEUE, Interrupt
from sam_blvit.train.run.log import Log
from sam_blvit.train.run.pictures import draw_step
from sam_blvit.train.run.state import Checkpoints, Progress, writing
from sam_blvit.train.setup import Training
from sam_blvit.train.step import StepResult
from sam_blvit.train.teacher.targets import TEACHER_KEY

MODEL_FILE = "last.safetensors"
BEST_FILE = "best.safetensors"
Validate = Callable[[Sam], dict[str, float]]
"""Computes scores of a model by name. The best model is the one with the highest `score`."""


@dataclass
class Loop:
    """A run in progress."""

    training: Training
    validate: Validate | None
    interrupt: Interrupt
    log: Log
    checkpoints: Checkpoints
    progress: Progress
    length: int
    """Steps in the schedule."""
    seconds: list[tuple[float, float]] = field(default_factory=list)
    """Seconds waited for data, and in total, for each step since the last log line."""

    def run(self) -> None:
        """Run all remaining steps."""
        config, training = self.training.config, self.training
        end = min(self.length, config.optimizer.max_steps or self.length)
        steps = max(0, end - self.progress.step)
        shown = tqdm(
            range(steps),
            desc=training.student.config.name,
            unit="step",
            disable=None if training.processes.first else True,
        )
        try:
            with training.batches(start=self.progress.samples, steps=steps) as batches:
                for _ in shown:
                    last = self.progress.step + 1 == end
                    result = self._step(batches, logged=last or (self.progress.step + 1) % config.run.log_every == 0)
                    if result.parts:
                        shown.set_postfix(loss=f"{result.parts['loss']:.3f}")
                    self._after(last=last)
        except TooMany:
            self.save()  # keep what was learnt so far
            raise
        if not steps:
            self._export(self._model(), MODEL_FILE)  # the run may have been killed between checkpoint and export

    def _step(self, batches: Iterator[Batch], *, logged: bool) -> StepResult:
        config, progress, stepper = self.training.config, self.progress, self.training.stepper
        start = time.perf_counter()
        mine = [next(batches) for _ in range(config.optimizer.accumulate)]
        waited = time.perf_counter() - start
        counts = stepper.count(mine, stop=self.interrupt.received is not None)
        if counts.asked_to_stop:
            self._leave()
        if counts.damaged:
            count_damaged(mine, progress, total=len(self.training.source), processes=self.training.processes)
        set_rates(stepper.optimizer, self._rate_share())
        plan = stepper.plan(counts, step=progress.step, with_health=logged)
        result = stepper.step(mine, plan, with_parts=logged)
        progress.step += 1
        progress.samples += self.training.images_a_step
        if not math.isfinite(result.gradient_norm):
            count_bad_step(mine, result.gradient_norm, progress, config=config, processes=self.training.processes)
        self.seconds.append((waited, time.perf_counter() - start))
        if logged:
            self._log(result, plan.keep_ratio)
        if config.run.picture_every and progress.step % config.run.picture_every == 0:
            self._draw(mine[0])
        return result

    def _after(self, *, last: bool) -> None:
        """Validate and save, if it is time to."""
        config, step = self.training.config, self.progress.step
        validates = self.validate is not None and (
            last or (config.validation.validate_every and step % config.validation.validate_every == 0)
        )
        if validates:
            self._validate()
        if validates or last or step % config.run.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Save a checkpoint to resume from, and export the model."""
        self.checkpoints.save(self.training.state, self.progress)
        self._export(self._model(), MODEL_FILE)

    def _rate_share(self) -> float:
        """Return the current share of the peak learning rates.

        With a length in epochs, the position is counted in samples, because a resumed run may have another number of
        images per step.
        """
        config, progress = self.training.config, self.progress
        if config.optimizer.schedule_steps is not None:
            return schedule(progress.step, length=config.optimizer.schedule_steps, warmup=config.optimizer.warmup_steps)
        return schedule(
            progress.samples,
            length=config.optimizer.epochs * len(self.training.source),
            warmup=progress.warmup_samples,
            stride=self.training.images_a_step,
        )

    def _model(self) -> Sam:
        average = self.training.state.average
        return whole(self.training.student, {} if average is None else average.values)

    def _export(self, model: Sam, name: str) -> None:
        """Export `model` for the registry, or only its adapter if SAM's weights are frozen."""
        config, path = self.training.config, self.training.config.run.output / name
        if not self.training.processes.first:
            return
        metadata = {"step": str(self.progress.step)}
        if config.teacher.teacher is not None:
            metadata[TEACHER_KEY] = self.progress.identity[TEACHER_KEY]
        with writing(path):
            if config.student.freeze == "performance":
                save_adapter(model, path, base_sha256=self.progress.identity[BASE_KEY], metadata=metadata)
            else:
                save_sam(model, path, metadata=metadata)

    def _validate(self) -> None:
        assert self.validate is not None
        model = self._model()
        scores = self.validate(model)
        self.log.write(self.progress.step, scores)
        if self.training.processes.first:
            print(f"step {self.progress.step}: " + ", ".join(f"{name} {value:.1f}" for name, value in scores.items()))
        if self.progress.best_score is None or scores["score"] > self.progress.best_score:
            self.progress.best_score, self.progress.best_step = scores["score"], self.progress.step
            self._export(model, BEST_FILE)

    def _leave(self) -> None:
        """Save, and exit with the code that asks to be started again."""
        self.save()
        self.log.close()
        if self.training.processes.first:
            asked = self.interrupt.received or "a signal to another process"
            print(f"stopped by {asked} after step {self.progress.step}, saved; start it again to resume", flush=True)
        raise SystemExit(REQUEUE)

    def _log(self, result: StepResult, keep_ratio: float) -> None:
        training, progress = self.training, self.progress
        waited, spent = (sum(column) for column in zip(*self.seconds, strict=True))
        row: dict[str, Any] = {
            "epoch": progress.samples / len(training.source),
            "keep_ratio": keep_ratio,
            "rate": training.stepper.optimizer.param_groups[0]["lr"],
            **result.parts,
            "gradient_norm": result.gradient_norm,
            "images_per_second": len(self.seconds) * training.images_a_step / spent,
            "data_share": waited / spent,
            "damaged": len(progress.damaged),
            "bad_steps": progress.bad_steps,
            **result.health,
        }
        if training.device.type == "cuda":
            row["peak_gib"] = torch.cuda.max_memory_allocated(training.device) / 2**30
        self.log.write(progress.step, row)
        self.seconds.clear()

    def _draw(self, batch: Batch) -> None:
        model = self._model()
        if self.training.processes.first:
            samples = [item for item in batch if isinstance(item, Sample)]
            path = self.training.config.run.output / "pictures" / f"step_{self.progress.step:08d}.png"
            draw_step(model, samples, path, keep_ratio=model.config.keep_ratio if model.config.routed else None)


def train(training: Training, validate: Validate | None, interrupt: Interrupt) -> Sam:
    """Train to the end of the schedule or to `max_steps`, and write `last.safetensors`.

    Returns:
        The trained model.

    Raises:
        ValueError: If data, weights or output cannot be used.
        SystemExit: With code 75, if a signal asked the run to stop.
    """
    config = training.config
    checkpoints = Checkpoints(config.run.output, training.processes)
    progress = _progress(training, checkpoints)
    if config.optimizer.max_steps is not None and config.optimizer.max_steps < progress.step:
        raise ValueError(
            f"max_steps={config.optimizer.max_steps}: the run in {config.run.output} has already made {progress.step} "
            "steps; use a larger number, or another output"
        )
    log = Log(
        config.run.output, writes=training.processes.first, tensorboard=config.run.tensorboard, step=progress.step
    )
    length = schedule_length(config, len(training.source), training.images_a_step, progress)
    loop = Loop(training, validate, interrupt, log, checkpoints, progress, length)
    if training.processes.first:
        rates = ", ".join(
            f"{rate:g}" for rate in sorted({g["peak_lr"] for g in training.stepper.optimizer.param_groups})
        )
        print(
            f"{training.student.config.name}: {max(0, length - progress.step)} of {length} steps remaining, "
            f"{training.images_a_step} images per step; learning rates up to {rates}"
        )
    loop.run()
    log.close()
    return loop._model()


def schedule_length(config: FinetuneConfig, images: int, images_a_step: int, progress: Progress) -> int:
    """Return the length of the schedule in steps.

    If a run is resumed with another number of images per step, the rest of its epochs takes another number of steps.
    """
    if config.optimizer.schedule_steps is not None:
        return config.optimizer.schedule_steps
    return progress.step + max(0, math.ceil((config.optimizer.epochs * images - progress.samples) / images_a_step))


def _progress(training: Training, checkpoints: Checkpoints) -> Progress:
    """Load the newest checkpoint of the run that can be loaded, or begin at step 0."""
    config, processes = training.config, training.processes
    fresh = Progress(
        identity=run_identity(config, training.source),
        origin=run_origin(config, processes),
        warmup_samples=config.optimizer.warmup_steps * training.images_a_step,
    )
    there = checkpoints.found()
    if config.run.resume == "never" and there:
        raise ValueError(f"resume=never: {config.run.output} contains a run; use another output, or remove it")
    for name in (MODEL_FILE, BEST_FILE):
        if not there and (config.run.output / name).exists():
            raise ValueError(
                f"{config.run.output / name} exists without checkpoints of a run and would be overwritten; use "
                "another output, or move it"
            )
    found = checkpoints.load_newest(training.state, fresh.identity)
    if found is None:
        return fresh
    if processes.first:
        print(f"resumed after step {found.step}")
    return replace(found, origin=fresh.origin)
