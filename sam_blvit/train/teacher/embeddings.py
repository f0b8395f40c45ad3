"""A teacher's image embeddings on disk: memory-mapped float16 shards, and a header that identifies the teacher.

A directory contains header.json, ids.npy (the photographs in order), and for every `shard_images` photographs a file
shard_00000.npy (n, 256, G, G) and shard_00000.json. The .json is written last: a shard without it is incomplete. The
row of a damaged photograph is zero, and its id is in the .json.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam_blvit.config import EMBEDDING_CHANNELS
from sam_blvit.data.samples import Damaged
from sam_blvit.system.files import parse_json, write_atomically, write_json

HEADER_FILE = "header.json"
IDS_FILE = "ids.npy"
FORMAT = 2
DTYPE = "float16"
TRANSFORM = "longest side to image_size, 8 bit, area when shrunk and linear when enlarged; zeros right and below; 1"
"""How a photograph becomes the teacher's input. Bump the version number at the end whenever this changes."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Contents and origin of a cache."""

    teacher_sha256: str
    """Hash of the teacher's file."""
    teacher_model: str
    """Registry name."""
    image_size: int
    """Longest side of the teacher's input, pixels."""
    student_image_size: int
    """Longest side of the input of the student that it was written for. Students of another size can read it if their
    grid is the same."""
    grid: int
    """Cells along each side of an embedding."""
    precision: str
    """Precision of the teacher's matrix products."""
    images: int
    """Number of photographs, including damaged ones."""
    ids_sha256: str
    """Hash of the ids of the photographs in order."""
    shard_images: int
    mirrored: bool = False
    """Whether the teacher saw each photograph mirrored."""
    transform: str = TRANSFORM
    dtype: str = DTYPE
    format: int = FORMAT

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.images // self.shard_images)

    def rows(self, shard: int) -> range:
        """Return the indices of the photographs in `shard`."""
        return range(shard * self.shard_images, min(self.images, (shard + 1) * self.shard_images))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one embedding."""
        return EMBEDDING_CHANNELS, self.grid, self.grid


def ids_sha256(image_ids: NDArray[np.int64]) -> str:
    """Return the hash of `image_ids` in order."""
    return hashlib.sha256(np.ascontiguousarray(image_ids, dtype="<i8").tobytes()).hexdigest()


class EmbeddingWriter:
    """Writes a cache, shard by shard, in any number of processes."""

    def __init__(self, directory: Path, header: Header) -> None:
        self.directory = directory
        self.header = header

    def begin(self, image_ids: NDArray[np.int64]) -> None:
        """Write the header, or check the one that exists. Call this in one process.

        Raises:
            ValueError: If the directory contains another cache, or the disk is too small.
        """
        path = self.directory / HEADER_FILE
        if path.is_file():
            _check_same(self.directory, _read_header(self.directory), self.header)
        self._check_room()
        write_atomically(self.directory / IDS_FILE, lambda to: _save_ids(to, image_ids))
        write_json(path, asdict(self.header))

    def missing(self) -> list[int]:
        """Return the numbers of the incomplete shards."""
        return [shard for shard in range(self.header.shards) if not _mark(self.directory, shard).is_file()]

    def write(self, shard: int, embeddings: Iterable[Tensor | Damaged]) -> None:
        """Write `shard` from the embeddings (256, G, G) of its photographs, in order."""
        path = _shard(self.directory, shard)
        partial = path.with_name(f"{path.name}.partial")  # overwrites what a killed process left
        shape = (len(self.header.rows(shard)), *self.header.shape)
        damaged: dict[str, str] = {}
        with partial.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
            for embedding in embeddings:
                if isinstance(embedding, Damaged):
                    damaged[str(embedding.image_id)] = embedding.reason
                    embedding = torch.zeros(self.header.shape)
                _append(file, embedding, partial)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        write_json(_mark(self.directory, shard), {"damaged": damaged})

    def damaged(self) -> dict[int, str]:
        """Return why photographs of the complete shards are damaged, by id."""
        return _damaged(self.directory, [s for s in range(self.header.shards) if _mark(self.directory, s).is_file()])

    def _check_room(self) -> None:
        images = sum(len(self.header.rows(shard)) for shard in self.missing())
        needed = images * int(np.prod(self.header.shape)) * np.dtype(DTYPE).itemsize
        free = shutil.disk_usage(self.directory).free
        if needed > free:
            raise ValueError(
                f"output {self.directory}: {images} embeddings need {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} "
                "GiB are free; make room, use another disk, or use fewer photographs"
            )


class KeptEmbeddings:
    """A complete cache, indexed by photograph."""

    def __init__(self, directory: Path, header: Header) -> None:
        self.directory = directory
        self.header = header
        self.damaged = _damaged(directory, range(header.shards))
        image_ids = np.load(directory / IDS_FILE)
        self._places = image_ids.argsort(kind="stable")
        self._sorted = image_ids[self._places]
        self._open: dict[int, NDArray[np.float16]] = {}

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        teacher_sha256: str,
        image_size: int,
        grid: int,
        image_ids: NDArray[np.int64],
        mirrored: bool = False,
    ) -> KeptEmbeddings:
        """Open the cache in `directory` for a run on photographs `image_ids`, mirrored or not.

        Raises:
            ValueError: If the cache is of another teacher, transform or image size, is incomplete, lacks photographs of
                the run, or found some of them damaged.
        """
        header = _read_header(directory)
        wanted = {
            "format": FORMAT,
            "dtype": DTYPE,
            "teacher_sha256": teacher_sha256,
            "image_size": image_size,
            "grid": grid,
            "transform": TRANSFORM,
            "mirrored": mirrored,
        }
        _check_fields(
            directory, header, wanted, "write it again with tools/cache_teacher.py and the settings of this run"
        )
        if missing := EmbeddingWriter(directory, header).missing():
            raise ValueError(
                f"teacher_cache {directory} is not complete: {len(missing)} of {header.shards} shards are missing, "
                f"first {missing[0]}; start tools/cache_teacher.py again to complete it"
            )
        kept = cls(directory, header)
        if len(lacking := image_ids[~kept.has(image_ids)]):
            raise ValueError(
                f"teacher_cache {directory} lacks {len(lacking)} of the {len(image_ids)} photographs of this run, "
                f"first {lacking[0]}; write it with the same data, manifest and exclude"
            )
        if damaged := [image_id for image_id in image_ids.tolist() if image_id in kept.damaged]:
            raise ValueError(
                f"teacher_cache {directory}: {len(damaged)} of the {len(image_ids)} photographs of this run were "
                f"damaged when it was written, first {damaged[0]} ({kept.damaged[damaged[0]]}); name their ids in a "
                "file for exclude"
            )
        return kept

    def has(self, image_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether each of `image_ids` is among the photographs, damaged or not."""
        return self._sorted[self._nearest(image_ids)] == image_ids

    def of(self, image_ids: list[int]) -> Tensor:
        """Read the embeddings of `image_ids`, (B, 256, G, G) float16. Raises ValueError if one is not available."""
        wanted = np.array(image_ids, dtype=np.int64)
        for image_id in wanted[~self.has(wanted)]:
            raise ValueError(f"teacher_cache {self.directory} has no photograph {image_id}")
        for image_id in image_ids:
            if image_id in self.damaged:
                raise ValueError(
                    f"teacher_cache {self.directory}: photograph {image_id} was damaged when it was written "
                    f"({self.damaged[image_id]}); exclude it, or delete the cache and write it again"
                )
        return torch.from_numpy(np.stack([self._row(place) for place in self._places[self._nearest(wanted)]]))

    def _nearest(self, image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index in the sorted ids of each of `image_ids` that is present."""
        return np.searchsorted(self._sorted, image_ids).clip(max=len(self._sorted) - 1)

    def _row(self, place: int) -> NDArray[np.float16]:
        shard, row = divmod(int(place), self.header.shard_images)
        if shard not in self._open:
            self._open[shard] = np.load(_shard(self.directory, shard), mmap_mode="r")
        return self._open[shard][row]


def _shard(directory: Path, shard: int) -> Path:
    return directory / f"shard_{shard:05d}.npy"


def _mark(directory: Path, shard: int) -> Path:
    """Return the file that marks a shard as complete."""
    return _shard(directory, shard).with_suffix(".json")


def _append(file: BinaryIO, embedding: Tensor, path: Path) -> None:
    try:
        file.write(embedding.half().cpu().numpy().astype("<f2").tobytes())
    except OSError as error:
        raise ValueError(
            f"output {path}: cannot be written ({error.strerror}); complete shards are kept: make room and start again"
        ) from error


def _damaged(directory: Path, shards: Iterable[int]) -> dict[int, str]:
    marks = (_damaged_in(_mark(directory, shard)) for shard in shards)
    return {image_id: reason for mark in marks for image_id, reason in mark.items()}


def _damaged_in(mark: Path) -> dict[int, str]:
    try:
        return {int(image_id): reason for image_id, reason in parse_json(mark.read_text())["damaged"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{mark} does not list its shard's damaged photographs ({error}); delete it and start "
            "tools/cache_teacher.py again"
        ) from error


def _save_ids(to: str, image_ids: NDArray[np.int64]) -> None:
    with open(to, "wb") as file:  # given a name, np.save would add a suffix
        np.save(file, image_ids)


def _read_header(directory: Path) -> Header:
    path = directory / HEADER_FILE
    try:
        return Header(**parse_json(path.read_text()))
    except FileNotFoundError as error:
        raise ValueError(f"{directory} has no {HEADER_FILE}; name a directory of tools/cache_teacher.py") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a valid header ({error}); delete the directory and write it again") from error


def _check_same(directory: Path, header: Header, wanted: Header) -> None:
    _check_fields(directory, header, asdict(wanted), "use another output, or delete it")


def _check_fields(directory: Path, header: Header, wanted: dict[str, object], remedy: str) -> None:
    differing = [name for name, value in wanted.items() if getattr(header, name) != value]
    if differing:
        changes = "; ".join(f"{name} was {getattr(header, name)}, is {wanted[name]}" for name in differing)
        raise ValueError(f"{directory} has embeddings of other settings ({changes}); {remedy}")
