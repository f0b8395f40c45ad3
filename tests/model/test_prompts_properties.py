"""Prompts by kind: whatever is asked, the answer is segment_anything's, or one line names the argument."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import segment_anything
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import TINY
from sam_blvit.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_blvit.model.build import build_sam
from sam_blvit.predictor import SamPredictor

pytestmark = [pytest.mark.property, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

HEIGHT, WIDTH, SIDE = 48, 64, 32
"""Of the photograph, and of a mask prompt."""
QUICK = settings(suppress_health_check=[HealthCheck.too_slow])

DTYPES = st.sampled_from(["float64", "float32", "float16", "int64", "int32", "uint8", "bool"])
USUAL = st.floats(0, 48)
ANY = st.one_of(USUAL, st.sampled_from([float("nan"), float("inf"), -1e300, 1e300, 1e38, -7.5, 200.0, 0.0]))
LABELS = st.sampled_from([0, 1, -1])
ANY_LABELS = st.sampled_from([0, 1, -1, 7, 2, 0.5, float("nan")])


@pytest.fixture(scope="module")
def predictors() -> tuple[SamPredictor, segment_anything.SamPredictor]:
    """Ours and the original on the same model and photograph."""
    torch.manual_seed(0)
    sam = build_sam(TINY)
    ours, theirs = SamPredictor(sam), segment_anything.SamPredictor(sam)
    photograph = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for predictor in (ours, theirs):
        predictor.set_image(photograph)
    return ours, theirs


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[float], shapes: st.SearchStrategy[tuple[int, ...]]) -> np.ndarray:
    shape = draw(shapes)
    count = int(np.prod(shape))
    numbers = np.array(draw(st.lists(values, min_size=count, max_size=count)), dtype=np.float64).reshape(shape)
    with np.errstate(all="ignore"):
        return numbers.astype(draw(DTYPES))


def shaped(*usual: tuple[int, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    """Mostly one of the usual shapes."""
    odd = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    return st.one_of(*[st.just(shape) for shape in usual], odd)


@st.composite
def mask_prompts(draw: st.DrawFn, leading: tuple[int, ...]) -> np.ndarray:
    shape = draw(
        st.sampled_from([(*leading, SIDE, SIDE)] * 3 + [(SIDE, SIDE), (*leading, 2, 2), (2, *leading, SIDE, SIDE)])
    )
    mask = np.random.default_rng(draw(st.integers(0, 9))).normal(size=shape)
    mask.flat[0] = draw(st.one_of(USUAL, ANY))
    with np.errstate(all="ignore"):
        return mask.astype(draw(DTYPES))


@st.composite
def clear_or_odd(draw: st.DrawFn, count: int | None) -> dict[str, Any]:
    """Points, labels, box and mask of one prompt (`count` None), or of some."""
    each = () if count is None else (count,)
    n = draw(st.integers(0, 3))
    odd = draw(st.sampled_from([None, None, "points", "labels", "boxes", "mask"]))

    def prompt(name: str, clear: st.SearchStrategy[Any], strange: st.SearchStrategy[Any]) -> Any:
        if odd == name:
            return draw(st.one_of(st.none(), strange))
        return draw(clear)

    pointed, boxed, masked = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    points, label, corners = (*each, n, 2), (*each, n), (*each, 4)
    near = st.floats(-200, 200)
    box = arrays(USUAL, st.just((*each, 2, 2))).map(lambda a: np.sort(a, axis=-2).reshape(corners))
    mask_shape = (1,) if count is None else (count, 1)
    normal = st.integers(0, 9).map(
        lambda seed: np.random.default_rng(seed).normal(size=(*mask_shape, SIDE, SIDE)).astype(np.float32)
    )
    nothing = st.none()
    return {
        "points": prompt("points", arrays(near, st.just(points)) if pointed else nothing, arrays(ANY, shaped(points))),
        "labels": prompt(
            "labels", arrays(LABELS, st.just(label)) if pointed else nothing, arrays(ANY_LABELS, shaped(label))
        ),
        "box": prompt("boxes", box if boxed else nothing, arrays(ANY, shaped(corners, (*each, 2, 2)))),
        "mask": prompt("mask", normal if masked else nothing, mask_prompts(mask_shape)),
        "multimask_output": draw(st.booleans()),
    }


def assert_named(error: ValueError, names: Iterable[str]) -> None:
    """Its one line has one of the names."""
    assert "\n" not in str(error)
    assert any(name in str(error) for name in names), error


def answers_or_names(ask_ours: Any, ask_theirs: Any, names: tuple[str, ...]) -> bool:
    """Whether ours answers, which must then be as the original's; or one line must name an argument."""
    try:
        mine = ask_ours()
    except ValueError as error:
        assert_named(error, names)
        return False
    if len(mine[0]) == 0:  # no prompts: the original fails
        assert all(each.shape[0] == 0 for each in mine)
        return True
    for one, other in zip(mine, ask_theirs(), strict=True):
        one, other = torch.as_tensor(one), torch.as_tensor(other)
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        if one.dtype == torch.bool:
            assert (one != other).float().sum() <= 2e-3 * one.numel()  # a logit of 0 may fall on either side
        else:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
            assert one.isfinite().all()
    return True


