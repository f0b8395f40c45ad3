"""Everything mode finds segment_anything's masks, on every kind of photograph, and does no work twice."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import segment_anything
import skimage.data
import torch
from PIL import Image
from segment_anything.modeling import MaskDecoder
from segment_anything.utils.amg import batched_mask_to_box, mask_to_rle_pytorch

from sam_blvit import automatic_mask_generator as everything
from sam_blvit.automatic_mask_generator import SamAutomaticMaskGenerator, boxes_of, run_lengths
from sam_blvit.checkpoint.load import sam_model_registry
from sam_blvit.config import THRESHOLDS, model_config
from sam_blvit.model import decoder
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam

pytestmark = pytest.mark.filterwarnings("ignore:.*positions interpolated:UserWarning")

LOOSE: dict[str, Any] = {"points_per_side": 4, "pred_iou_thresh": 0.17, "stability_score_thresh": 0.25}
"""At 256 pixels, a quarter of its own area, blvit_s_t predicts low IoUs."""
Records = list[dict[str, Any]]


class OwnForward(MaskDecoder):
    """segment_anything's decoder by its own forward, so that logits are equal bit for bit."""


@pytest.fixture(scope="module")
def sam() -> Sam:
    return sam_model_registry["blvit_s_t"](image_size=256)


@pytest.fixture
def slow_sam() -> Sam:
    sam = sam_model_registry["blvit_s_t"](image_size=256)
    sam.mask_decoder.__class__ = OwnForward
    return sam


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.coffee()[::3, ::3])  # 134 x 200


def both(sam: Sam, image: np.ndarray, **options: Any) -> tuple[Records, Records]:
    """Our records and the original's."""
    mine, theirs = (
        kind(sam, **{**LOOSE, **options}).generate(image)
        for kind in (SamAutomaticMaskGenerator, segment_anything.SamAutomaticMaskGenerator)
    )
    return mine, theirs


def pixels(segmentation: Any) -> np.ndarray:
    """A mask in any output mode as an array."""
    if isinstance(segmentation, np.ndarray):
        return segmentation
    from pycocotools import mask as coco

    if isinstance(segmentation["counts"], list):
        segmentation = coco.frPyObjects(segmentation, *segmentation["size"])
    return coco.decode(segmentation).astype(bool)


def assert_same(mine: Records, theirs: Records, *, differing: float = 0) -> None:
    """Equal records in equal order; `differing`: which share of a mask's pixels may differ."""
    assert len(mine) == len(theirs) > 1
    for one, other in zip(mine, theirs, strict=True):
        assert list(one) == list(other)
        for key in one.keys() - {"segmentation", "area", "bbox"}:
            np.testing.assert_allclose(one[key], other[key], rtol=0, atol=1e-3 if differing else 1e-6)
        assert (pixels(one["segmentation"]) != pixels(other["segmentation"])).mean() <= differing
        if not differing:
            assert (one["area"], one["bbox"]) == (other["area"], other["bbox"])
            if not isinstance(one["segmentation"], np.ndarray):
                assert one["segmentation"] == other["segmentation"]


