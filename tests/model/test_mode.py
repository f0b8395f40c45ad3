"""A model that is measured comes back as it was, whatever happened."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sam_blvit.config import ModelConfig
from sam_blvit.model.build import build_sam
from sam_blvit.model.measuring import measuring
from sam_blvit.model.sam import Sam


@pytest.fixture
def sam(tiny: Callable[..., ModelConfig]) -> Sam:
    """In training, but for its frozen mask decoder."""
    sam = build_sam(tiny(keep_ratio=0.5)).train()
    sam.mask_decoder.eval()
    return sam


def modes_of(sam: Sam) -> dict[str, bool]:
    return {name: module.training for name, module in sam.named_modules()}


def test_a_model_is_measured_in_eval_mode_at_the_keep_ratio_asked_for_without_gradients(sam: Sam) -> None:
    with measuring(sam, 0.25):
        assert not any(modes_of(sam).values())
        assert sam.image_encoder.keep_ratio == 0.25
        assert not torch.is_grad_enabled()


def test_afterwards_every_module_is_in_its_own_mode_again(sam: Sam) -> None:
    before = modes_of(sam)
    assert set(before.values()) == {True, False}
    with measuring(sam, 0.25):
        pass
    assert modes_of(sam) == before
    assert sam.image_encoder.keep_ratio == 0.5
    assert torch.is_grad_enabled()


def test_without_a_keep_ratio_the_models_own_stays(sam: Sam) -> None:
    with measuring(sam):
        assert sam.image_encoder.keep_ratio == 0.5


def test_a_model_is_as_it_was_after_a_failure_too(sam: Sam) -> None:
    before = modes_of(sam)
    with pytest.raises(ValueError, match="halfway"), measuring(sam, 0.0):
        raise ValueError("halfway")
    assert (modes_of(sam), sam.image_encoder.keep_ratio) == (before, 0.5)
    with pytest.raises(ValueError, match="keep_ratio=2"), measuring(sam, 2.0):
        pass
    assert (modes_of(sam), torch.is_grad_enabled()) == (before, True)
