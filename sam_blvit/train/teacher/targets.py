"""The teacher: the student learns to match its image embeddings, and starts with its decoder.

Each SAM was trained end to end with its own prompt encoder and mask decoder, and features of one SAM do not fit the
decoder of another. A student therefore starts with its teacher's decoder, or was distilled from this teacher before.

A teacher sees each photograph at its own input size. Only the grids of the embeddings must agree.

Shapes:
    B  images    G  tokens along a side of the square input    C  channels of the teacher
    E  cells along a side of an embedding
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_blvit.checkpoint.load import build_from_registry, read_metadata, sam_model_registry
from sam_blvit.config import MODELS, PATCH_SIZE, SAME, CacheConfig, FinetuneConfig, ModelConfig, model_config
from sam_blvit.data.samples import Sample
from sam_blvit.data.sources import Source
from sam_blvit.exported.encoder import ExportedEncoder
from sam_blvit.exported.sam import ONNX, ExportedSam, load_exported
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.system.files import file_sha256
from sam_blvit.train.teacher.embeddings import KeptEmbeddings
from sam_blvit.train.teacher.inherit import inherit

TEACHER_KEY = "teacher_sha256"
"""Metadata key in a student's checkpoint: hash of the file of the teacher that it was distilled from."""
ENCODER = "image_encoder."


@dataclass(frozen=True)
class Target:
    """The teacher's outputs for a batch."""

    embedding: Tensor
    """(B, 256, E, E) float32."""
    features: dict[int, Tensor]
    """Tokens (B, G, G, C) after further layers to match, by layer. Zero outside the teacher's input."""

    def of(self, places: list[int]) -> Target:
        """Select the images at `places` in the batch."""
        return Target(self.embedding[places], {layer: feature[places] for layer, feature in self.features.items()})


class Teacher(Protocol):
    """Computes or reads the targets of a batch."""

    def targets(self, images: list[Tensor], samples: list[Sample]) -> Target:
        """Return the targets of `images`, those of `samples`, each (3, h, w) with pixels from 0 to 255."""


