"""What a benchmark ran on is named."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sam_blvit.system import machine as module
from sam_blvit.system.machine import machine, processor


def test_a_cpu_is_named_with_threads_versions_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    facts = machine(torch.device("cpu"))
    assert facts["processor"]
    assert facts["threads"] == torch.get_num_threads()
    assert facts["torch"] == torch.__version__
    assert facts["segment-anything"] == "1.0"
    assert facts["environment"]["MALLOC_ARENA_MAX"] == "2"
    assert "PATH" not in facts["environment"]
    assert "gpu" not in facts


@pytest.mark.parametrize(("answer", "driver"), [("550.54.15\n", "550.54.15"), ("", None), (FileNotFoundError(), None)])
def test_a_gpu_is_named_with_its_driver(
    monkeypatch: pytest.MonkeyPatch, answer: str | Exception, driver: str | None
) -> None:
    def run(*_: object, **__: object) -> SimpleNamespace:
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(stdout=answer)

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(subprocess, "run", run)
    facts = machine(torch.device("cuda"))
    assert (facts["gpu"], facts["driver"]) == ("Some GPU", driver)
    assert {"cuda", "cudnn"} <= facts.keys()


def test_the_processor_has_a_name() -> None:
    assert processor().strip()


def test_the_processors_name_is_that_of_its_first_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: EPYC 7B13: 64 cores\n\nprocessor\t: 1\nmodel name\t: other\n")
    monkeypatch.setattr(module, "Path", lambda _: info)
    assert processor() == "EPYC 7B13: 64 cores"


@pytest.mark.parametrize("content", [None, "processor\t: 0\nBogoMIPS\t: 50\n"])
def test_a_machine_that_does_not_name_its_processor_still_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    info = tmp_path / "cpuinfo"
    if content is not None:
        info.write_text(content)
    monkeypatch.setattr(module, "Path", lambda _: info)
    assert processor().strip()
