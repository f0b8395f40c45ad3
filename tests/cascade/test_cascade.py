"""The cascade's rule, its sweep and the choice of thresholds against slow, obvious code."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from sam_blvit.cascade.confidence import (
    CONFIDENCES,
    distance_from_half,
    margin,
    mask_agreement,
    max_softmax,
    negentropy,
    region_mean,
    sigmoid,
    softmax,
    stability,
)
from sam_blvit.cascade.rule import average_cost, is_sure, run_cascade, stage_of
from sam_blvit.cascade.sweep import (
    GRID,
    Goal,
    Outcomes,
    bootstrap,
    choose,
    cost_shift,
    interval,
    random_gate,
    sweep,
)

SAMPLES, CLASSES = 60, 4
COARSE = np.array([0.0, 0.3, 0.5, 0.52, 0.7, 1.0])


def models_of(stages: int, *, seed: int = 0) -> tuple[list[NDArray[np.float64]], NDArray[np.int64]]:
    """Probabilities (60, 4) of models, each better than the last, and labels (60,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=SAMPLES)
    right = np.eye(CLASSES)[labels]
    return [softmax(rng.normal(size=(SAMPLES, CLASSES)) + stage * right) for stage in range(stages)], labels


def outcomes_of(models: Sequence[NDArray[np.float64]], labels: NDArray[np.int64]) -> Outcomes:
    correct = np.stack([model.argmax(axis=1) == labels for model in models])
    return Outcomes(correct, np.stack([model.max(axis=1) for model in models[:-1]]))


def one_by_one(
    models: Sequence[NDArray[np.float64]], thresholds: Sequence[float], weight: float = 1.0
) -> list[tuple[NDArray[np.float64], int]]:
    """Equations 4, 7 and 8, sample by sample."""
    answers = []
    for sample in range(SAMPLES):
        stage = 0
        while stage < len(thresholds):
            sure = models[stage][sample].max() >= thresholds[stage] and thresholds[stage] < 1
            if sure:
                break
            stage += 1
        answer = models[stage][sample]
        if stage:
            answer = (1 - weight) * models[stage - 1][sample] + weight * answer
        answers.append((answer, stage))
    return answers


