"""Sources of training data: which photographs a run uses, independently of how they are stored.

A source lists its photographs by ascending id. Their order, and with it every random draw, does not depend on how a
directory is listed or which tar holds a photograph.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sam_blvit.config import TrainingDataConfig
from sam_blvit.data.annotated import MAX_BAD_SHARE, Annotated
from sam_blvit.data.coco import Coco
from sam_blvit.data.manifest import read_ids, read_manifest
from sam_blvit.data.sa1b import TAR, Sa1b, tar_names

__all__ = [
    "MAX_BAD_SHARE", "Annotated", "Part", "Source", "held_out", "identity", "part", "training_source"
]  # fmt: skip

HELD_OUT = 2**31
"""Last number of the seed of the held-out draw; larger than any epoch, whose draws use theirs."""


class Source(Protocol):
    """Photographs and their objects, read one at a time, in any process."""

    image_ids: NDArray[np.int64]
    """(n,), ascending."""
    name: str
    """Shown in messages."""
    annotations_sha256: str
    """Hash of the file that annotates all photographs; empty if each has its own."""

    def __len__(self) -> int:
        """How many photographs there are."""

    def location(self, index: int) -> str:
        """Where photograph `index` lies within the source."""

    def read(self, index: int) -> Annotated:
        """Photograph `index`; ValueError if it is damaged."""


class Part:
    """Some photographs of a source (a `Source` itself)."""

    def __init__(self, whole: Source, indices: NDArray[np.int64], *, name: str) -> None:
        self.whole, self.indices = whole, np.sort(indices)
        self.image_ids = whole.image_ids[self.indices]
        self.name = name
        self.annotations_sha256 = whole.annotations_sha256

    def __len__(self) -> int:
        return len(self.indices)

    def location(self, index: int) -> str:
        """As in the whole source."""
        return self.whole.location(int(self.indices[index]))

    def read(self, index: int) -> Annotated:
        """As in the whole source."""
        return self.whole.read(int(self.indices[index]))


def training_source(config: TrainingDataConfig) -> Source:
    """The photographs that `config` names: of `data`, those on the manifest, without those to exclude.

    The source's name includes the number of excluded photographs.

    Raises:
        ValueError: if a photograph of the manifest is missing, or none is left.
    """
    if config.annotations is not None:
        source: Source = Coco(config.annotations, config.data)
    elif config.manifest is not None:
        source = _listed(config.data, config.manifest)
    else:
        source = Sa1b(config.data)
    return source if config.exclude is None else _without(source, config.exclude)


def part(source: Source, image_ids: ArrayLike, *, name: str | None = None) -> Source:
    """The photographs `image_ids` of `source`, named `name` or like `source`; ValueError if some are missing."""
    wanted = np.unique(np.asarray(image_ids, dtype=np.int64))
    missing = wanted[~np.isin(wanted, source.image_ids)]
    if len(missing):
        raise ValueError(
            f"{len(missing)} of {len(wanted)} photographs are not in {source.name}, first {missing[0]}; is a tar or a "
            "part of the data missing?"
        )
    return Part(source, np.searchsorted(source.image_ids, wanted), name=name or source.name)


def held_out(source: Source, count: int, *, seed: int) -> tuple[Source, Source]:
    """`source` without `count` photographs drawn by `seed`, and these; ValueError if none is left to train on."""
    if not 0 < count < len(source):
        raise ValueError(f"holdout={count} of the {len(source)} photographs of {source.name} leaves none to train on")
    order = np.random.default_rng([seed, HELD_OUT]).permutation(len(source))
    rest, held = order[count:], order[:count]
    return Part(source, rest, name=source.name), Part(source, held, name=source.name)


def identity(source: Source) -> str:
    """SHA-256 of the ids of a source's photographs, where each lies, and the file that annotates them, if one does.

    The directory does not count, so data may be moved.
    """
    digest = hashlib.sha256(source.annotations_sha256.encode())
    for index, image_id in enumerate(source.image_ids.tolist()):
        digest.update(f"{image_id}\t{source.location(index)}\n".encode())
    return digest.hexdigest()


def _listed(data: Path, manifest: Path) -> Source:
    """The photographs of `manifest`: if there are tars, only those that it names are read."""
    locations = read_manifest(manifest)
    there = set(tar_names(data)) if data.is_dir() else set()
    tars = {location for location in locations.values() if location.endswith(TAR)}
    if there and (lacking := sorted(tars - there)):
        raise ValueError(
            f"manifest {manifest} names {len(lacking)} tars that are not in {data}, first {lacking[0]}; copy them there"
        )
    source = Sa1b(data, tars=sorted(tars)) if there and tars else Sa1b(data)
    try:
        return part(source, list(locations), name=f"{data}, those in {manifest}")
    except ValueError as error:
        raise ValueError(f"manifest {manifest}: {error}") from error


def _without(source: Source, exclude: Path) -> Source:
    left_out = np.isin(source.image_ids, read_ids(exclude))
    if left_out.all():
        raise ValueError(f"exclude={exclude} leaves none of the {len(source)} photographs of {source.name}")
    name = f"{source.name}, {int(left_out.sum())} left out by {exclude}"
    return Part(source, np.flatnonzero(~left_out), name=name)
