"""`sam-blvit finetune`: trains a SAM and compares its accuracy and speed with those of its teacher.

Data, validation and training meet here; validation and training do not import each other.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from sam_blvit.config import FinetuneConfig
from sam_blvit.data.sources import Source, held_out, training_source
from sam_blvit.evaluate.in_training.comparison import JSON_FILE, TABLE_FILE, compare, comparison_table
from sam_blvit.evaluate.in_training.validation import Validation
from sam_blvit.system.distributed import joined_processes, pick_device
from sam_blvit.system.files import check_inputs_stay, output_directory
from sam_blvit.train.loop import BEST_FILE, MODEL_FILE, train
from sam_blvit.train.precision import with_precision
from sam_blvit.train.preflight import dry_run_data, preflight
from sam_blvit.train.run.failures import BAD_STEPS_FILE
from sam_blvit.train.run.interrupt import REQUEUE, Interrupt
from sam_blvit.train.run.log import LOG_FILE
from sam_blvit.train.run.state import Checkpoints
from sam_blvit.train.setup import Training, prepare

OUTPUTS = (MODEL_FILE, BEST_FILE, LOG_FILE, BAD_STEPS_FILE, JSON_FILE, TABLE_FILE)
"""Files that a run writes to its output directory."""


def finetune(config: FinetuneConfig) -> None:
    """Train with `config` and write a model that `sam_model_registry` loads, or only run the preflight or data check.

    Raises:
        ValueError: If a setting or an input is invalid.
        SystemExit: With code 75, if SIGTERM or SIGUSR1 stopped the run.
    """
    config = dataclasses.replace(config, machine=with_precision(config.machine))
    device, output = pick_device(config.machine.device), config.run.output
    interrupt = Interrupt()
    with nullcontext() if config.run.only_looks else interrupt, joined_processes(device) as processes:
        output_directory(output)
        check_inputs_stay((output / name for name in OUTPUTS), _inputs(config))
        if not processes.first:
            processes.wait()  # the first process indexes the data and writes the index for the others
        source, held = _sources(config)
        if processes.first:
            processes.wait()
        if processes.first:
            print(f"{len(source)} photographs of {source.name}" + (f", {len(held)} held out" if held else ""))
        validation = Validation.of(config, held, processes=processes)
        fresh = not config.run.only_looks and not Checkpoints(output, processes).found()
        training = prepare(config, source, processes, warm=fresh)
        if config.run.preflight:
            preflight(training)
        elif config.run.dry_run_data:
            dry_run_data(training)
        else:
            _train(training, validation, interrupt)


def _train(training: Training, validation: Validation | None, interrupt: Interrupt) -> None:
    """Train. Then compare the model with its teacher, if there is one and there are validation photographs."""
    config, processes = training.config, training.processes
    model = train(training, validation, interrupt)
    if validation is None or training.teacher is None:
        return
    if any(processes.gathered(interrupt.received)):  # no time for the table; the run writes it when started again
        raise SystemExit(REQUEUE)
    as_brought = {1.0} if config.student.freeze == "performance" else set()  # still the original SAM
    ratios = sorted({*config.student.keep_ratios, *as_brought}) if model.config.routed else [1.0]
    before = training.teacher.to(training.device)
    rows = compare(before, model, validation, keep_ratios=ratios, output=config.run.output)
    if processes.first:
        print(comparison_table(rows))


def _inputs(config: FinetuneConfig) -> list[Path | None]:
    """Files that a run reads."""
    data, validation, student, teacher = config.data, config.validation, config.student, config.teacher
    lists = [data.annotations, data.manifest, data.exclude, validation.val_manifest, validation.val_annotations]
    return [student.checkpoint, student.base, teacher.teacher, teacher.teacher_decoder, *lists]


def _sources(config: FinetuneConfig) -> tuple[Source, Source | None]:
    """Photographs for training and for validation, without overlap."""
    data, val_manifest = config.data, config.validation.val_manifest
    source = training_source(data)
    if data.holdout:
        return held_out(source, data.holdout, seed=data.seed)
    if val_manifest is None:
        return source, None
    held = training_source(dataclasses.replace(data, manifest=val_manifest))
    if len(both := np.intersect1d(source.image_ids, held.image_ids)):
        raise ValueError(
            f"val_manifest={val_manifest}: {len(both)} of its {len(held)} photographs are also training photographs, "
            f"first {both[0]}; list the training photographs with manifest"
        )
    return source, held
