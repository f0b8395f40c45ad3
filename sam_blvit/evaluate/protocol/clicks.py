"""A protocol carried out on one photograph: one point, three points and a box for each object, and what SAM answers.

Shapes:
    P  objects of a batch    H, W  the photograph
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sam_blvit.data.prompts import POINTS, Click, centre_error_point, centre_point, uniform_error_point, uniform_points
from sam_blvit.evaluate.photographs import Truth
from sam_blvit.evaluate.protocol.protocols import Protocol
from sam_blvit.evaluate.protocol.view import Answer, Prompt, View


@dataclass(frozen=True)
class Asked:
    """P prompts and what came back."""

    prompt: Prompt
    """A click that an object needed no more is a place held at 0, 0, which was not asked."""
    answer: Answer
    oracle: NDArray[np.float64] | None
    """(P,) highest IoU among the decoder's masks, percent, where it is asked for."""


@dataclass(frozen=True)
class Examiner:
    """Asks a view about objects as a protocol says."""

    view: View
    protocol: Protocol
    oracle: bool = False
    """Whether the best of the decoder's masks is looked for too."""

    def boxes(self, truths: Sequence[Truth]) -> Asked:
        """One box for each of `truths`."""
        annotated = self.protocol.box_source == "ann"
        boxes = [truth.box if annotated else tightest_box(truth.mask) for truth in truths]
        return self._ask(Prompt(boxes=np.array(boxes, dtype=np.float64)), truths)

    def points(self, truths: Sequence[Truth], *, seed: int) -> tuple[Asked, Asked]:
        """One point and three points for each of `truths`."""
        drawn = np.stack([self._drawn(truth, seed) for truth in truths])  # (P, 3, 2)
        one = self._ask(_positive(drawn[:, :1]), truths)
        if not self.protocol.iterative:
            return one, self._ask(_positive(drawn), truths)
        three = one
        for number in range(1, POINTS):
            clicks = [self._next_click(truth, three, i, (seed, number)) for i, truth in enumerate(truths)]
            three = self._corrected(three, truths, clicks)
        return one, three

    def _drawn(self, truth: Truth, seed: int) -> NDArray[np.int64]:
        """Points (3, 2) that need no look at a mask; an iterative protocol uses the first alone."""
        points = uniform_points(truth.mask, seed=seed, ann_id=truth.instance.ann_id)
        if self.protocol.first == "centre":
            centre = centre_point(truth.mask)
            points[0] = centre.x, centre.y
        return points

    def _next_click(self, truth: Truth, asked: Asked, index: int, draw: tuple[int, int]) -> Click | None:
        """Where the mask of object `index` is wrong; None if it is not. `draw` is the seed and the click's number."""
        mask = asked.answer.masks[index]
        if self.protocol.later == "uniform-error":
            seed, number = draw
            return uniform_error_point(truth.mask, mask, seed=seed, ann_id=truth.instance.ann_id, number=number)
        assert asked.prompt.points is not None
        return centre_error_point(truth.mask, mask, clicked=asked.prompt.points[index])

    def _corrected(self, asked: Asked, truths: Sequence[Truth], clicks: Sequence[Click | None]) -> Asked:
        """`asked` with one more click for each object that has one; an object without keeps its mask."""
        wrong = [index for index, click in enumerate(clicks) if click is not None]
        if not wrong:
            return asked
        prompt = _with_clicks(asked.prompt, clicks)
        assert prompt.points is not None
        assert prompt.labels is not None
        logits = asked.answer.logits[wrong] if self.protocol.feed_mask else None
        again = self._ask(
            Prompt(points=prompt.points[wrong], labels=prompt.labels[wrong], logits=logits), [truths[i] for i in wrong]
        )
        return _merged(replace(asked, prompt=prompt), again, wrong)

    def _ask(self, prompt: Prompt, truths: Sequence[Truth]) -> Asked:
        truth = np.stack([truth.mask for truth in truths]) if self.oracle or self.protocol.select == "oracle" else None
        answer = self.view.answer(prompt, self.protocol.select, truth)
        best = self.view.best_iou(prompt, truth) if self.oracle and truth is not None else None
        return Asked(prompt, answer, best)


def tightest_box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 around the pixels of `mask` (H, W), edges as those of pycocotools' toBbox."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(cols[0]), float(rows[0]), float(cols[-1] + 1), float(rows[-1] + 1)


def _positive(points: NDArray[np.int64]) -> Prompt:
    return Prompt(points=points, labels=np.ones(points.shape[:2], dtype=np.int64))


def _with_clicks(prompt: Prompt, clicks: Sequence[Click | None]) -> Prompt:
    """`prompt` with one more point each; what stands for None is never asked."""
    assert prompt.points is not None
    assert prompt.labels is not None
    new = [(0, 0, 0) if click is None else (click.x, click.y, int(click.positive)) for click in clicks]
    more = np.array(new, dtype=np.int64)[:, None]  # (P, 1, 3)
    return Prompt(
        points=np.concatenate([prompt.points, more[..., :2]], axis=1),
        labels=np.concatenate([prompt.labels, more[..., 2]], axis=1),
    )


def _merged(old: Asked, new: Asked, where: Sequence[int]) -> Asked:
    """`old` with the answers of `new` at the places `where`."""
    masks, predicted, logits = old.answer.masks.copy(), old.answer.predicted.copy(), old.answer.logits.clone()
    masks[where], predicted[where], logits[where] = new.answer.masks, new.answer.predicted, new.answer.logits
    oracle = old.oracle
    if oracle is not None and new.oracle is not None:
        oracle = oracle.copy()
        oracle[where] = new.oracle
    return Asked(old.prompt, Answer(masks=masks, predicted=predicted, logits=logits), oracle)
