"""A view answers as segment_anything's own predictor does, for our models and for segment_anything's.

Shapes:
    P  prompts of a batch    H, W  the photograph
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything import modeling as sa
from segment_anything.utils.transforms import ResizeLongestSide
from torch import nn

from sam_blvit.config import ModelConfig
from sam_blvit.evaluate.protocol.view import Answer, Prompt, View
from sam_blvit.model.build import build_sam

SIZES = [(90, 120), (301, 260)]
"""Height and width of photographs: the encoder, of 128 pixels, sees one enlarged and the other reduced."""
SELECTS = ("argmax", "single", "oracle", "sam")
MULTIMASK = {"argmax": True, "oracle": True, "single": False}


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=["ours", "segment_anything's"])
def sam(
    request: pytest.FixtureRequest,
    tiny: Callable[..., ModelConfig],
    tiny_dense: Callable[..., ModelConfig],
    randomize: Callable[[Any], Any],
    original_sam: Callable[[ModelConfig], sa.Sam],
) -> sa.Sam:
    """A random model whose masks have pixels on and off."""
    sam = randomize(build_sam(tiny()) if request.param == "ours" else original_sam(tiny_dense()))
    sam.mask_decoder.output_upscaling[-1] = nn.Identity()  # GELU's are mostly of one sign, and so would be the logits
    sam.mask_decoder.output_upscaling[-2].bias.zero_()
    return sam


def photograph(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def viewed(sam: sa.Sam, size: tuple[int, int]) -> View:
    return View.of(sam, ResizeLongestSide(sam.image_encoder.img_size).apply_image(photograph(size)), size)


def predictor_of(sam: sa.Sam, size: tuple[int, int]) -> SamPredictor:
    predictor = SamPredictor(sam)
    predictor.set_image(photograph(size))
    return predictor


def asked(kind: str, size: tuple[int, int]) -> Prompt:
    """Four prompts of one kind."""
    height, width = size
    rng = np.random.default_rng(1)
    points = rng.integers(0, (width, height), (4, 3, 2))
    labels = rng.integers(0, 2, (4, 3))
    boxes = np.sort(rng.uniform(-5, 1.05 * np.array([width, height]), (4, 2, 2)), axis=1).reshape(4, 4)
    return {
        "one point": Prompt(points=points[:, :1], labels=np.ones((4, 1), dtype=np.int64)),
        "three points": Prompt(points=points, labels=labels),
        "box": Prompt(boxes=boxes),
        "box and points": Prompt(boxes=boxes, points=points, labels=labels),
        "logits": Prompt(points=points[:, :2], labels=labels[:, :2], logits=5 * torch.randn(4, 1, 32, 32)),
    }[kind]


KINDS = ("one point", "three points", "box", "box and points", "logits")


def truths(size: tuple[int, int]) -> np.ndarray:
    """Four half planes: random masks overlap each of them to another degree."""
    rows, columns = np.indices(size)
    cuts = rows < size[0] // 2, rows >= size[0] // 3, columns < size[1] // 2, columns > 2 * size[1] // 3
    return np.stack(cuts)


def only(prompt: Prompt, index: int) -> Prompt:
    """Prompt `index` of the four, a batch of one."""
    fields = {field.name: getattr(prompt, field.name) for field in dataclasses.fields(prompt)}
    return Prompt(**{name: None if value is None else value[index : index + 1] for name, value in fields.items()})


def predicted(predictor: SamPredictor, prompt: Prompt, *, multimask: bool) -> tuple[np.ndarray, ...]:
    """Masks, scores and logits that segment_anything's predictor has for a batch of one."""
    return predictor.predict(
        point_coords=None if prompt.points is None else prompt.points[0],
        point_labels=None if prompt.labels is None else prompt.labels[0],
        box=None if prompt.boxes is None else prompt.boxes[0],
        mask_input=None if prompt.logits is None else prompt.logits[0].numpy(),
        multimask_output=multimask,
    )


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return 100 * int((mask & truth).sum()) / int((mask | truth).sum())


def assert_is(answer: Answer, masks: np.ndarray, scores: np.ndarray, logits: np.ndarray, best: int) -> None:
    """`answer`, of one prompt, is number `best` of what the predictor said."""
    np.testing.assert_array_equal(answer.masks, masks[best][None])
    np.testing.assert_array_equal(answer.predicted, [100 * np.float64(scores[best])])
    np.testing.assert_array_equal(answer.logits.numpy(), logits[best][None, None])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("select", SELECTS)
def test_an_answer_is_that_of_segment_anythings_predictor(
    sam: sa.Sam, select: str, kind: str, size: tuple[int, int]
) -> None:
    view, predictor, prompts = viewed(sam, size), predictor_of(sam, size), asked(kind, size)
    for index, truth in enumerate(truths(size)):
        prompt = only(prompts, index)
        multimask = MULTIMASK.get(select, kind == "one point")
        masks, scores, logits = predicted(predictor, prompt, multimask=multimask)
        best = np.argmax([iou(mask, truth) for mask in masks] if select == "oracle" else scores)
        assert_is(view.answer(prompt, select, truth[None]), masks, scores, logits, int(best))
        assert 0 < masks[best].mean() < 1  # a mask that says something


@pytest.mark.parametrize("best", range(3))
def test_argmax_picks_the_mask_that_the_model_rates_best(sam: sa.Sam, best: int) -> None:
    sam.mask_decoder.iou_prediction_head.layers[-1].bias[best + 1] += 50  # 0 is the single mask's
    view, predictor, prompt = viewed(sam, SIZES[0]), predictor_of(sam, SIZES[0]), only(asked("box", SIZES[0]), 0)
    assert_is(view.answer(prompt, "argmax"), *predicted(predictor, prompt, multimask=True), best=best)