@pytest.mark.parametrize("weight", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("thresholds", [(0.6,), (0.0,), (1.0,), (0.6, 0.5), (0.9, 0.3), (0.5, 0.6, 0.7)])
def test_each_sample_is_answered_by_the_first_stage_that_is_sure(thresholds: Sequence[float], weight: float) -> None:
    models, _ = models_of(len(thresholds) + 1)
    stages = [stage_of(model.__getitem__) for model in models]
    answers = run_cascade(stages, thresholds, samples=SAMPLES, weight=weight)
    expected = one_by_one(models, thresholds, weight)
    assert answers.stage.tolist() == [stage for _, stage in expected]
    np.testing.assert_array_equal(answers.probabilities, [answer for answer, _ in expected])
    assert answers.predictions.tolist() == [int(answer.argmax()) for answer, _ in expected]


@pytest.mark.parametrize(("threshold", "stage"), [(0.0, 0), (1.0, 1)])
def test_thresholds_0_and_1_are_the_pure_models_even_at_certain_answers(threshold: float, stage: int) -> None:
    certain = np.eye(CLASSES)[np.zeros(SAMPLES, dtype=int)]  # a confidence of exactly 1
    models = [certain, models_of(2)[0][1]]
    answers = run_cascade([stage_of(model.__getitem__) for model in models], [threshold], samples=SAMPLES)
    np.testing.assert_array_equal(answers.probabilities, models[stage])
    assert (answers.stage == stage).all()


def test_a_stage_sees_only_the_samples_that_reach_it_in_their_order() -> None:
    models, _ = models_of(3)
    seen: list[list[int]] = []

    def watched(model: NDArray[np.float64]):
        def predict(samples: NDArray[np.int64]) -> NDArray[np.float64]:
            seen.append(samples.tolist())
            return model[samples]

        return stage_of(predict)

    answers = run_cascade([watched(model) for model in models], (0.6, 0.5), samples=SAMPLES)
    assert seen == [np.flatnonzero(answers.stage >= stage).tolist() for stage in range(3)]
    assert 0 < len(seen[2]) < len(seen[1]) < SAMPLES
    assert answers.passed_on(3) == [len(seen[1]) / SAMPLES, len(seen[2]) / SAMPLES]


def test_later_models_do_not_run_when_all_are_sure() -> None:
    def never(samples: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        raise AssertionError(samples)

    models, _ = models_of(1)
    assert run_cascade([stage_of(models[0].__getitem__), never], [0.0], samples=SAMPLES).stage.max() == 0


@pytest.mark.parametrize(("thresholds", "weight"), [((), 1.0), ((0.5, 0.5), 1.0), ((np.nan,), 1.0), ((0.5,), 1.5)])
def test_impossible_settings_are_refused(thresholds: Sequence[float], weight: float) -> None:
    models, _ = models_of(2)
    with pytest.raises(ValueError, match=r"threshold|weight"):
        run_cascade([stage_of(m.__getitem__) for m in models], thresholds, samples=SAMPLES, weight=weight)


def test_a_confidence_that_is_no_number_is_refused() -> None:
    models, _ = models_of(2)
    nan = stage_of(models[0].__getitem__, lambda probabilities: np.full(len(probabilities), np.nan))
    with pytest.raises(ValueError, match="stage 0: 60 of 60 confidences"):
        run_cascade([nan, stage_of(models[1].__getitem__)], [0.5], samples=SAMPLES)


def test_average_cost_is_equation_5() -> None:
    assert average_cost([4.4, 37.8], [0.07]) == pytest.approx(4.4 + 0.07 * 37.8)
    assert average_cost([1, 10, 100], [0.5, 0.25]) == pytest.approx(1 + 5 + 25)
    with pytest.raises(ValueError, match="1 shares from 0 to 1"):
        average_cost([1, 10], [1.2])


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_the_sweep_equals_the_cascade_at_every_threshold(stages: int) -> None:
    models, labels = models_of(stages)
    models[0][:5] = np.eye(CLASSES)[labels[:5]]  # confidences of exactly 1, and of a threshold
    models[0][5, :] = [0.5, 0.2, 0.2, 0.1]
    swept = sweep(outcomes_of(models, labels), grid=COARSE)
    costs = [1.0, 10.0, 100.0, 1000.0][:stages]
    spent = swept.cost(costs)
    for point in itertools.product(range(len(COARSE)), repeat=stages - 1):
        expected = one_by_one(models, swept.thresholds(point))
        right = np.mean([answer.argmax() == label for (answer, _), label in zip(expected, labels, strict=True)])
        assert swept.accuracy[point] == pytest.approx(right)
        assert spent[point] == pytest.approx(np.mean([sum(costs[: stage + 1]) for _, stage in expected]))


def test_the_papers_thresholds_are_steps_of_002() -> None:
    assert len(GRID) == 51
    assert GRID[[0, 12, 33, 50]].tolist() == [0.0, 0.24, 0.66, 1.0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("stages", [2, 3])
def test_the_cheapest_point_that_loses_nothing_is_chosen(stages: int, seed: int) -> None:
    models, labels = models_of(stages, seed=seed)
    swept = sweep(outcomes_of(models, labels), grid=COARSE)
    goal = Goal((1.0, 10.0, 100.0)[:stages])
    cost = swept.cost(goal.costs)
    point = choose(swept, goal)
    big = (models[-1].argmax(axis=1) == labels).mean()
    assert swept.accuracy[point] >= big - 1e-9
    allowed = [p for p in np.ndindex(cost.shape) if swept.accuracy[p] >= big - 1e-9]
    assert cost[point] == pytest.approx(min(cost[p] for p in allowed))
    tolerant = choose(swept, Goal(goal.costs, tolerance=0.2))
    assert cost[tolerant] <= cost[point]
    assert swept.accuracy[tolerant] >= big - 0.2 - 1e-9


def test_a_better_little_model_replaces_the_big_one() -> None:
    models, labels = models_of(2)
    assert choose(sweep(outcomes_of([models[1], models[0]], labels)), Goal((1.0, 10.0))) == (0,)


def test_the_best_within_a_budget_is_chosen_and_too_small_a_budget_named() -> None:
    models, labels = models_of(3)
    swept = sweep(outcomes_of(models, labels), grid=COARSE)
    costs = (1.0, 10.0, 100.0)
    point = choose(swept, Goal(costs, budget=40.0))
    within = swept.cost(costs) <= 40
    assert swept.accuracy[point] == swept.accuracy[within].max()
    assert swept.cost(costs)[point] <= 40
    with pytest.raises(ValueError, match=r"budget=0.5 is below 1"):
        choose(swept, Goal(costs, budget=0.5))


def test_a_random_gate_at_the_same_shares_is_what_drawing_gives() -> None:
    models, labels = models_of(3)
    outcomes = outcomes_of(models, labels)
    rng = np.random.default_rng(0)
    stage = rng.choice(3, p=[0.5, 0.3, 0.2], size=(20_000, SAMPLES))
    drawn = np.take_along_axis(outcomes.correct.T[None], stage[..., None], axis=2).mean()
    assert random_gate(outcomes, [0.5, 0.2]) == pytest.approx(drawn, abs=2e-3)


def test_intervals_narrow_with_samples_and_hold_the_estimate() -> None:
    widths = []
    for copies in (1, 25):
        models, labels = models_of(2)
        outcomes = outcomes_of([np.tile(model, (copies, 1)) for model in models], np.tile(labels, copies))
        goal = Goal((1.0, 10.0))
        found = bootstrap(outcomes, outcomes, goal, resamples=200, seed=1)
        low, high = interval(found.accuracy["test"])
        swept = sweep(outcomes)
        assert low <= swept.accuracy[choose(swept, goal)] <= high
        assert found.thresholds.shape == found.passed_on["fit"].shape == (200, 1)
        assert copies > 1 or len(np.unique(found.thresholds)) > 1
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_resampled_thresholds_are_chosen_on_the_fit_set_alone() -> None:
    models, labels = models_of(2)
    goal = Goal((1.0, 10.0))
    fit = outcomes_of(models, labels)
    other = Outcomes(~fit.correct, fit.confidence)
    first, second = (bootstrap(fit, test, goal, resamples=20, seed=3) for test in (fit, other))
    np.testing.assert_array_equal(first.thresholds, second.thresholds)
    assert (first.accuracy["test"] != second.accuracy["test"]).any()


def test_cost_shows_a_shift_of_distribution() -> None:
    rng = np.random.default_rng(0)
    fitted, same, shifted = (1 + 10 * (rng.random(2000) < share) for share in (0.3, 0.3, 0.5))
    assert abs(cost_shift(fitted, same)[1]) < 3
    difference, score = cost_shift(fitted, shifted)
    assert difference == pytest.approx(2, abs=0.5)
    assert score > 5


@pytest.mark.parametrize(
    ("correct", "confidence", "message"),
    [((2, 5), (2, 5), "confidence of shape"), ((2, 0), (1, 0), "no samples")],
)
def test_outcomes_that_do_not_fit_are_refused(
    correct: tuple[int, int], confidence: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Outcomes(np.ones(correct, dtype=bool), np.ones(confidence))


def test_confidences_by_hand() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert max_softmax(p).tolist() == [0.7, 0.4, 1.0, 1 / 3]
    np.testing.assert_allclose(margin(p), [0.5, 0.0, 1.0, 0.0], atol=1e-15)
    entropies = [-sum(x * np.log(x) for x in row if x) for row in p]
    np.testing.assert_allclose(negentropy(p), 1 - np.array(entropies) / np.log(3), atol=1e-15)
    np.testing.assert_allclose(distance_from_half(np.array([[0.9, 0.4], [0.5, 0.5]])), [0.25, 0.0])
    assert set(CONFIDENCES) == {"max", "margin", "entropy", "multi_label"}


def test_softmax_and_sigmoid_of_large_logits() -> None:
    np.testing.assert_array_equal(softmax([[1000.0, 0.0]]), [[1.0, 0.0]])
    np.testing.assert_allclose(softmax([[1.0, 1.0]]), [[0.5, 0.5]])
    np.testing.assert_allclose(sigmoid([-1000.0, 0.0, 2.0, 1000.0]), [0, 0.5, 1 / (1 + np.exp(-2)), 1], rtol=1e-12)


@pytest.mark.parametrize("confidence", [margin, negentropy])
def test_one_class_has_no_margin(confidence) -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        confidence(np.ones((3, 1)))


def test_confidences_of_masks() -> None:
    regions = np.array([[0, 0, 7], [0, 7, 7]])
    pixels = np.array([[0.3, 0.6, 1.0], [0.6, 1.0, 0.7]])
    assert region_mean(pixels, regions) == pytest.approx((0.5 + 0.9) / 2)
    first = np.array([[[1, 1], [0, 0]], [[0, 0], [0, 0]]], dtype=bool)
    second = np.array([[[1, 0], [1, 0]], [[0, 0], [0, 0]]], dtype=bool)
    np.testing.assert_allclose(mask_agreement(first, second), [1 / 3, 1])
    np.testing.assert_allclose(stability(np.array([[[3.0, 0.5], [-0.5, -3.0]]])), [1 / 3])
    with pytest.raises(ValueError, match="cannot agree"):
        mask_agreement(first, second[:1])


def test_is_sure_takes_arrays() -> None:
    assert is_sure([0.5, 0.49], 0.5).tolist() == [True, False]
