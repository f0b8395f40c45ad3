"""Identity and origin of a run, stored in its checkpoints: everything that must match before a run can be resumed,
and where it was computed."""

from __future__ import annotations

from typing import Any

import torch

from sam_blvit import __version__
from sam_blvit.checkpoint.adapter import BASE_KEY, base_sha256
from sam_blvit.config import FinetuneConfig, settings_of
from sam_blvit.data.sources import Source, identity
from sam_blvit.system.distributed import Processes
from sam_blvit.system.files import file_sha256
from sam_blvit.system.revision import git_revision
from sam_blvit.train.teacher.targets import TEACHER_KEY

MAY_CHANGE = (
    "output", "data", "annotations", "manifest", "exclude", "checkpoint", "base", "teacher", "teacher_decoder",
    "teacher_cache", "mirrored_cache", "preset", "precision", "device", "workers", "batch_size", "accumulate",
    "sharding", "checkpoint_layers", "compile", "max_steps", "resume", "checkpoint_every", "log_every", "picture_every",
    "tensorboard", "validate_every", "val_manifest", "val_annotations", "val_images", "val_limit", "max_bad_steps",
    "preflight", "dry_run_data",
)  # fmt: skip
"""Settings that may change when a run is resumed: paths (files are compared by their hash), the division of work, and
logging."""


def run_identity(config: FinetuneConfig, source: Source) -> dict[str, Any]:
    """Return everything that must match before a run can be resumed: plain JSON values by name."""
    settings = {name: value for name, value in settings_of(config).items() if name not in MAY_CHANGE}
    student, teacher = config.student, config.teacher
    files = {
        TEACHER_KEY: teacher.teacher,
        "teacher_decoder_sha256": teacher.teacher_decoder,
        "checkpoint_sha256": student.checkpoint,
    }
    hashes = {name: None if path is None else file_sha256(path) for name, path in files.items()}
    base = student.base or student.checkpoint or teacher.teacher
    if student.freeze == "performance" and base is not None:
        hashes[BASE_KEY] = base_sha256(base)
    lists = {"keep_ratios": list(student.keep_ratios), "options": sorted(student.options)}
    resolved = {"masks_per_image": config.masks_per_image}
    return {**settings, **lists, **resolved, **hashes, "data_sha256": identity(source)}


def run_origin(config: FinetuneConfig, processes: Processes) -> dict[str, Any]:
    """Return where this part of a run is computed, and its list of photographs: plain JSON values by name."""
    return {
        "manifest_sha256": None if config.data.manifest is None else file_sha256(config.data.manifest),
        "processes": processes.count,
        "git": git_revision(),
        "version": __version__,
        "torch": torch.__version__,
    }
