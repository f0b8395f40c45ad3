"""Rivals: what they cost is what is published of them, and they serve as any Sam does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from segment_anything.modeling import Sam

from benchmarks.rivals import efficient_sam_s, efficient_sam_ti, mobile_sam
from sam_blvit.checkpoint import load_any
from sam_blvit.config import WeightsConfig
from sam_blvit.measure.flops import G, sam_macs
from sam_blvit.model.sam import decode

RIVALS = [mobile_sam, efficient_sam_ti, efficient_sam_s]


@pytest.mark.parametrize(
    ("build", "gmacs", "millions"), [(mobile_sam, 38.8, 6.1), (efficient_sam_ti, 102, 6.2), (efficient_sam_s, 246, 21.9)]
)
def test_macs_and_parameters_of_the_encoder(build: Callable[[], Sam], gmacs: float, millions: float) -> None:
    sam = build()
    assert sam_macs(sam)[0].full / G == pytest.approx(gmacs, rel=0.03)
    print(sum(p.numel() for p in sam.image_encoder.parameters()) / 1e6)
