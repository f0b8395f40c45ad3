"""Index of the photographs in a tar, built once and kept beside it as `<name>.index.npz`.

An index is valid only for the size and modification time of its tar, and is written atomically. Any number of processes
may build it at once, and none reads a partial one.
"""

from __future__ import annotations

import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from sam_blvit.data.pairs import PAIR, Pairs, pairs_of
from sam_blvit.system.files import write_atomically

FORMAT = 1
"""Version of the index format; an index of another version is rebuilt."""
GZIP_MAGIC = b"\x1f\x8b"
ANY_MAY_WRITE = 0o222
UNUSABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
"""What NumPy raises for a file that is not an index or is truncated."""


def index_path(tar: Path) -> Path:
    """Path of the index of `tar`."""
    return tar.with_name(f"{tar.name}.index.npz")


def indexed(tars: Sequence[Path]) -> list[Pairs]:
    """The pairs in each of `tars`, from their indexes. Tars without an index, or changed since, are scanned.

    Warns once if indexes cannot be written. Raises ValueError for a tar that cannot be read.
    """
    found, unkept = [], []
    for tar in tqdm(tars, desc="indexing tars", unit="tar", delay=5, disable=None):
        pairs = _kept(tar)
        if pairs is None:
            stamp = _stamp(tar)  # before reading: if the tar changes meanwhile, its index is invalid
            pairs = _read_through(tar)
            if (problem := _keep(tar, pairs, stamp)) is not None:
                unkept.append(f"{tar} ({problem})")
        found.append(pairs)
    if unkept:
        warnings.warn(
            f"{len(unkept)} of {len(tars)} tar indexes cannot be kept beside their tars, first that of {unkept[0]}; "
            "each start reads through these tars again",
            stacklevel=2,
        )
    return found


def _stamp(tar: Path) -> list[int]:
    status = tar.stat()
    return [FORMAT, status.st_size, status.st_mtime_ns]


def _kept(tar: Path) -> Pairs | None:
    """The pairs in the index of `tar`; None if there is no valid index."""
    try:
        with np.load(index_path(tar), allow_pickle=False) as index:
            pairs, stamp = index["pairs"], index["stamp"]
    except UNUSABLE:
        return None
    return pairs if stamp.tolist() == _stamp(tar) and pairs.dtype == PAIR else None


def _keep(tar: Path, pairs: Pairs, stamp: list[int]) -> str | None:
    """Write the index of `tar`. Returns the reason if that is impossible."""
    if not tar.parent.stat().st_mode & ANY_MAY_WRITE:  # root could write there, but should not
        return "its directory is read-only"

    def write(to: str) -> None:
        with open(to, "wb") as file:
            np.savez(file, pairs=pairs, stamp=np.array(stamp, dtype=np.int64))

    try:
        write_atomically(index_path(tar), write)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _read_through(tar: Path) -> Pairs:
    try:
        with tar.open("rb") as file:
            if file.read(len(GZIP_MAGIC)) == GZIP_MAGIC:
                raise ValueError("it is gzip data under a .tar name; rename it to .tar.gz and gunzip it")
        return pairs_of(_members(tar))
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{tar} is no readable tar file ({error}); copy or download it again") from error
    except ValueError as error:
        raise ValueError(f"{tar}: {error}") from error


def _members(tar: Path) -> Iterator[tuple[str, int, int]]:
    with tarfile.open(tar, "r:") as opened:
        for member in opened:
            if member.isfile():
                yield PurePosixPath(member.name).name, member.offset_data, member.size
