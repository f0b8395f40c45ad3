"""Recoverable failures: counts and reports them, and stops the run when there are too many."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from sam_blvit.config import FinetuneConfig
from sam_blvit.data.samples import Damaged, Sample
from sam_blvit.data.sources import MAX_BAD_SHARE
from sam_blvit.system.distributed import Processes
from sam_blvit.train.batches import Batch
from sam_blvit.train.run.log import append_json
from sam_blvit.train.run.state import Progress

BAD_STEPS_FILE = "bad_steps.jsonl"


class TooMany(ValueError):
    """A run had too many recoverable failures."""


def count_damaged(batches: Sequence[Batch], progress: Progress, *, total: int, processes: Processes) -> None:
    """Record the damaged photographs of `batches` of all processes in `progress`.

    Raises:
        TooMany: If there are more than one, and more than 1 in 1,000 of `total`.
    """
    mine = {str(item.image_id): item.reason for batch in batches for item in batch if isinstance(item, Damaged)}
    for theirs in processes.gathered(mine):
        for image_id, reason in theirs.items():
            if image_id not in progress.damaged and processes.first:
                warnings.warn(f"left out: {reason}", stacklevel=2)
            progress.damaged[image_id] = reason
    if len(progress.damaged) > max(1, MAX_BAD_SHARE * total):
        raise TooMany(
            f"{len(progress.damaged)} of {total} photographs cannot be used, more than {MAX_BAD_SHARE:.1%}; the last: "
            f"{list(progress.damaged.values())[-1]}; fix them and resume, or start a new run without them (exclude)"
        )


def count_bad_step(
    batches: Sequence[Batch], norm: float, progress: Progress, *, config: FinetuneConfig, processes: Processes
) -> None:
    """Record a skipped step in `progress`, and append its photographs to bad_steps.jsonl.

    Raises:
        TooMany: If `config.optimizer.max_bad_steps` is reached.
    """
    ids = [item.image_id for batch in batches for item in batch if isinstance(item, Sample)]
    images = [image_id for theirs in processes.gathered(ids) for image_id in theirs]
    progress.bad_steps += 1
    path = config.run.output / BAD_STEPS_FILE
    if processes.first:
        append_json(path, {"step": progress.step, "gradient_norm": norm, "images": images})
        warnings.warn(f"step {progress.step} skipped: its gradient's norm is {norm}", stacklevel=2)
    if progress.bad_steps >= config.optimizer.max_bad_steps:
        raise TooMany(
            f"{progress.bad_steps} steps had a gradient that was not finite; {path} lists their images; start a new "
            "run from an earlier model with a lower --lr or --precision fp32, or resume with a higher --max-bad-steps"
        )
