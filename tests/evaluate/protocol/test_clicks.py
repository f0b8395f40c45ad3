"""An examiner does what a protocol says, object by object: an obvious loop over segment_anything's predictor agrees.

Shapes:
    P  objects of a batch    H, W  the photograph
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from segment_anything import SamPredictor
from segment_anything.utils.transforms import ResizeLongestSide
from torch import nn

from sam_blvit.config import ModelConfig
from sam_blvit.data.instances import Instance
from sam_blvit.data.prompts import Click, centre_error_point, centre_point, uniform_error_point, uniform_points
from sam_blvit.evaluate.photographs import Truth
from sam_blvit.evaluate.protocol.clicks import Asked, Examiner, tightest_box
from sam_blvit.evaluate.protocol.protocols import PROTOCOLS, Protocol, protocol_named
from sam_blvit.evaluate.protocol.view import Answer, Prompt, View
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam

SIZE = (90, 120)
PROTOCOLS_AND_MORE = {
    **PROTOCOLS,
    **{
        protocol.label: protocol
        for protocol in (
            protocol_named("ritm", feed_mask=True),
            protocol_named("sam-rand", feed_mask=True),
            protocol_named("edge-rand", feed_mask=True, select="oracle"),
            protocol_named("blvit", first="centre", select="sam"),
        )
    },
}


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def truth_of(mask: np.ndarray, ann_id: int) -> Truth:
    instance = Instance(ann_id, image_id=1, category_id=1, area=1.0, box=(0, 0, 1, 1), crowd=False, segmentation=[])
    rows, columns = np.nonzero(mask)
    box = (columns.min() - 2.25, rows.min() - 1.5, columns.max() + 3.5, rows.max() + 2.75)  # not quite the tightest
    return Truth(instance=instance, mask=mask, box=tuple(map(float, box)))


def block(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


TRUTHS = [
    truth_of(block(3, 5, 40, 30), 11),
    truth_of(block(60, 10, 25, 70), 12),
    truth_of(block(5, 50, 45, 38) & ~block(15, 60, 9, 9), 13),
    truth_of(block(100, 40, 1, 2), 14),  # fewer pixels than points
]


# against segment_anything's predictor


@pytest.fixture
def sam(tiny: Callable[..., ModelConfig], randomize: Callable[[Sam], Sam]) -> Sam:
    """A random model whose masks have pixels on and off."""
    sam = randomize(build_sam(tiny()))
    sam.mask_decoder.output_upscaling[-1] = nn.Identity()  # GELU's are mostly of one sign, and so would be the logits
    sam.mask_decoder.output_upscaling[-2].bias.zero_()
    return sam


PIXELS = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def view(sam: Sam) -> View:
    return View.of(sam, ResizeLongestSide(sam.image_encoder.img_size).apply_image(PIXELS), SIZE)


@pytest.fixture
def predictor(sam: Sam) -> SamPredictor:
    predictor = SamPredictor(sam)
    predictor.set_image(PIXELS)
    return predictor


@dataclass
class Said:
    """What segment_anything's predictor says to a prompt, and which of it counts."""

    mask: np.ndarray
    score: float
    logits: np.ndarray
    """(1, 4G, 4G)."""
    oracle: float
    """Highest IoU of three masks, percent."""


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return 100 * int((mask & truth).sum()) / int((mask | truth).sum())


def say(predictor: SamPredictor, truth: Truth, select: str, **prompt: Any) -> Said:
    three = predictor.predict(**prompt, multimask_output=True)
    ious = [iou(mask, truth.mask) for mask in three[0]]
    one_point = len(prompt.get("point_coords", ())) == 1
    if select == "single" or (select == "sam" and not one_point):
        masks, scores, logits = predictor.predict(**prompt, multimask_output=False)
        best = 0
    else:
        masks, scores, logits = three
        best = int(np.argmax(ious if select == "oracle" else scores))
    return Said(masks[best], 100 * float(scores[best]), logits[[best]], max(ious))


def next_click(protocol: Protocol, truth: Truth, mask: np.ndarray, clicks: list[Click], seed: int) -> Click | None:
    if protocol.later == "uniform":
        x, y = uniform_points(truth.mask, seed=seed, ann_id=truth.instance.ann_id)[len(clicks)]
        return Click(x, y, True)
    if protocol.later == "uniform-error":
        return uniform_error_point(truth.mask, mask, seed=seed, ann_id=truth.instance.ann_id, number=len(clicks))
    return centre_error_point(truth.mask, mask, clicked=[(click.x, click.y) for click in clicks])


