"""Calibration and the bootstrap: by hand, against a loop that is plainly right, and where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sam_blvit.evaluate.metrics.statistics import Interval, Rows, compare, duplicate, paired_bootstrap, reliability
from sam_blvit.evaluate.metrics.summary import PROMPTS


def rows_of(ann_ids: list[int], *, iou: float = 50.0, seed: int = 0, image_id: int = 1) -> dict[str, NDArray]:
    """Objects of `ann_ids`, all with the same values; the three prompts are 0, 1 and 2 points above `iou`."""
    number = len(ann_ids)
    same = {"seed": seed, "image_id": image_id, "area": 30.5, "npix": 30}
    columns = {name: np.full(number, value) for name, value in same.items()}
    scores = {f"iou_{prompt}": np.full(number, iou + i) for i, prompt in enumerate(PROMPTS)}
    return {"ann_id": np.array(ann_ids), **columns, **scores}


def joined(*parts: Rows) -> Rows:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_calibration_by_hand() -> None:
    predicted = np.array([12.0, 18.0, 95.0, 100.0])
    true = np.array([10.0, 30.0, 80.0, 96.0])
    curve = reliability(predicted, true)
    np.testing.assert_array_equal(curve.counts, [0, 2, 0, 0, 0, 0, 0, 0, 0, 2])
    assert (curve.predicted[1], curve.true[1]) == (15.0, 20.0)
    assert (curve.predicted[9], curve.true[9]) == (97.5, 88.0)
    assert np.isnan(curve.true[[0, 2, 3, 4, 5, 6, 7, 8]]).all()
    assert curve.error == pytest.approx(2 / 4 * 5.0 + 2 / 4 * 9.5)


def test_bins_weigh_by_their_objects() -> None:
    curve = reliability(np.array([5.0, 55.0, 55.0, 55.0]), np.array([9.0, 55.0, 55.0, 55.0]))
    assert curve.error == pytest.approx(1 / 4 * 4)


def test_predictions_beyond_the_range_count_in_the_outer_bins_as_they_are() -> None:
    curve = reliability(np.array([-8.0, 2.0, 130.0]), np.array([0.0, 0.0, 100.0]))
    np.testing.assert_array_equal(curve.counts[[0, 9]], [2, 1])
    assert (curve.predicted[0], curve.predicted[9]) == (-3.0, 130.0)


def test_a_bin_begins_at_its_lower_bound() -> None:
    np.testing.assert_array_equal(reliability(np.array([9.99, 10.0]), np.zeros(2)).counts[:3], [1, 1, 0])


def test_the_bootstrap_equals_a_loop_over_photographs() -> None:
    rng = np.random.default_rng(7)
    images = rng.choice([3, 8, 9, 20], size=25)
    differences = rng.normal(size=(25, 2))
    photographs, means = np.unique(images), []
    draws = np.random.default_rng(5)
    for _ in range(50):
        drawn = photographs[draws.integers(len(photographs), size=len(photographs))]
        objects = [differences[images == photograph] for photograph in drawn]
        means.append(np.concatenate(objects).mean(axis=0))
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    for column, interval in enumerate(paired_bootstrap(differences, images, resamples=50, seed=5)):
        assert interval.mean == pytest.approx(differences[:, column].mean())
        assert (interval.low, interval.high) == pytest.approx((low[column], high[column]))


def test_the_interval_is_that_of_independent_photographs_however_many_objects_they_have() -> None:
    values = np.random.default_rng(0).normal(loc=1.0, scale=3.0, size=(400, 1))
    (one,) = paired_bootstrap(values, np.arange(400))
    (many,) = paired_bootstrap(np.repeat(values, 5, axis=0), np.repeat(np.arange(400), 5))
    assert (many.low, many.high) == pytest.approx((one.low, one.high))
    assert one.high - one.low == pytest.approx(2 * 1.96 * 3 / 20, rel=0.1)


def test_the_interval_contains_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        images = rng.integers(30, size=120)
        values = rng.normal(size=30)[images] + rng.normal(size=120)
        (interval,) = paired_bootstrap(values[:, None], images, resamples=200)
        hits += interval.low <= 0 <= interval.high
    assert 0.88 <= hits / 200 <= 0.98


def test_equal_runs_do_not_differ() -> None:
    rows = joined(rows_of([1, 2], image_id=1), rows_of([3], image_id=2))
    comparison = compare(rows, rows)
    assert (comparison.instances, comparison.photographs, comparison.strangers) == (3, 2, 0)
    assert comparison.differences == dict.fromkeys(PROMPTS, Interval(0.0, 0.0, 0.0))


def test_a_constant_shift_is_the_whole_interval() -> None:
    baseline = joined(rows_of([1, 2], image_id=1), rows_of([3], image_id=2))
    shifts = {"box": 2.0, "1pt": -4.0, "3pt": 0.5}
    rows = {**baseline, **{f"iou_{prompt}": baseline[f"iou_{prompt}"] + by for prompt, by in shifts.items()}}
    assert compare(rows, baseline).differences == {prompt: Interval(by, by, by) for prompt, by in shifts.items()}


def test_objects_pair_by_id_and_seed_in_any_order() -> None:
    baseline = joined(rows_of([1], iou=20.0, seed=0), rows_of([2], iou=10.0, seed=0), rows_of([1], iou=70.0, seed=5))
    rows = joined(rows_of([1], iou=71.0, seed=5), rows_of([9, 2], iou=13.0, seed=0), rows_of([1], seed=6))
    comparison = compare(rows, baseline)
    assert comparison.instances == 2
    assert comparison.differences["box"].mean == pytest.approx((1.0 + 3.0) / 2)


@pytest.mark.parametrize(("column", "value"), [("area", 30.6), ("npix", 29), ("image_id", 2)])
def test_objects_of_other_annotations_are_counted_and_left_out(column: str, value: float) -> None:
    baseline, rows = rows_of([1, 2], iou=10.0), joined(rows_of([1], iou=10.0), rows_of([2], iou=90.0))
    rows = {**rows, column: np.array([rows[column][0], value])}
    comparison = compare(rows, baseline)
    assert (comparison.instances, comparison.strangers) == (1, 1)
    assert comparison.differences["box"] == Interval(0.0, 0.0, 0.0)


def test_runs_without_a_common_object_have_no_difference() -> None:
    comparison = compare(rows_of([1]), rows_of([2]))
    assert (comparison.instances, comparison.photographs, comparison.differences) == (0, 0, {})


def test_a_repeated_object_is_found_and_one_of_another_seed_is_none() -> None:
    rows = joined(rows_of([4, 5], seed=0), rows_of([4], seed=3))
    assert duplicate(rows) is None
    assert duplicate(joined(rows, rows_of([4], seed=3))) == (3, 4)
