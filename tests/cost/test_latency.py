"""Milliseconds and the machine: that there are some, of any segment_anything Sam."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from segment_anything import modeling as sa

from sam_blvit.config import ModelConfig
from sam_blvit.cost import latency
from sam_blvit.cost.latency import milliseconds, now
from sam_blvit.model.build import build_sam

Config = Callable[..., ModelConfig]


@pytest.mark.parametrize("kind", ["ours", "segment_anything's own"])
def test_encoder_and_decoder_take_time(
    kind: str, tiny: Config, tiny_dense: Config, original_sam: Callable[[ModelConfig], sa.Sam]
) -> None:
    spent = milliseconds(build_sam(tiny()) if kind == "ours" else original_sam(tiny_dense()))
    assert spent.keys() == {"encoder", "decoder", "how"}
    assert spent["encoder"] > 0
    assert spent["decoder"] > 0


def test_milliseconds_say_what_was_timed(tiny: Config) -> None:
    assert milliseconds(build_sam(tiny()))["how"].startswith("batch 1, 128 x 128 pixels")


def test_timing_builds_no_graph(tiny: Config) -> None:
    sam = build_sam(tiny())
    needed = []
    sam.mask_decoder.register_forward_hook(lambda module, args, output: needed.append(output[0].requires_grad))
    milliseconds(sam)
    assert needed
    assert not any(needed)


def test_the_clock_runs_forwards() -> None:
    assert 0 < now(torch.device("cpu")) < now(torch.device("cpu"))


def test_the_clock_is_read_once_the_device_has_done_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(str(device)))
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: events.append("clock") or 1.5))
    assert now(torch.device("cuda", 1)) == 1500
    assert events == ["cuda:1", "clock"]
