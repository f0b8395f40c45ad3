"""Everything mode is segment_anything's, on every kind of photograph."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import segment_anything
import torch
from PIL import Image

from sam_blvit.config import MODELS, override
from sam_blvit.everything import SamAutomaticMaskGenerator
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam

LOOSE: dict[str, Any] = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
"""Fresh weights predict no IoU to filter by."""


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    return build_sam(override(MODELS["blvit_tiny"], image_size=128, window=2))


def _photograph(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _assert_same(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert len(mine) == len(theirs) > 0
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.parametrize("shape", [(64, 64), (96, 128)])  # scales that float32 and float64 hold alike
def test_records_are_the_originals(sam: Sam, shape: tuple[int, int]) -> None:
    image = _photograph(*shape)
    original = segment_anything.SamAutomaticMaskGenerator(sam, **LOOSE)
    records = SamAutomaticMaskGenerator(sam, **LOOSE).generate(image)
    _assert_same(records, original.generate(image))
    assert records[0]["segmentation"].shape == shape


def test_crops_and_small_regions_work(sam: Sam) -> None:
    options = {**LOOSE, "crop_n_layers": 1, "min_mask_region_area": 9, "output_mode": "coco_rle"}
    image = _photograph(64, 64)
    records = SamAutomaticMaskGenerator(sam, **options).generate(image)
    _assert_same(records, segment_anything.SamAutomaticMaskGenerator(sam, **options).generate(image))


def test_every_kind_of_image_gives_the_masks_of_its_rgb(sam: Sam) -> None:
    generator = SamAutomaticMaskGenerator(sam, **LOOSE)
    rgb = _photograph(48, 64)
    grey = rgb[:, :, 0]
    expected = generator.generate(np.stack([grey] * 3, axis=-1))
    for image in (grey, Image.fromarray(grey)):
        _assert_same(generator.generate(image), expected)
    expected = generator.generate(rgb)
    for image in (np.dstack([rgb, grey]), Image.fromarray(rgb)):
        _assert_same(generator.generate(image), expected)


def test_no_float64_reaches_the_model(sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = SamAutomaticMaskGenerator(sam, **LOOSE)
    seen = []
    predict_torch = generator.predictor.predict_torch

    def spy(points: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(points.dtype)
        return predict_torch(points, *args, **kwargs)

    monkeypatch.setattr(generator.predictor, "predict_torch", spy)
    generator.generate(_photograph(48, 64))
    assert seen == [torch.float32]


def test_thresholds_that_nothing_passes_give_no_masks(sam: Sam) -> None:
    assert SamAutomaticMaskGenerator(sam, points_per_side=2, pred_iou_thresh=1e9).generate(_photograph(48, 64)) == []


def test_a_float_image_is_refused(sam: Sam) -> None:
    with pytest.raises(ValueError, match="float64"):
        SamAutomaticMaskGenerator(sam).generate(np.zeros((8, 8, 3)))


def test_options_are_the_originals() -> None:
    assert inspect.signature(SamAutomaticMaskGenerator) == inspect.signature(segment_anything.SamAutomaticMaskGenerator)