# the original's records ----------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "one batch": {},
    "no thresholds": {"pred_iou_thresh": 0, "stability_score_thresh": 0, "points_per_side": 3},
    "uncompressed_rle": {"output_mode": "uncompressed_rle"},
    "coco_rle": {"output_mode": "coco_rle"},
    "crops": {"crop_n_layers": 1, "points_per_side": 3, "crop_nms_thresh": 0.9},
    "crops as RLE": {"crop_n_layers": 1, "points_per_side": 3, "crop_nms_thresh": 0.9, "output_mode": "coco_rle"},
    "small regions": {"min_mask_region_area": 100, "box_nms_thresh": 0.9},
    "crops and small regions": {"crop_n_layers": 1, "points_per_side": 3, "min_mask_region_area": 50},
    "little suppression": {"box_nms_thresh": 0.95, "stability_score_offset": 0.5},
    "batches of three": {"points_per_batch": 3},
    "own points": {
        "points_per_side": None,
        "point_grids": [np.array([[0.3, 0.4], [0.52, 0.5], [0.7, 0.21]])],
        "pred_iou_thresh": 0.1,
        "stability_score_thresh": 0.1,
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_records_are_the_originals(slow_sam: Sam, photograph: np.ndarray, options: dict[str, Any]) -> None:
    assert_same(*both(slow_sam, photograph, **options))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_with_the_quick_decoder_they_are_so_to_rounding(
    sam: Sam, photograph: np.ndarray, options: dict[str, Any]
) -> None:
    assert_same(*both(sam, photograph, **options), differing=1e-3)


@pytest.mark.parametrize("shape", [(200, 134), (64, 64), (400, 300)])
def test_photographs_of_any_shape_have_the_originals_masks(slow_sam: Sam, shape: tuple[int, int]) -> None:
    image = np.asarray(Image.fromarray(skimage.data.coffee()).resize(shape[::-1]))
    mine, theirs = both(slow_sam, image, pred_iou_thresh=0.0)
    assert_same(mine, theirs)
    assert mine[0]["segmentation"].shape == shape


def test_chunks_change_nothing(slow_sam: Sam, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = SamAutomaticMaskGenerator(slow_sam, **LOOSE)
    expected = generator.generate(photograph)
    monkeypatch.setattr(decoder, "CHUNK_BYTES", 3 * decoder.bytes_of_a_mask(slow_sam, photograph.shape[:2]))
    enlarged = []
    enlarge = everything.enlarge

    def spy(sam: Sam, logits: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        enlarged.append(len(logits))
        return enlarge(sam, logits, *args, **kwargs)

    monkeypatch.setattr(everything, "enlarge", spy)
    assert_same(generator.generate(photograph), expected, differing=1e-3)
    assert max(enlarged) == 3


def test_only_masks_in_question_are_enlarged_and_only_the_last_encoded(
    sam: Sam, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    enlarged, encoded = [], []
    enlarge, encode = everything.enlarge, everything.run_lengths
    monkeypatch.setattr(everything, "enlarge", lambda *a, **k: enlarged.append(len(a[1])) or enlarge(*a, **k))
    monkeypatch.setattr(everything, "run_lengths", lambda mask: encoded.append(mask) or encode(mask))
    loose = {**LOOSE, "stability_score_thresh": 0, "pred_iou_thresh": 0.0, "box_nms_thresh": 1.0}
    predicted = [record["predicted_iou"] for record in SamAutomaticMaskGenerator(sam, **loose).generate(photograph)]
    strict = {**loose, "pred_iou_thresh": float(np.median(predicted))}
    of_all = sum(enlarged) - len(encoded)
    assert of_all == 4 * 4 * 3
    enlarged.clear()
    encoded.clear()
    found = SamAutomaticMaskGenerator(sam, **strict).generate(photograph)
    assert len(encoded) == len(found)
    assert len(found) <= sum(enlarged) - len(found) < of_all


def test_thresholds_are_the_models_own_unless_given() -> None:
    sam = build_sam(model_config("vit_tiny", pred_iou_thresh=0.5, stability_score_thresh=0.25))
    own, given, third = (
        SamAutomaticMaskGenerator(sam),
        SamAutomaticMaskGenerator(sam, stability_score_thresh=0.75),
        SamAutomaticMaskGenerator(sam, 8, 64, 0.125),
    )
    assert (own.pred_iou_thresh, own.stability_score_thresh) == (0.5, 0.25)
    assert (given.pred_iou_thresh, given.stability_score_thresh) == (0.5, 0.75)
    assert (third.pred_iou_thresh, third.stability_score_thresh) == (0.125, 0.25)
    plain = SamAutomaticMaskGenerator(build_sam(model_config("vit_tiny")))
    original = segment_anything.SamAutomaticMaskGenerator(sam)
    for name in THRESHOLDS:
        assert getattr(plain, name) == getattr(original, name)


@pytest.mark.parametrize("name", THRESHOLDS)
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, True, "0.5"])
def test_a_threshold_of_a_model_that_is_none_is_named(refused: Any, name: str, value: Any) -> None:
    with refused(ValueError, f"{name}={value!r} is outside"):
        model_config("vit_tiny", **{name: value})


def test_thresholds_that_nothing_passes_give_no_masks(sam: Sam, photograph: np.ndarray) -> None:
    for strict in ({"pred_iou_thresh": 1e9}, {"stability_score_thresh": 1.1}):
        for options in ({}, {"crop_n_layers": 1}, {"min_mask_region_area": 10}):
            assert SamAutomaticMaskGenerator(sam, **{**LOOSE, **strict, **options}).generate(photograph) == []


def test_the_original_runs_on_our_model(sam: Sam, photograph: np.ndarray) -> None:
    assert segment_anything.SamAutomaticMaskGenerator(sam, **LOOSE).generate(photograph)


def test_options_are_the_originals() -> None:
    assert inspect.signature(SamAutomaticMaskGenerator) == inspect.signature(segment_anything.SamAutomaticMaskGenerator)


# run lengths and boxes -----------------------------------------------------------------------------------------------

MASKS: dict[str, Callable[[], np.ndarray]] = {
    "random": lambda: np.random.default_rng(0).random((4, 7, 5)) > 0.5,
    "empty": lambda: np.zeros((1, 3, 4), bool),
    "full": lambda: np.ones((1, 3, 4), bool),
    "first and last pixel": lambda: np.eye(3, dtype=bool)[None] & np.array([1, 0, 1], bool),
    "one pixel": lambda: np.ones((1, 1, 1), bool),
}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_run_lengths_and_boxes_are_segment_anythings(masks: Callable[[], np.ndarray]) -> None:
    made = masks()
    theirs = mask_to_rle_pytorch(torch.from_numpy(made))
    assert [run_lengths(mask).tolist() for mask in made] == [rle["counts"] for rle in theirs]
    assert boxes_of(made).tolist() == batched_mask_to_box(torch.from_numpy(made)).tolist()


# what it takes -------------------------------------------------------------------------------------------------------


def test_every_kind_of_image_gives_the_masks_of_its_rgb(sam: Sam, photograph: np.ndarray) -> None:
    generator = SamAutomaticMaskGenerator(sam, **LOOSE)
    grey = photograph[:, :, 0]
    expected = generator.generate(np.stack([grey] * 3, axis=-1))
    for image in (grey, Image.fromarray(grey)):
        assert_same(generator.generate(image), expected)
    expected = generator.generate(photograph)
    for image in (np.dstack([photograph, grey]), Image.fromarray(photograph)):
        assert_same(generator.generate(image), expected)


def test_no_float64_reaches_the_model(sam: Sam, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    encode = sam.prompt_encoder.forward

    def spy(points: Any, **rest: Any) -> Any:
        seen.append(points[0].dtype)
        return encode(points=points, **rest)

    monkeypatch.setattr(sam.prompt_encoder, "forward", spy)
    SamAutomaticMaskGenerator(sam, **LOOSE).generate(photograph)
    assert set(seen) == {torch.float32}


def test_a_float_image_is_refused(sam: Sam) -> None:
    with pytest.raises(ValueError, match="float64"):
        SamAutomaticMaskGenerator(sam).generate(np.zeros((8, 8, 3)))


def test_it_says_what_its_parts_took(sam: Sam, photograph: np.ndarray) -> None:
    generator = SamAutomaticMaskGenerator(sam, **LOOSE)
    assert generator.milliseconds == {}
    generator.generate(photograph)
    assert generator.milliseconds.keys() == {"encoder", "decoder", "rest"}
    assert all(spent > 0 for spent in generator.milliseconds.values())


# bfloat16 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
@pytest.mark.parametrize("by", ["model", "caller"])
def test_bfloat16_finds_about_the_same(sam: Sam, photograph: np.ndarray, by: str, mode: str) -> None:
    rough = sam_model_registry["blvit_s_t"](image_size=256, compute_dtype="bfloat16" if by == "model" else "float32")
    options = {**LOOSE, "pred_iou_thresh": 0, "box_nms_thresh": 1.0, "output_mode": mode}
    exact = SamAutomaticMaskGenerator(sam, **options).generate(photograph)
    expected = [pixels(record["segmentation"]) for record in exact]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=by == "caller"):
        records = SamAutomaticMaskGenerator(rough, **options, min_mask_region_area=1).generate(photograph)
    found = [pixels(record["segmentation"]) for record in records]
    assert len(found) == pytest.approx(len(expected), rel=0.3)
    best = [max((one & other).sum() / (one | other).sum() for other in expected) for one in found]
    assert np.median(best) > 0.9


# options ------------------------------------------------------------------------------------------------------------

NAN = float("nan")
GRID = [[0.2, 0.3], [0.7, 0.6]]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"points_per_side": 0}, "points_per_side=0"),
        ({"points_per_side": 2.5}, "points_per_side=2.5"),
        ({"points_per_side": None}, "points_per_side and point_grids"),
        ({"point_grids": [GRID]}, "points_per_side and point_grids"),
        ({"points_per_batch": 0}, "points_per_batch=0"),
        ({"points_per_batch": None}, "points_per_batch=None"),
        ({"crop_n_layers": -1}, "crop_n_layers=-1"),
        ({"pred_iou_thresh": NAN}, "pred_iou_thresh=nan"),
        ({"stability_score_thresh": NAN}, "stability_score_thresh=nan"),
        ({"stability_score_offset": NAN}, "stability_score_offset=nan"),
        ({"box_nms_thresh": NAN}, "box_nms_thresh=nan"),
        ({"crop_nms_thresh": NAN}, "crop_nms_thresh=nan"),
        ({"min_mask_region_area": NAN}, "min_mask_region_area=nan"),
        ({"pred_iou_thresh": "high"}, "pred_iou_thresh='high'"),
        ({"crop_overlap_ratio": 1.5}, "crop_overlap_ratio=1.5 is not a number from 0 to 1"),
        ({"crop_n_points_downscale_factor": 0}, "crop_n_points_downscale_factor=0"),
        (
            {"points_per_side": 3, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2},
            "points_per_side=3 leaves no",
        ),
        ({"output_mode": "png"}, "output_mode='png' is not one of binary_mask"),
        ({"points_per_side": None, "point_grids": [GRID], "crop_n_layers": 1}, "point_grids has 1 grids for 2"),
        ({"points_per_side": None, "point_grids": [[0.5, 0.5]]}, r"point_grids has a grid of shape \(2,\)"),
        ({"points_per_side": None, "point_grids": [[[20, 30]]]}, "not pixels"),
        ({"points_per_side": None, "point_grids": [[[NAN, 0]]]}, "outside 0 to 1"),
        ({"points_per_side": None, "point_grids": 5}, "point_grids is not a list"),
    ],
)
def test_an_option_that_cannot_be_right_is_named(
    sam: Sam, options: dict[str, Any], named: str, refused: Callable[..., Any]
) -> None:
    with refused(ValueError, named):
        SamAutomaticMaskGenerator(sam, **options)