def slowly(predictor: SamPredictor, truth: Truth, protocol: Protocol, seed: int) -> tuple[Said, Said]:
    """One object's answers to one point and to three, click after click."""
    if protocol.first == "uniform":
        x, y = uniform_points(truth.mask, seed=seed, ann_id=truth.instance.ann_id)[0]
    else:
        x, y, _ = centre_point(truth.mask)
    clicks, answers = [Click(x, y, True)], []
    while True:
        points, labels = np.array([(c.x, c.y) for c in clicks]), np.array([int(c.positive) for c in clicks])
        fed = {"mask_input": answers[-1].logits} if protocol.feed_mask and answers else {}
        answers.append(say(predictor, truth, protocol.select, point_coords=points, point_labels=labels, **fed))
        if len(clicks) == 3:
            return answers[0], answers[-1]
        click = next_click(protocol, truth, answers[-1].mask, clicks, seed)
        assert click is not None, "a random model is never right"
        clicks.append(click)


def assert_said(asked: Asked, said: Said, *, oracle: bool = True) -> None:
    np.testing.assert_array_equal(asked.answer.masks, said.mask[None])
    assert asked.answer.predicted.tolist() == [pytest.approx(said.score, rel=1e-12)]
    np.testing.assert_array_equal(asked.answer.logits.numpy(), said.logits[None])
    if oracle:
        assert asked.oracle.tolist() == [pytest.approx(said.oracle, rel=1e-12)]


@pytest.mark.parametrize("name", PROTOCOLS_AND_MORE)
@pytest.mark.parametrize("truth", TRUTHS, ids=lambda truth: truth.instance.ann_id)
def test_points_are_answered_as_by_the_obvious_loop(
    view: View, predictor: SamPredictor, truth: Truth, name: str
) -> None:
    protocol = PROTOCOLS_AND_MORE[name]
    one, three = Examiner(view, protocol, oracle=True).points([truth], seed=5)
    expected = slowly(predictor, truth, protocol, 5)
    assert_said(one, expected[0])
    assert_said(three, expected[1])
    assert 0 < expected[1].mask.mean() < 1  # a mask that says something


@pytest.mark.parametrize("source", ["ann", "mask"])
@pytest.mark.parametrize("select", ["argmax", "single", "oracle", "sam"])
def test_boxes_are_answered_as_by_the_predictor(view: View, predictor: SamPredictor, select: str, source: str) -> None:
    protocol = protocol_named("blvit", select=select, box_source=source)
    for truth in TRUTHS:
        box = np.array(truth.box if source == "ann" else tightest_box(truth.mask))
        asked = Examiner(view, protocol, oracle=True).boxes([truth])
        assert_said(asked, say(predictor, truth, select, box=box))


@pytest.mark.parametrize("name", ["sam-rand", "edge-center"])
def test_feeding_the_mask_makes_a_difference(view: View, name: str) -> None:
    plain, fed = (
        Examiner(view, protocol_named(name, feed_mask=feed)).points(TRUTHS[:1], seed=0)[1] for feed in (None, True)
    )
    assert not np.array_equal(plain.answer.masks, fed.answer.masks)


# against scripted masks


@dataclass
class Scripted:
    """A view that answers each object as written down, and keeps what it was asked."""

    script: Mapping[int, Sequence[np.ndarray]]
    """By annotation id: the masks for one, two and three points. A box is answered with the first."""
    truths: Sequence[Truth]
    prompts: list[Prompt] = field(default_factory=list)
    compared: list[Prompt] = field(default_factory=list)
    """Prompts whose best mask was looked for."""

    def answer(self, prompt: Prompt, select: str, truth: np.ndarray | None = None) -> Answer:
        self.prompts.append(prompt)
        number = prompt.points.shape[1]
        marks = [number + ann_id / 1000 for ann_id in self.ids(prompt)]  # what was asked about whom
        return Answer(
            masks=np.stack([self.script[ann_id][number - 1] for ann_id in self.ids(prompt)]),
            predicted=np.array(marks),
            logits=torch.tensor(marks)[:, None, None, None].expand(-1, 1, 4, 4),
        )

    def best_iou(self, prompt: Prompt, truth: np.ndarray) -> np.ndarray:
        self.compared.append(prompt)
        for ann_id, mask in zip(self.ids(prompt), truth, strict=True):
            np.testing.assert_array_equal(mask, next(t.mask for t in self.truths if t.instance.ann_id == ann_id))
        return np.array([50 + prompt.points.shape[1] + ann_id / 1000 for ann_id in self.ids(prompt)])

    def ids(self, prompt: Prompt) -> list[int]:
        """Objects of `prompt`, by where their first points lie."""
        return [next(t.instance.ann_id for t in self.truths if t.mask[y, x]) for x, y in prompt.points[:, 0]]

    def asked(self) -> list[list[int]]:
        return [self.ids(prompt) for prompt in self.prompts]