class LiveTeacher:
    """A teacher that runs during training, on the student's input or on the same view at its own size."""

    def __init__(self, sam: Sam | ExportedSam, *, precision: str = "fp32", features_of: tuple[int, ...] = ()) -> None:
        """`features_of`: layers of `sam` whose tokens to return as well."""
        self.sam = sam.eval().requires_grad_(False)
        self.precision = precision
        self.features_of = features_of

    @torch.no_grad()
    def targets(self, images: list[Tensor], samples: list[Sample]) -> Target:
        """As `Teacher`. Each image is encoded at its own padded size, so its target does not depend on other images."""
        own = [sample.teacher_image for sample in samples]
        images = [
            image if view is None else view.to(image.device).float() for image, view in zip(images, own, strict=True)
        ]
        if isinstance(self.sam, ExportedSam):
            embedded = [self.sam.image_encoder(self.sam.preprocess(image)[None]) for image in images]
            return Target(torch.cat(embedded), {})
        grid = self.sam.config.grid
        embeddings: dict[int, Tensor] = {}
        features: dict[int, dict[int, Tensor]] = {layer: {} for layer in self.features_of}
        with torch.autocast(self.sam.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            groups = self.sam.encode_by_shape(images, features_of=self.features_of)
        for places, encoding in groups:
            embeddings |= dict(zip(places, encoding.embedding.float(), strict=True))
            for layer, of_place in features.items():
                of_place |= dict(zip(places, _on_square(encoding.features[layer], grid), strict=True))
        return Target(_in_order(embeddings), {layer: _in_order(of_place) for layer, of_place in features.items()})


class CachedTeacher:
    """A teacher whose embeddings were cached by tools/cache_teacher.py."""

    def __init__(self, kept: KeptEmbeddings, mirrored: KeptEmbeddings | None = None) -> None:
        """`kept`: cache of the photographs. `mirrored`: cache of the mirrored photographs, needed with flip."""
        self.kept = kept
        self.mirrored = mirrored

    def targets(self, images: list[Tensor], samples: list[Sample]) -> Target:
        """As `Teacher`. Raises ValueError if an image is not in the cache."""
        embedding = torch.cat([self._of(sample) for sample in samples])
        return Target(embedding.to(images[0].device).float(), {})

    def _of(self, sample: Sample) -> Tensor:
        kept = self.mirrored if sample.mirrored else self.kept
        assert kept is not None  # the config requires it with flip
        return kept.of([sample.image_id])


def teacher_for(
    config: FinetuneConfig, student: Sam, teacher: Sam | ExportedSam | None, source: Source, device: torch.device
) -> Teacher | None:
    """Build the teacher of a run on `source`.

    Returns:
        A cached teacher if `config` names a cache, else `teacher` itself on `device`. None without a teacher.

    Raises:
        ValueError: If the cache does not match the run.
    """
    if config.teacher.teacher_cache is not None and config.teacher.teacher is not None:
        opened = partial(
            KeptEmbeddings.open,
            teacher_sha256=file_sha256(config.teacher.teacher),
            image_size=teacher_size(config, student.config),
            grid=student.config.embedding_grid,
            image_ids=source.image_ids,
        )
        mirrored = config.teacher.mirrored_cache
        return CachedTeacher(
            opened(config.teacher.teacher_cache), None if mirrored is None else opened(mirrored, mirrored=True)
        )
    if teacher is None:
        return None
    between: tuple[int, ...] = ()
    if config.losses.distillation_layers and isinstance(teacher, Sam):
        between = teacher.config.global_layers[:-1]
    return LiveTeacher(teacher.to(device), precision=config.machine.precision, features_of=between)


def load_student_and_teacher(config: FinetuneConfig) -> tuple[Sam, Sam | ExportedSam | None]:
    """Load the student with its initial weights, and the teacher if there is one, both on the CPU.

    Raises:
        ValueError: If teacher and student do not match.
    """
    path, checkpoint = config.teacher.teacher, config.student.checkpoint
    name, base, overrides = config.student.model, config.student.base, config.student.overrides
    model = model_config(name, **overrides)
    if path is None and checkpoint is None:
        return build_sam(model), None
    if path is None:
        return build_from_registry(name, checkpoint, base=base, **overrides), None
    if checkpoint is None and is_exported(path):
        student = sam_model_registry[name](**overrides)  # warns that its encoder is untrained
        teacher = load_teacher(config, student.config)
        _take_decoder(student, teacher, config)
        return student, teacher
    if checkpoint is None and not _same_size(model, model_config(teacher_model(config))):
        return _inheriting(config, model)
    start = checkpoint or path
    student = build_from_registry(name, start, base=base, **overrides)
    teacher = load_teacher(config, student.config)
    _check_features(student, teacher, config)
    if read_metadata(start).get(TEACHER_KEY) != file_sha256(path):  # otherwise distilled from this teacher before
        if isinstance(teacher, Sam) and _same_size(student.config, teacher.config):
            _check_same_decoder(student, teacher, config)
        elif not _same_decoder(student, teacher):
            _take_decoder(student, teacher, config)
    return student, teacher


def _inheriting(config: FinetuneConfig, model: ModelConfig) -> tuple[Sam, Sam]:
    """Build a student `model` that starts with a part of its larger teacher. Returns both."""
    teacher = load_teacher(config, model)
    assert isinstance(teacher, Sam)
    student = build_sam(model)
    _check_features(student, teacher, config)
    inherit(student, teacher)
    fresh = "; its routers and efficiency blocks are untrained" if model.routed else ""
    warnings.warn(
        f"{config.student.model} starts with evenly spaced channels of the first layers of teacher "
        f"{config.teacher.teacher} ({teacher.config.name}){fresh}",
        stacklevel=3,
    )
    _take_decoder(student, teacher, config)
    return student, teacher


def load_teacher(config: FinetuneConfig | CacheConfig, student: ModelConfig) -> Sam | ExportedSam:
    """Load the teacher that `config` names, at its own input size.

    Raises:
        ValueError: If its embedding cannot have the same grid as the student's.
    """
    path = config.teacher.required()
    if not is_exported(path):
        return build_from_registry(teacher_model(config), path, image_size=teacher_size(config, student))
    teacher = load_exported(path, config.teacher.teacher_decoder)
    grid = teacher.image_encoder.embedding_grid
    if grid != student.embedding_grid:
        raise ValueError(
            f"teacher {path} has an embedding of {grid} x {grid} cells, {student.name} at "
            f"image_size={student.image_size} one of {student.embedding_grid} x {student.embedding_grid}; use "
            f"image_size={grid * student.cell}, or --options enlarge=N"
        )
    return teacher


def is_exported(teacher: Path) -> bool:
    """Whether `teacher` is an ONNX file."""
    return teacher.suffix == ONNX


def teacher_size(config: FinetuneConfig | CacheConfig, student: ModelConfig) -> int:
    """Return the longest side of the teacher's input, pixels, that gives its embedding the student's grid."""
    path = config.teacher.required()
    if is_exported(path):
        return ExportedEncoder(path).img_size
    return student.embedding_grid * PATCH_SIZE // model_config(teacher_model(config)).enlarge


def teacher_model(config: FinetuneConfig | CacheConfig) -> str:
    """Return the teacher's registry name, with same resolved, or its file name if it is exported."""
    path = config.teacher.teacher
    if path is not None and is_exported(path):
        return path.name
    if config.teacher.teacher_model != SAME:
        return config.teacher.teacher_model
    student = model_config(config.student.model)
    if not student.routed:
        return config.student.model
    return next(name for name, other in MODELS.items() if not other.routed and _same_size(student, other))


def _same_size(one: ModelConfig, other: ModelConfig) -> bool:
    return (one.dim, one.heads, one.layers) == (other.dim, other.heads, other.layers)


def _check_features(student: Sam, teacher: Sam | ExportedSam, config: FinetuneConfig) -> None:
    """Refuse distillation_layers with a teacher of another size, whose tokens cannot be compared."""
    weight = config.losses.distillation_layers
    if weight and isinstance(teacher, Sam) and not _same_size(student.config, teacher.config):
        raise ValueError(
            f"distillation_layers={weight}: tokens of {teacher.config.name} have another size than "
            "those of the student; leave it out, or use a teacher of the student's size"
        )


def _check_same_decoder(student: Sam, teacher: Sam, config: FinetuneConfig) -> None:
    theirs = teacher.state_dict()
    for name, value in student.state_dict().items():
        if not name.startswith(ENCODER) and not torch.equal(value, theirs[name]):
            raise ValueError(
                f"{config.student.checkpoint} has another prompt encoder or mask decoder than teacher "
                f"{config.teacher.teacher} ({name} differs); start from the teacher's checkpoint"
            )


def _same_decoder(student: Sam, teacher: Sam | ExportedSam) -> bool:
    """Return whether prompt encoder and mask decoder equal the teacher's."""
    theirs = teacher.state_dict()
    return all(
        name.startswith(ENCODER) or torch.equal(value, theirs[name]) for name, value in student.state_dict().items()
    )


def _take_decoder(student: Sam, teacher: Sam | ExportedSam, config: FinetuneConfig) -> None:
    """Copy the teacher's prompt encoder and mask decoder into `student`, with a warning."""
    if config.student.freeze != "none":
        raise ValueError(
            f"freeze={config.student.freeze} keeps all of SAM's weights, but teacher {config.teacher.teacher} "
            f"({teacher_model(config)}) has another decoder, which the student would need; leave out freeze, or use a "
            "teacher of the student's size"
        )
    theirs = {name: value for name, value in teacher.state_dict().items() if not name.startswith(ENCODER)}
    student.load_state_dict(theirs, strict=False)  # all but the encoder
    message = (
        f"{config.student.model} takes prompt encoder and mask decoder of teacher {config.teacher.teacher} "
        f"({teacher_model(config)})"
    )
    if not config.losses.kd_only_steps:
        message += (
            ", which do not fit its features yet; start with distillation only, with kd_only_steps of about 5 % of "
            "the steps"
        )
    warnings.warn(message, stacklevel=3)


def _on_square(feature: Tensor, grid: int) -> Tensor:
    """Pad `feature` (B, Gh, Gw, C) to (B, G, G, C)."""
    return F.pad(feature.float(), (0, 0, 0, grid - feature.shape[2], 0, grid - feature.shape[1]))


def _in_order(by_place: dict[int, Tensor]) -> Tensor:
    return torch.stack([by_place[place] for place in range(len(by_place))])
