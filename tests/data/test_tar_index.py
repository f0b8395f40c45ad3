"""The index of a tar: right, kept, built anew when it does not count, and safe to build many times at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam_blvit.data import tar_index
from sam_blvit.data.pairs import Pairs
from sam_blvit.data.tar_index import index_path, indexed
from synthetic import sa1b_files, write_tar


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "sa_000000.tar", range(4))


def bytes_at(tar: Path, extent: np.ndarray) -> bytes:
    offset, size = extent.tolist()
    return tar.read_bytes()[offset : offset + size]


def never(tar: Path) -> Pairs:
    raise AssertionError(f"{tar} was read through")


def test_the_index_says_where_each_file_lies(tar: Path) -> None:
    (pairs,) = indexed([tar])
    assert pairs["image_id"].tolist() == [0, 1, 2, 3]
    for pair in pairs:
        files = sa1b_files(int(pair["image_id"]))
        assert bytes_at(tar, pair["image"]) == files[f"sa_{pair['image_id']}.jpg"]
        assert bytes_at(tar, pair["annotations"]) == files[f"sa_{pair['image_id']}.json"]


def test_the_tar_is_read_through_once(tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = indexed([tar])
    monkeypatch.setattr(tar_index, "_read_through", never)
    (again,) = indexed([tar])
    np.testing.assert_array_equal(again, first)


def test_a_tar_of_another_size_is_read_anew(tar: Path) -> None:
    indexed([tar])
    stamp = tar.stat().st_mtime_ns
    write_tar(tar, range(40))
    os.utime(tar, ns=(stamp, stamp))
    assert len(indexed([tar])[0]) == 40


def test_a_tar_of_another_time_is_read_anew(tar: Path) -> None:
    indexed([tar])
    size, stamp = tar.stat().st_size, tar.stat().st_mtime_ns
    write_tar(tar, range(4, 8))
    os.utime(tar, ns=(stamp + 1, stamp + 1))
    assert tar.stat().st_size == size  # else the size tells
    assert indexed([tar])[0]["image_id"].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"\0" * len(b)])
def test_a_damaged_index_is_built_anew(tar: Path, damage: Callable[[bytes], bytes]) -> None:
    (right,) = indexed([tar])
    path = index_path(tar)
    good = path.read_bytes()
    path.write_bytes(damage(good))
    np.testing.assert_array_equal(indexed([tar])[0], right)
    with np.load(path) as index:
        np.testing.assert_array_equal(index["pairs"], right)


def test_an_index_of_another_format_is_built_anew(tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_index, "FORMAT", 0)
    indexed([tar])
    monkeypatch.undo()
    monkeypatch.setattr(tar_index, "_read_through", lambda tar: np.zeros(0, dtype=tar_index.PAIR))
    assert len(indexed([tar])[0]) == 0


def test_data_that_are_read_only_stay_as_they_are_and_that_is_said_once(tmp_path: Path) -> None:
    tars = [write_tar(tmp_path / f"sa_00000{i}.tar", range(3 * i, 3 * i + 3)) for i in range(3)]
    tmp_path.chmod(0o555)
    try:
        with pytest.warns(UserWarning, match=r"3 of 3 tar indexes cannot be kept .*read-only") as said:
            found = indexed(tars)
    finally:
        tmp_path.chmod(0o755)
    assert len(said) == 1
    assert [len(pairs) for pairs in found] == [3, 3, 3]
    assert sorted(tmp_path.iterdir()) == tars


def test_a_disk_that_refuses_the_index_is_named(tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, write: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tar_index, "write_atomically", full)
    with pytest.warns(UserWarning, match=r"sa_000000\.tar \(No space left on device\)"):
        assert len(indexed([tar])[0]) == 4


def test_gzip_under_a_tar_name_is_named_as_such(tmp_path: Path, refused: Callable[..., Any]) -> None:
    tar = write_tar(tmp_path / "sa_000000.tar", range(2), mode="w:gz")
    with refused(ValueError, r"sa_000000\.tar: it is gzip data under a \.tar name; rename it to \.tar\.gz and gunzip"):
        indexed([tar])


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_what_is_no_tar_is_named(tmp_path: Path, content: bytes, refused: Callable[..., Any]) -> None:
    (tmp_path / "sa_000000.tar").write_bytes(content)
    with refused(ValueError, r"sa_000000\.tar is no readable tar"):
        indexed([tmp_path / "sa_000000.tar"])


def test_a_tar_cut_short_is_named(tar: Path, refused: Callable[..., Any]) -> None:
    with tarfile.open(tar, "r:") as opened:
        last = opened.getmembers()[-1]
    tar.write_bytes(tar.read_bytes()[: last.offset_data + last.size // 2])
    with refused(ValueError, r"sa_000000\.tar is no readable tar file \(unexpected end of data\)"):
        indexed([tar])


def build(tar: Path, gate: Any, failed: Any) -> None:
    """Build the index again and again, and look at what the others write meanwhile."""
    try:
        gate.wait(timeout=30)
        for turn in range(30):
            (pairs,) = indexed([tar])
            assert pairs["image_id"].tolist() == list(range(60))
            with contextlib.suppress(FileNotFoundError), np.load(index_path(tar)) as index:
                assert len(index["pairs"]) == 60
            if turn % 2:
                index_path(tar).unlink(missing_ok=True)
        indexed([tar])
    except BaseException as error:
        failed.put(repr(error))
        raise


def test_processes_that_build_it_at_once_all_get_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = write_tar(tmp_path / "sa_000000.tar", range(60), size=(8, 8), masks=0)
    processes = multiprocessing.get_context("fork")
    gate, failed = processes.Barrier(4), processes.Queue()
    builders = [processes.Process(target=build, args=(tar, gate, failed)) for _ in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(timeout=60)
    problem = "" if failed.empty() else failed.get()
    assert [builder.exitcode for builder in builders] == [0] * 4, problem
    indexed([tar])  # one may have removed it after the others were done
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sa_000000.tar", "sa_000000.tar.index.npz"]
    monkeypatch.setattr(tar_index, "_read_through", never)
    assert len(indexed([tar])[0]) == 60