@pytest.mark.parametrize("layers", [3, 40])
def test_crops_without_pixels_are_refused(sam: Sam, layers: int, refused: Callable[..., Any]) -> None:
    generator = SamAutomaticMaskGenerator(sam, points_per_side=1, crop_n_layers=layers, crop_overlap_ratio=0)
    with refused(ValueError, f"crop_n_layers={layers} makes empty crops of an image of 30 x 9"):
        generator.generate(np.zeros((9, 30, 3), np.uint8))


def test_point_grids_may_be_lists(sam: Sam, photograph: np.ndarray) -> None:
    grids = [[[(x + 0.5) / 4, (y + 0.5) / 4] for y in range(4) for x in range(4)]]
    as_lists, as_arrays = (
        SamAutomaticMaskGenerator(sam, **{**LOOSE, "points_per_side": None}, point_grids=given).generate(photograph)
        for given in (grids, [np.array(grids[0])])
    )
    assert_same(as_lists, as_arrays)


def test_threads_may_share_a_generator(sam: Sam, photograph: np.ndarray) -> None:
    photographs = [photograph, np.ascontiguousarray(photograph[:, ::-1]), photograph[:90]]
    generator = SamAutomaticMaskGenerator(sam, **LOOSE)
    alone = [generator.generate(each) for each in photographs]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(generator.generate, photographs))
    for mine, expected in zip(together, alone, strict=True):
        assert_same(mine, expected)
