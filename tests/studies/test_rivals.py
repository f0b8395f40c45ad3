"""Rivals: what they cost is what is published of them, and they serve as any segment_anything Sam does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from segment_anything.modeling import Sam
from torch import nn

from sam_blvit.checkpoint.load import load_any
from sam_blvit.config import WeightsConfig
from sam_blvit.cost.macs import G, sam_macs
from sam_blvit.model.decoder import decode
from studies.rivals import TinyViT, WindowBlock, efficient_sam_s, efficient_sam_ti, mobile_sam

RIVALS = [mobile_sam, efficient_sam_ti, efficient_sam_s]
SMALL = 128
HEAD = 2 * 320 + 320 * 1000 + 1000
"""Parameters of TinyViT-5M's classifier of 1000 classes and the norm before it."""


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("build", "gmacs"), [(mobile_sam, 38.8), (efficient_sam_ti, 102), (efficient_sam_s, 246)])
def test_macs_are_those_that_are_published(build: Callable[[], Sam], gmacs: float) -> None:
    assert sam_macs(build())[0].full / G == pytest.approx(gmacs, rel=0.03)


def test_parameters_are_those_that_are_published() -> None:
    """5.4 million of TinyViT-5M (arXiv 2207.10666, table 2) with its classifier, which MobileSAM's neck replaces."""
    encoder = TinyViT(1024)
    assert parameters(encoder) - parameters(encoder.neck) + HEAD == pytest.approx(5.4e6, rel=0.01)


@pytest.mark.parametrize("build", RIVALS)
@torch.no_grad()
def test_a_rival_answers_as_a_sam(build: Callable[[int], Sam]) -> None:
    sam = build(SMALL)
    embedding = sam.image_encoder(torch.randn(2, 3, SMALL, SMALL))
    assert embedding.shape == (2, 256, SMALL // 16, SMALL // 16)
    logits, _ = decode(sam, embedding[:1], boxes=torch.tensor([[8.0, 8, 64, 64]]), multimask_output=False)
    assert sam.postprocess_masks(logits, (SMALL, SMALL), (SMALL, SMALL)).shape == (1, 1, SMALL, SMALL)


@torch.no_grad()
def test_windows_see_their_own_tokens_alone() -> None:
    block = WindowBlock(32, window=7).eval()
    x = torch.randn(1, 32, 10, 12)  # 2 x 2 windows, padded
    changed = x.clone()
    changed[0, :, 8, 9] = torch.randn(32)  # in the last window
    reached = (block._attended(changed) - block._attended(x)).abs().sum(1)[0] > 0
    assert reached[7:, 7:].all()
    assert not reached[:7].any()
    assert not reached[:, :7].any()


def test_a_rival_is_named_from_the_repositorys_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    sam = load_any(WeightsConfig(model="studies.rivals:mobile_sam", device="cpu"))
    assert isinstance(sam.image_encoder, TinyViT)
    assert not sam.training