RIGHT = [truth.mask for truth in TRUTHS]


def but(mask: np.ndarray, *pixels: tuple[int, int]) -> np.ndarray:
    """`mask` with each pixel x, y turned over."""
    changed = mask.copy()
    for x, y in pixels:
        changed[y, x] = ~changed[y, x]
    return changed


ITERATIVE = ["edge-rand", "edge-center", "ritm", "sam-rand"]
SCRIPT = {
    11: (RIGHT[0], RIGHT[0] * 0 > 0, RIGHT[0] * 0 > 0),  # right at once: must not be asked again
    12: (but(RIGHT[1], (61, 11)), RIGHT[1], RIGHT[1] * 0 > 0),  # right with two points
    13: (but(RIGHT[2], (9, 81)), but(RIGHT[2], (20, 64)), but(RIGHT[2], (0, 0))),  # one pixel missed, then one wrong
}
"""By annotation id: masks for one, two and three points."""


def examined(protocol: Protocol, *, oracle: bool = False) -> tuple[Scripted, Asked, Asked]:
    view = Scripted(SCRIPT, TRUTHS)
    one, three = Examiner(view, protocol, oracle).points(TRUTHS[:3], seed=0)  # type: ignore[arg-type]
    return view, one, three


@pytest.mark.parametrize("name", ITERATIVE)
def test_each_click_looks_at_the_mask_before_it(name: str) -> None:
    view, *_ = examined(PROTOCOLS[name])
    last = view.prompts[-1]
    assert view.asked()[-1] == [13]
    assert last.points[0, 1:].tolist() == [[9, 81], [20, 64]]
    assert last.labels.tolist() == [[1, 1, 0]]


@pytest.mark.parametrize("name", ITERATIVE)
def test_an_object_without_an_error_is_not_asked_about_again(name: str) -> None:
    view, *_ = examined(PROTOCOLS[name])
    assert view.asked() == [[11, 12, 13], [12, 13], [13]]
    assert [prompt.points.shape[1] for prompt in view.prompts] == [1, 2, 3]


@pytest.mark.parametrize("name", ITERATIVE)
def test_an_object_without_an_error_keeps_its_mask_and_score(name: str) -> None:
    _, one, three = examined(PROTOCOLS[name])
    for asked, numbers in ((one, (1, 1, 1)), (three, (1, 2, 3))):
        for index, (ann_id, number) in enumerate(zip(SCRIPT, numbers, strict=True)):
            np.testing.assert_array_equal(asked.answer.masks[index], SCRIPT[ann_id][number - 1])
        expected = [number + ann_id / 1000 for ann_id, number in zip(SCRIPT, numbers, strict=True)]
        assert asked.answer.predicted.tolist() == expected
        assert asked.answer.logits[:, 0, 0, 0].tolist() == pytest.approx(expected)


def test_objects_that_are_all_right_are_asked_about_once() -> None:
    view = Scripted({ann_id: (mask,) for ann_id, mask in zip((11, 12, 13, 14), RIGHT, strict=True)}, TRUTHS)
    one, three = Examiner(view, PROTOCOLS["ritm"]).points(TRUTHS, seed=0)  # type: ignore[arg-type]
    assert len(view.prompts) == 1
    np.testing.assert_array_equal(three.answer.masks, one.answer.masks)


def test_points_of_one_shot_are_given_whatever_the_masks() -> None:
    view, _, three = examined(PROTOCOLS["blvit"])
    first, second = view.prompts
    for index, truth in enumerate(TRUTHS[:3]):
        drawn = uniform_points(truth.mask, seed=0, ann_id=truth.instance.ann_id)
        np.testing.assert_array_equal(first.points[index], drawn[:1])
        np.testing.assert_array_equal(second.points[index], drawn)
    assert (first.labels.all(), second.labels.all()) == (True, True)
    assert three.answer.predicted.tolist() == [3.011, 3.012, 3.013]


@pytest.mark.parametrize("name", ITERATIVE)
def test_a_fed_mask_is_that_of_the_object_it_corrects(name: str) -> None:
    view, *_ = examined(protocol_named(name, feed_mask=True))
    first, second, third = view.prompts
    assert first.logits is None
    assert second.logits[:, 0, 0, 0].tolist() == pytest.approx([1.012, 1.013])
    assert third.logits[:, 0, 0, 0].tolist() == pytest.approx([2.013])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_mask_is_fed_unless_the_protocol_says_so(name: str) -> None:
    view, *_ = examined(PROTOCOLS[name])
    assert [prompt.logits for prompt in view.prompts] == [None] * len(view.prompts)


