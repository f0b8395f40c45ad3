"""What was measured, with what, where: all that it takes to measure it again."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam as OriginalSam

from sam_blvit import __version__
from sam_blvit.checkpoint.load import SHIPPED, SHIPPED_WEIGHTS
from sam_blvit.config import MODELS, EvaluationConfig
from sam_blvit.cost.macs import G, sam_macs
from sam_blvit.exported.sam import ExportedSam
from sam_blvit.model.sam import Sam
from sam_blvit.system.files import file_sha256
from sam_blvit.system.revision import git_revision


def provenance(config: EvaluationConfig, sam: OriginalSam, *, annotations: dict[str, str]) -> dict[str, Any]:
    """What must match before a run can be resumed: the model, its weights and the data by their hashes, and the code.

    `annotations`: name and hash of the annotation file, from `Dataset.identity`.
    """
    return {
        "model": sam.name if isinstance(sam, (Sam, ExportedSam)) else config.model,
        "checkpoint": _weights_identity(config, sam),
        "image_size": sam.image_encoder.img_size,
        "parameters": parameter_count(sam),
        "annotations": annotations,
        "prompts_per_batch": config.prompts_per_batch,
        "torch": torch.__version__,
        "version": __version__,
        "git": git_revision(),
    }


def gmacs(sam: OriginalSam) -> dict[str, float] | None:
    """Multiply-adds of `sam` for one image and one point in both conventions, G; None for one that cannot be run on
    fake tensors, as some rivals' own kernels cannot."""
    try:
        encoder, total = sam_macs(sam)
    except Exception as error:  # whatever a foreign module raises
        warnings.warn(f"multiply-adds not counted: {type(error).__name__} on fake tensors", stacklevel=2)
        return None
    return {
        "paper": round(total.paper / G, 4),
        "full": round(total.full / G, 4),
        "encoder_paper": round(encoder.paper / G, 4),
        "encoder_full": round(encoder.full / G, 4),
    }


def parameter_count(sam: OriginalSam) -> int:
    """Parameters of `sam`, those of an exported encoder too."""
    outside = sam.image_encoder.parameter_count if isinstance(sam, ExportedSam) else 0
    return outside + sum(parameter.numel() for parameter in sam.parameters())


def file_identity(path: Path) -> dict[str, str]:
    """A file's name and hash."""
    return {"file": path.name, "sha256": file_sha256(path)}


def _weights_identity(config: EvaluationConfig, sam: OriginalSam) -> dict[str, str | None]:
    """The file that the weights came from; of a model without one the hash of its tensors."""
    if config.checkpoint is not None:
        return dict(file_identity(config.checkpoint))
    if config.model in (None, SHIPPED):
        return dict(file_identity(SHIPPED_WEIGHTS))
    if config.model is not None and config.model not in MODELS and Path(config.model).is_file():
        return dict(file_identity(Path(config.model)))
    if isinstance(sam, ExportedSam):  # the decoder's weights are hashed below, whatever their file
        return {"file": sam.image_encoder.path.name, "sha256": _tensors_sha256(sam, sam.image_encoder.path)}
    return {"file": None, "sha256": _tensors_sha256(sam)}


def _tensors_sha256(sam: OriginalSam, *files: Path) -> str:
    """One hash of `files` and of the tensors of `sam`."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(file_sha256(path).encode())
    for name, value in sam.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
