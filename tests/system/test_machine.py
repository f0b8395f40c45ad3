"""What a benchmark ran on is named."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest
import torch

from sam_blvit.system.machine import machine


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