@pytest.mark.parametrize("name", ITERATIVE)
def test_the_best_mask_of_an_object_is_that_of_its_last_answer(name: str) -> None:
    _, one, three = examined(PROTOCOLS[name], oracle=True)
    assert one.oracle.tolist() == [51.011, 51.012, 51.013]
    assert three.oracle.tolist() == [51.011, 52.012, 53.013]


def test_the_best_mask_is_looked_for_on_request_alone() -> None:
    view, one, three = examined(PROTOCOLS["ritm"])
    assert (one.oracle, three.oracle, view.compared) == (None, None, [])


def test_the_oracle_rule_alone_asks_for_no_column(view: View) -> None:
    asked = Examiner(view, protocol_named("blvit", select="oracle")).boxes(TRUTHS)
    assert asked.oracle is None
    assert asked.answer.masks.shape == (4, *SIZE)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_neither_batch_nor_order_changes_a_click(name: str) -> None:
    def prompts(truths: Sequence[Truth]) -> dict[tuple[int, int], list[list[int]]]:
        """Points and labels by object and number of points."""
        view = Scripted(SCRIPT, TRUTHS)
        Examiner(view, PROTOCOLS[name]).points(truths, seed=3)  # type: ignore[arg-type]
        return {
            (ann_id, prompt.points.shape[1]): np.column_stack([prompt.points[i], prompt.labels[i]]).tolist()
            for prompt in view.prompts
            for i, ann_id in enumerate(view.ids(prompt))
        }

    whole = prompts(TRUTHS[:3])
    assert prompts(TRUTHS[2::-1]) == whole
    alone = [prompts([truth]) for truth in TRUTHS[:3]]
    assert {key: value for part in alone for key, value in part.items()} == whole


@pytest.mark.parametrize(
    ("name", "moves"),
    [("blvit", True), ("edge-rand", True), ("sam-rand", True), ("edge-center", False), ("ritm", False)],
)
def test_the_seed_moves_the_first_point_unless_it_is_the_centre(name: str, moves: bool) -> None:
    firsts = []
    for seed in (0, 1):
        view = Scripted(SCRIPT, TRUTHS)
        Examiner(view, PROTOCOLS[name]).points(TRUTHS[:3], seed=seed)  # type: ignore[arg-type]
        firsts.append(view.prompts[0].points.tolist())
    assert (firsts[0] != firsts[1]) is moves
    centres = [[list(centre_point(truth.mask)[:2])] for truth in TRUTHS[:3]]
    assert (firsts[0] == centres) is (not moves)


def test_clicks_before_are_not_repeated_at_the_centre() -> None:
    wrong = but(RIGHT[2], (9, 81))
    view = Scripted({13: (wrong, wrong, wrong)}, TRUTHS)  # a model that does not learn
    one, three = Examiner(view, PROTOCOLS["ritm"]).points([TRUTHS[2]], seed=0)  # type: ignore[arg-type]
    assert [prompt.points[0, 1:].tolist() for prompt in view.prompts] == [[], [[9, 81]]]
    assert (one.answer.predicted.tolist(), three.answer.predicted.tolist()) == ([1.013], [2.013])


# boxes


@pytest.mark.parametrize("seed", range(8))
def test_the_tightest_box_is_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [rng.random((9, 13)) < rng.choice([0.02, 0.1, 0.9]) for _ in range(10)]
    for mask in masks:
        mask[rng.integers(9), rng.integers(13)] = True
        x, y, width, height = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))
        assert tightest_box(mask) == (x, y, x + width, y + height)


def test_a_box_around_everything_reaches_the_border() -> None:
    assert tightest_box(np.ones((9, 13), dtype=bool)) == (0, 0, 13, 9)
    assert tightest_box(np.pad(np.ones((1, 1), dtype=bool), ((8, 0), (12, 0)))) == (12, 8, 13, 9)


def test_boxes_of_a_batch_stay_with_their_objects(view: View) -> None:
    for source in ("ann", "mask"):
        examiner = Examiner(view, protocol_named("blvit", box_source=source))
        for asked, truths in ((examiner.boxes(TRUTHS), TRUTHS), (examiner.boxes(TRUTHS[::-1]), TRUTHS[::-1])):
            boxes = [truth.box if source == "ann" else tightest_box(truth.mask) for truth in truths]
            assert asked.prompt.boxes.tolist() == [list(box) for box in boxes]
            assert dataclasses.replace(asked.prompt, boxes=None) == Prompt()
