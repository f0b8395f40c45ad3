"""Memory of processes: seen where it is taken, and only there."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sam_blvit.benchmark import memory
from sam_blvit.benchmark.memory import GIB, PeakMemory, available, resident

MIB = 2**20
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def touch(block: mmap.mmap) -> None:
    """Memory past the allocator, which may have kept what earlier tests returned."""
    for place in range(0, len(block), mmap.PAGESIZE):
        block[place] = 1


def take_and_return(size: int) -> None:
    with mmap.mmap(-1, size) as block:
        touch(block)


@on_linux
def test_only_memory_that_was_touched_counts() -> None:
    before = resident()
    assert before is not None
    with mmap.mmap(-1, 256 * MIB) as block:
        untouched = resident()
        touch(block)
        touched = resident()
    assert untouched is not None
    assert touched is not None
    assert untouched - before < 64 * MIB
    assert touched - untouched > 192 * MIB


@on_linux
def test_memory_of_another_process_is_seen_until_it_ends() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert (resident(process.pid) or 0) > 0
    process.communicate()
    assert resident(process.pid) is None


@on_linux
def test_the_peak_is_what_was_taken_and_returned_since() -> None:
    device = torch.device("cpu")
    take_and_return(128 * MIB)
    peak = PeakMemory(device)
    take_and_return(384 * MIB)
    taken = peak.beyond()
    assert taken is not None
    assert 320 * MIB < taken < 512 * MIB


def test_a_device_without_such_figures_has_none() -> None:
    assert PeakMemory(torch.device("mps")).beyond() is None


@on_linux
def test_a_container_may_allow_less_than_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, taken = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(memory, "CONTAINERS", ((str(limit), str(taken)),))
    taken.write_text("1048576\n")
    whole = available()
    assert whole is not None
    limit.write_text("max\n")
    assert available() == pytest.approx(whole, rel=0.2)
    limit.write_text("2097152\n")
    assert available() == MIB < GIB


def test_a_system_that_does_not_tell_has_no_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path / "nothing")
    assert resident() is None
    assert available() is None
    assert PeakMemory(torch.device("cpu")).beyond() is None
