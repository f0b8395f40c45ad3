"""Checks before a long run: its requirements, measured by real steps on real data, and the speed of data loading."""

from __future__ import annotations

import resource
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from sam_blvit.cost.macs import FLOP_PER_MAC, sam_macs
from sam_blvit.data.samples import Damaged, Sample
from sam_blvit.data.sources import MAX_BAD_SHARE
from sam_blvit.system.machine import device_name
from sam_blvit.train.loop import schedule_length
from sam_blvit.train.run.state import KEPT, Progress
from sam_blvit.train.setup import Training, some_of

GIB = 2**30
LOOKED_AT = 32
"""Photographs that are read to check the data."""
MEASURED = 3
"""Measured steps per keep ratio, after one warm-up step."""
PASSES = 3
"""Cost of a training step relative to a forward pass: forward 1, backward 2."""
READ = 12
"""Steps whose batches are read to measure the speed of data loading."""


def preflight(training: Training) -> dict[str, Any]:
    """Read photographs, run steps at full size at every keep ratio, and print steps, hours and GiB. Nothing is saved.

    Returns:
        The printed values.

    Raises:
        ValueError: If too many photographs are damaged, or the disk has no room for the run's checkpoints.
    """
    config, first = training.config, training.processes.first
    found = _looked_at(training)
    ratios = tqdm(_keep_ratios(training), desc="preflight", unit="keep ratio", disable=None if first else True)
    rows = [_measured(training, ratio) for ratio in ratios]
    steps = schedule_length(config, len(training.source), training.images_a_step, Progress({}, {}))
    shares = {ratio: _share(training, ratio) for ratio in _keep_ratios(training)}
    seconds = sum(shares[row["keep_ratio"]] * row["seconds"] for row in rows)
    needed, free = _disk(training)
    report = {
        **found,
        "device": device_name(training.device),
        "processes": training.processes.count,
        "images_a_step": training.images_a_step,
        "steps": steps,
        "at_keep_ratios": rows,
        "seconds_a_step": seconds,
        "hours": steps * seconds / 3600,
        "checkpoints_gib": needed / GIB,
        "disk_free_gib": free / GIB,
    }
    if first:
        print(_summary(report))
    if needed > free:
        raise ValueError(
            f"output {config.run.output}: checkpoints need {needed / GIB:.1f} GiB, the disk has {free / GIB:.1f} GiB "
            "free; use another output"
        )
    return report


def dry_run_data(training: Training) -> dict[str, float]:
    """Measure data loading alone and in training, and print images per second and the share of a step spent waiting.

    Returns:
        The printed values.
    """
    config = training.config
    workers = max(1, config.machine.workers)
    start = time.perf_counter()
    with training.batches(start=0, steps=READ) as batches:
        silent = None if training.processes.first else True
        shown = tqdm(batches, total=READ * config.optimizer.accumulate, unit="batch", desc="reading", disable=silent)
        read = sum(len(batch) for batch in shown)
    reading = time.perf_counter() - start
    waited, spent = _learning(training)
    report = {
        "images_per_second": read / reading,
        "images_per_second_per_worker": read / reading / workers,
        "step_seconds": spent,
        "data_share": waited / spent,
    }
    if training.processes.first:
        print(
            f"data: {report['images_per_second']:.2f} images/s, {report['images_per_second_per_worker']:.2f} images/s "
            f"for each of {workers} worker(s); a step of {training.images_a_step} images takes {spent:.2f} s, of which "
            f"{100 * report['data_share']:.1f} % is spent waiting for data ({device_name(training.device)})"
        )
    return report


def _learning(training: Training) -> tuple[float, float]:
    """Return the median seconds of a step spent waiting for data, and in total, without the first step."""
    times = []
    with training.batches(start=0, steps=MEASURED + 1) as batches:
        for step in range(MEASURED + 1):
            start = time.perf_counter()
            mine = [next(batches) for _ in range(training.config.optimizer.accumulate)]
            waited = time.perf_counter() - start
            training.stepper.step(mine, training.stepper.plan(training.stepper.count(mine), step=step))
            _synchronize(training)
            times.append((waited, time.perf_counter() - start))
    return statistics.median(waited for waited, _ in times[1:]), statistics.median(spent for _, spent in times[1:])


