"""Set up a run: student, teacher, data, optimiser, and the step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from sam_blvit.config import FinetuneConfig
from sam_blvit.data.samples import Damaged, Sample, TrainingSamples
from sam_blvit.data.sources import Source
from sam_blvit.exported.sam import ExportedSam
from sam_blvit.model.sam import Sam
from sam_blvit.system.distributed import Processes, pick_device
from sam_blvit.train.batches import Batch, Batches, batches_of
from sam_blvit.train.loss.objective import Objective
from sam_blvit.train.optim import MovingAverage, freeze, optimizer_for
from sam_blvit.train.parallel import wrapped
from sam_blvit.train.run.state import State
from sam_blvit.train.step import Stepper
from sam_blvit.train.teacher.targets import load_student_and_teacher, teacher_for
from sam_blvit.train.teacher.warm_start import warm_start

RECOMPILES = 256
"""Largest number of shapes that a layer is compiled for: keep ratios times shapes of photographs."""
SOME = 0x50E
"""Part of the seed that separates the draw of a sample of the data from the order of an epoch."""


@dataclass(frozen=True)
class Training:
    """All parts of a run."""

    config: FinetuneConfig
    source: Source
    dataset: TrainingSamples
    student: Sam
    teacher: Sam | ExportedSam | None
    stepper: Stepper
    state: State
    processes: Processes
    device: torch.device

    @property
    def images_a_step(self) -> int:
        """Photographs per step, over all processes and accumulated batches."""
        return self.config.machine.batch_size * self.config.optimizer.accumulate * self.processes.count

    def batches(self, *, start: int, steps: int) -> AbstractContextManager[Iterator[Batch]]:
        """Return a context with this process's batches for `steps` steps, from sample `start` of the run."""
        order = Batches(
            len(self.dataset),
            batch_size=self.config.machine.batch_size,
            start=start,
            batches=steps * self.config.optimizer.accumulate,
            seed=self.config.data.seed,
            processes=self.processes,
        )
        return batches_of(self.dataset, order, self.config.machine.workers)


def prepare(config: FinetuneConfig, source: Source, processes: Processes, *, warm: bool) -> Training:
    """Set up the run that `config` describes on `source`, at step 0. `warm`: do the warm start, if it has one."""
    torch.manual_seed(config.data.seed)  # for new weights; nothing else uses the global generator
    device = pick_device(config.machine.device)
    student, teacher = load_student_and_teacher(config)
    if config.losses.listwise_weight and not student.config.router_learns:  # as stored in the checkpoint
        raise ValueError(
            f"listwise_weight={config.losses.listwise_weight}: no effect, {config.student.checkpoint} was saved with "
            f"router={student.config.router}; leave it out, or add --options router=learned"
        )
    student.to(device).train()
    dataset = _dataset(config, source, student, teacher)
    if warm and config.student.warm_start == "layerwise":
        _warm_start(student, dataset, config, processes)
    encoder = student.image_encoder
    encoder.checkpoint_layers = config.machine.checkpoint_layers
    if config.machine.compile:
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = RECOMPILES
        for block in encoder.blocks:
            block.compile()
    freeze(student, config)
    objective = Objective(student, teacher_for(config, student, teacher, source, device), config)
    parallel = wrapped(objective, config.machine.sharding, processes)
    optimizer = optimizer_for(student, config)
    average = MovingAverage(student, config.optimizer.ema) if config.optimizer.ema else None
    stepper = Stepper(parallel, optimizer, config, processes, device, average)
    return Training(
        config=config,
        source=source,
        dataset=dataset,
        student=student,
        teacher=teacher,
        stepper=stepper,
        state=State(student, optimizer, average),
        processes=processes,
        device=device,
    )


def _dataset(
    config: FinetuneConfig, source: Source, student: Sam, teacher: Sam | ExportedSam | None
) -> TrainingSamples:
    side = student.config.image_size
    teachers = side if teacher is None or config.teacher.teacher_cache is not None else teacher.image_encoder.img_size
    return TrainingSamples(
        source,
        image_size=side,
        mask_side=config.prompts.mask_side or side,
        masks_per_image=config.masks_per_image,
        smallest_crop=config.prompts.smallest_crop,
        mirrored=0.5 if config.prompts.flip else 0.0,
        seed=config.data.seed,
        teacher_size=None if teachers == side else teachers,
    )


def some_of(dataset: TrainingSamples, count: int, *, seed: int) -> list[Sample | Damaged]:
    """Return at most `count` items of `dataset`, drawn by `seed`."""
    order = np.random.default_rng([seed, SOME]).permutation(len(dataset))
    return [dataset[0, int(index)] for index in order[:count]]


def _warm_start(student: Sam, dataset: TrainingSamples, config: FinetuneConfig, processes: Processes) -> None:
    """Run the warm start in every process, then copy the result of the first process to all."""
    samples = some_of(dataset, config.student.warm_start_images, seed=config.data.seed)
    say = print if processes.first else lambda _: None
    images = [sample.image for sample in samples if isinstance(sample, Sample)]
    warm_start(
        student,
        images,
        steps=config.student.warm_start_steps,
        batch_size=config.machine.batch_size,
        seed=config.data.seed,
        precision=config.machine.precision,
        say=say,
    )
    for parameter in student.parameters():
        processes.from_first(parameter.data)