@QUICK
@given(prompt=clear_or_odd(None))
def test_a_prompt_of_arrays_is_answered_as_the_originals_or_named(predictors: Any, prompt: dict[str, Any]) -> None:
    ours, theirs = predictors
    asked = (prompt["points"], prompt["labels"], prompt["box"], prompt["mask"], prompt["multimask_output"])
    names = ("point_coords", "point_labels", "point label", "box", "mask_input")
    answers_or_names(lambda: ours.predict(*asked), lambda: theirs.predict(*asked), names)


@QUICK
@given(prompt=st.integers(1, 3).flatmap(clear_or_odd))
def test_prompts_of_tensors_are_answered_as_the_originals_or_named(predictors: Any, prompt: dict[str, Any]) -> None:
    ours, theirs = predictors

    def tensor(values: np.ndarray | None) -> Tensor | None:
        return None if values is None else torch.from_numpy(values)

    points, labels, boxes, masks = (tensor(prompt[name]) for name in ("points", "labels", "box", "mask"))
    expected = tuple(each if each is None else each.float() for each in (points, labels, boxes, masks))
    multimask = prompt["multimask_output"]
    names = ("point_coords", "point_labels", "boxes", "mask_input", "different numbers")
    answers_or_names(
        lambda: ours.predict_torch(points, labels, boxes, masks, multimask),
        lambda: theirs.predict_torch(*expected, multimask),
        names,
    )


@pytest.mark.parametrize("kinds", [("points", "labels"), ("box",), ("mask",), ("points", "labels", "box", "mask")])
@given(data=st.data())
def test_an_ordinary_prompt_is_answered(predictors: Any, kinds: tuple[str, ...], data: st.DataObject) -> None:
    """So that the others cannot pass by refusing everything."""
    n = data.draw(st.integers(1, 3))
    x0, y0 = data.draw(st.integers(0, 30)), data.draw(st.integers(0, 20))
    prompts = {
        "points": data.draw(arrays(st.floats(-200, 200), st.just((n, 2)))),
        "labels": np.array(data.draw(st.lists(LABELS, min_size=n, max_size=n))),
        "box": np.array([x0, y0, x0 + data.draw(st.integers(0, 80)), y0 + data.draw(st.integers(0, 80))]),
        "mask": np.random.default_rng(n).normal(size=(1, SIDE, SIDE)),
    }
    asked = tuple(prompts[name] if name in kinds else None for name in ("points", "labels", "box", "mask"))
    ours, theirs = predictors
    assert answers_or_names(lambda: ours.predict(*asked), lambda: theirs.predict(*asked), ())


OPTIONS = {
    "points_per_side": st.sampled_from([None, 0, -1, 1, 2, 2.5, float("nan"), "2"]),
    "points_per_batch": st.sampled_from([0, -3, 1, 64, 1.5, None]),
    "pred_iou_thresh": st.sampled_from([-9.0, float("nan"), float("inf"), 1, "a"]),
    "stability_score_thresh": st.sampled_from([-9.0, float("nan"), None, 1]),
    "stability_score_offset": st.sampled_from([0.0, float("nan"), float("inf"), 1]),
    "box_nms_thresh": st.sampled_from([float("nan"), 0.7, 1]),
    "crop_n_layers": st.sampled_from([-1, 0, 1, 1.0, 30, None]),
    "crop_overlap_ratio": st.sampled_from([-0.1, 0, 0.4, 1, 2, float("nan")]),
    "crop_n_points_downscale_factor": st.sampled_from([0, 1, 2, float("nan")]),
    "point_grids": st.sampled_from([None, [], [[[0.5, 0.5]]], [[[0.5, 0.5]]] * 2, [[[2, 3]]], [[]], 7]),
    "min_mask_region_area": st.sampled_from([0, -1, 3, float("nan")]),
    "output_mode": st.sampled_from(["binary_mask", "uncompressed_rle", "coco_rle", "png", None]),
}


@given(options=st.fixed_dictionaries({}, optional=OPTIONS))
def test_options_of_everything_mode_are_taken_or_named(predictors: Any, options: dict[str, Any]) -> None:
    sam = predictors[0].model
    given = {"points_per_side": 2, **options}
    if {"points_per_side", "point_grids"} <= options.keys() and options["point_grids"] is not None:
        given["points_per_side"] = None
    try:
        found = SamAutomaticMaskGenerator(sam, **given).generate(np.zeros((20, 30, 3), np.uint8))
    except ValueError as error:
        assert_named(error, OPTIONS)
    else:
        assert isinstance(found, list)