@pytest.mark.parametrize("best", range(3))
def test_the_oracle_picks_the_mask_that_is_right_whatever_its_rating(sam: sa.Sam, best: int) -> None:
    view, predictor, prompt = viewed(sam, SIZES[0]), predictor_of(sam, SIZES[0]), only(asked("box", SIZES[0]), 0)
    masks, scores, logits = predicted(predictor, prompt, multimask=True)
    assert_is(view.answer(prompt, "oracle", masks[best][None]), masks, scores, logits, best)
    assert view.best_iou(prompt, masks[best][None]) == [100]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("select", SELECTS)
def test_a_batch_of_prompts_is_answered_as_one_by_one(sam: sa.Sam, select: str, kind: str) -> None:
    size = SIZES[0]
    view, prompts, truth = viewed(sam, size), asked(kind, size), truths(size)
    whole = view.answer(prompts, select, truth)
    assert (whole.masks.shape, whole.masks.dtype, whole.predicted.shape) == ((4, *size), np.bool_, (4,))
    for index in range(4):
        alone = view.answer(only(prompts, index), select, truth[index : index + 1])
        torch.testing.assert_close(whole.logits[index : index + 1], alone.logits, rtol=1e-4, atol=1e-4)
        assert whole.predicted[index] == pytest.approx(alone.predicted[0], rel=1e-4, abs=1e-3)
        assert (whole.masks[index] != alone.masks[0]).mean() < 1e-3
    assert len(np.unique(whole.masks.reshape(4, -1), axis=0)) == 4  # each prompt has a mask of its own


def test_the_logits_of_an_answer_can_be_fed_to_the_next(sam: sa.Sam) -> None:
    view, predictor = viewed(sam, SIZES[1]), predictor_of(sam, SIZES[1])
    first = only(asked("one point", SIZES[1]), 0)
    answer = view.answer(first, "argmax")
    _, scores, logits = predicted(predictor, first, multimask=True)
    again = dataclasses.replace(first, logits=answer.logits)
    fed = predictor.predict(first.points[0], first.labels[0], mask_input=logits[[scores.argmax()]])
    assert_is(view.answer(again, "argmax"), *fed, best=int(fed[1].argmax()))
    assert not torch.equal(view.answer(again, "argmax").logits, answer.logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_the_best_iou_is_that_of_the_best_of_the_predictors_masks(
    sam: sa.Sam, kind: str, size: tuple[int, int]
) -> None:
    view, predictor, prompts = viewed(sam, size), predictor_of(sam, size), asked(kind, size)
    for index, truth in enumerate(truths(size)):
        masks, *_ = predicted(predictor, only(prompts, index), multimask=True)
        best = view.best_iou(only(prompts, index), truth[None])
        assert best.tolist() == [pytest.approx(max(iou(mask, truth) for mask in masks), rel=1e-12)]


def test_each_prompt_of_a_batch_is_held_against_its_own_truth(sam: sa.Sam) -> None:
    view, prompts, truth = viewed(sam, SIZES[0]), asked("one point", SIZES[0]), truths(SIZES[0])
    alone = [view.best_iou(only(prompts, index), truth[index : index + 1])[0] for index in range(4)]
    assert view.best_iou(prompts, truth).tolist() == pytest.approx(alone, abs=0.1)
    assert np.ptp(alone) > 1


def test_a_model_with_another_threshold_is_taken_at_its_word(sam: sa.Sam) -> None:
    sam.mask_threshold = 0.5
    view, predictor, prompt = viewed(sam, SIZES[0]), predictor_of(sam, SIZES[0]), only(asked("box", SIZES[0]), 0)
    answer = view.answer(prompt, "single")
    assert_is(answer, *predicted(predictor, prompt, multimask=False), best=0)
    sam.mask_threshold = 0.0
    assert answer.masks.sum() < view.answer(prompt, "single").masks.sum()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["output_upscaling.3.bias", "iou_prediction_head.layers.2.bias"])
def test_weights_that_are_no_numbers_stop_with_one_line(sam: sa.Sam, part: str, value: float, refused: Any) -> None:
    sam.mask_decoder.get_parameter(part).fill_(value)
    view, prompt, truth = viewed(sam, SIZES[0]), asked("box", SIZES[0]), truths(SIZES[0])
    for select in SELECTS:
        with refused(ValueError, "masks or predicted IoUs hold NaN or infinity; check its weights"):
            view.answer(prompt, select, truth)
    with refused(ValueError, "NaN or infinity"):
        view.best_iou(prompt, truth)


POINTS, BOXES = np.zeros((4, 1, 2)), np.zeros((4, 4))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (Prompt(points=POINTS, labels=POINTS[..., 0]), True),
        (Prompt(points=POINTS, labels=POINTS[..., 0], logits=torch.zeros(4, 1, 32, 32)), True),
        (Prompt(points=np.zeros((1, 3, 2)), labels=np.zeros((1, 3))), False),
        (Prompt(points=POINTS, labels=POINTS[..., 0], boxes=BOXES), False),
        (Prompt(boxes=BOXES), False),
    ],
)
def test_a_prompt_is_one_point_if_that_is_all_there_is(prompt: Prompt, expected: bool) -> None:
    assert prompt.one_point is expected