def _looked_at(training: Training) -> dict[str, Any]:
    start = time.perf_counter()
    items = some_of(training.dataset, LOOKED_AT, seed=training.config.data.seed)
    seconds, count = time.perf_counter() - start, len(items)
    damaged = [item.reason for item in items if isinstance(item, Damaged)]
    if len(damaged) > max(1, MAX_BAD_SHARE * len(training.dataset)):
        raise ValueError(
            f"{len(damaged)} of {count} checked photographs are damaged, first: {damaged[0]}; fix the data"
        )
    return {
        "photographs": len(training.dataset),
        "looked_at": count,
        "damaged": damaged,
        "read_per_second": count / seconds,
    }


def _measured(training: Training, keep_ratio: float) -> dict[str, float]:
    """Measure time, memory and arithmetic throughput of a step at `keep_ratio`."""
    stepper, device = training.stepper, training.device
    with training.batches(start=0, steps=1) as batches:
        mine = list(batches)
    if not any(isinstance(item, Sample) for batch in mine for item in batch):
        raise ValueError("all photographs of the first step are damaged; fix the data")
    plan = replace(stepper.plan(stepper.count(mine), step=training.config.losses.kd_only_steps), keep_ratio=keep_ratio)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(MEASURED + 1):
        start = time.perf_counter()
        stepper.step(mine, plan)
        _synchronize(training)
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:])
    flop = _flop_an_image(training, keep_ratio) * training.images_a_step
    return {
        "keep_ratio": keep_ratio,
        "seconds": seconds,
        "peak_gib": _peak(training) / GIB,
        "teraflops": flop / seconds / 1e12,
    }


def _flop_an_image(training: Training, keep_ratio: float) -> float:
    """Operations of the encoders only. At full size the decoder adds little."""
    training.student.image_encoder.keep_ratio = keep_ratio
    encoder, _ = sam_macs(training.student)
    macs = PASSES * encoder.full
    if training.teacher is not None and training.config.teacher.teacher_cache is None:
        macs += sam_macs(training.teacher)[0].full
    return FLOP_PER_MAC * macs


def _keep_ratios(training: Training) -> Sequence[float]:
    routed = training.student.config.routed
    return sorted(set(training.config.student.keep_ratios)) if routed else [1.0]


def _share(training: Training, keep_ratio: float) -> float:
    ratios = training.config.student.keep_ratios
    return ratios.count(keep_ratio) / len(ratios) if training.student.config.routed else 1.0


def _peak(training: Training) -> int:
    """Peak memory of this process so far, bytes."""
    if training.device.type == "cuda":
        return torch.cuda.max_memory_allocated(training.device)
    kilo = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo


def _disk(training: Training) -> tuple[int, int]:
    """Return the largest size of the checkpoints and models of the run, and the free disk space, bytes."""
    model = sum(value.numel() * value.element_size() for value in training.student.parameters())
    trained = sum(value.numel() * value.element_size() for value in training.stepper.parameters)
    average = trained if training.config.optimizer.ema else 0
    checkpoint = model + 2 * trained + average  # AdamW keeps two moments
    needed = (KEPT + 2) * checkpoint + 2 * model  # those kept, the best, and one being written
    return needed, shutil.disk_usage(training.config.run.output).free


def _synchronize(training: Training) -> None:
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)


def _summary(report: dict[str, Any]) -> str:
    lines = [
        f"data: {report['photographs']} photographs; {len(report['damaged'])} of {report['looked_at']} checked are "
        f"damaged; {report['read_per_second']:.1f} per second in one process",
        *report["damaged"],
        f"device: {report['processes']} x {report['device']}",
        "| keep ratio | seconds per step | peak GiB | TFLOP/s of the encoders |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['keep_ratio']:g} | {row['seconds']:.3f} | {row['peak_gib']:.2f} | {row['teraflops']:.3f} |"
        for row in report["at_keep_ratios"]
    ]
    lines += [
        f"run: {report['steps']} steps of {report['images_a_step']} images, {report['seconds_a_step']:.3f} s each: "
        f"{report['hours']:.2f} hours with {report['processes']} process(es)",
        f"disk: checkpoints take up to {report['checkpoints_gib']:.2f} GiB, {report['disk_free_gib']:.1f} GiB free",
    ]
    return "\n".join(lines)
