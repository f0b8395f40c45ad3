"""Prompts depend on the seed, the annotation and the mask so far alone; centres are those of slow obvious code."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from sam_blvit.data.prompts import (
    Centre,
    Click,
    centre_error_point,
    centre_point,
    corners,
    uniform_error_point,
    uniform_points,
)


def mask_of(*pixels: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((6, 9), dtype=bool)
    for x, y in pixels:
        mask[y, x] = True
    return mask


def test_points_are_the_draw_that_the_protocol_writes_down() -> None:
    mask = np.random.default_rng(3).random((6, 9)) < 0.5
    rng = np.random.Generator(np.random.PCG64([7, 42]))
    index = rng.choice(np.flatnonzero(mask), 3, replace=False)
    points = uniform_points(mask, seed=7, ann_id=42)
    np.testing.assert_array_equal(points[:, 1] * 9 + points[:, 0], index)


def test_points_are_x_y_and_lie_on_the_object() -> None:
    mask = mask_of((8, 0), (7, 1), (0, 5))
    points = uniform_points(mask, seed=0, ann_id=1)
    assert {tuple(point) for point in points.tolist()} == {(8, 0), (7, 1), (0, 5)}


def test_memory_order_does_not_matter() -> None:
    mask = np.random.default_rng(3).random((6, 9)) < 0.5
    expected = uniform_points(mask, seed=0, ann_id=1)
    np.testing.assert_array_equal(uniform_points(np.asfortranarray(mask), seed=0, ann_id=1), expected)


def test_fewer_pixels_than_points_are_drawn_again() -> None:
    points = [tuple(p) for ann_id in range(20) for p in uniform_points(mask_of((2, 1), (4, 3)), seed=0, ann_id=ann_id)]
    assert len(points) == 60
    assert set(points) == {(2, 1), (4, 3)}


@pytest.mark.parametrize("changed", [{"seed": 1}, {"ann_id": 2}])
def test_another_seed_or_annotation_draws_others(changed: dict[str, int]) -> None:
    mask = np.ones((50, 50), dtype=bool)
    first = uniform_points(mask, **{"seed": 0, "ann_id": 1})
    assert not np.array_equal(first, uniform_points(mask, **{"seed": 0, "ann_id": 1, **changed}))


def test_every_pixel_is_as_likely_as_any_other() -> None:
    mask = mask_of((0, 0), (8, 5), (3, 3), (4, 3))
    firsts = [tuple(uniform_points(mask, seed=0, ann_id=ann_id)[0].tolist()) for ann_id in range(800)]
    counts = [firsts.count(pixel) for pixel in ((0, 0), (8, 5), (3, 3), (4, 3))]
    assert sum(counts) == 800
    assert all(150 < count < 250 for count in counts)


def test_a_box_becomes_its_corners() -> None:
    assert corners((1.5, 2.0, 10.0, 20.25)) == (1.5, 2.0, 11.5, 22.25)


def blobs(seed: int) -> np.ndarray:
    """Round shapes of all sizes, some of them across the border, with ragged edges."""
    smooth = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(19, 26)), (0, 0), 1 + seed % 3)
    return smooth > np.quantile(smooth, 0.2 + 0.15 * (seed % 5))


def ring() -> np.ndarray:
    region = np.ones((19, 26), dtype=bool)
    region[6:13, 8:15] = False
    return region


def diagonal() -> np.ndarray:
    return np.eye(19, 26, dtype=bool)


def at_the_border() -> np.ndarray:
    region = np.zeros((19, 26), dtype=bool)
    region[10:, 15:] = True
    return region


def one_pixel() -> np.ndarray:
    return mask_of((8, 5))


REGIONS = [
    *(blobs(seed) for seed in range(12)),
    ring(),
    diagonal(),
    at_the_border(),
    one_pixel(),
    np.ones((5, 8), dtype=bool),
    np.ones((1, 7), dtype=bool),
    np.ones((6, 1), dtype=bool),
]


def squared_distances(region: np.ndarray) -> np.ndarray:
    """Of each pixel to the nearest pixel outside, the one ring of pixels beyond the image included; whole numbers."""
    outside = np.argwhere(~np.pad(region, 1)) - 1
    squares = np.zeros(region.shape, dtype=np.int64)
    for y, x in np.argwhere(region):
        squares[y, x] = ((outside - (y, x)) ** 2).sum(axis=1).min()
    return squares


def slow_centre(region: np.ndarray, clicked: list[tuple[int, int]]) -> tuple[int, int, int]:
    """x, y and squared distance, by looking at every pixel in turn."""
    squares = squared_distances(region)
    best = (0, 0, 0)
    for y, x in np.ndindex(region.shape):
        if squares[y, x] > best[2] and (x, y) not in clicked:
            best = (x, y, int(squares[y, x]))
    return best


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("ordered", [np.ascontiguousarray, np.asfortranarray])
def test_the_centre_is_the_pixel_farthest_from_the_outside(region: np.ndarray, ordered: Callable) -> None:
    x, y, square = slow_centre(region, [])
    assert centre_point(ordered(region)) == Centre(x, y, square**0.5)


@pytest.mark.parametrize("region", REGIONS)
def test_a_pixel_is_clicked_once(region: np.ndarray) -> None:
    clicked = [(0, 0), (region.shape[1] - 1, 0), (-5, 400)]  # perhaps in the region, perhaps not
    for _ in range(min(4, region.sum() - region[0, [0, -1]].sum())):
        x, y, square = slow_centre(region, clicked)
        assert centre_point(region, clicked=np.array(clicked)) == Centre(x, y, square**0.5)
        clicked.append((x, y))


def test_clicks_around_a_region_leave_it_as_it_is() -> None:
    around = [(x, y) for x in (0, 6, 7, 8) for y in (0, 1, 2, 3, 5) if (x, y) != (7, 2)]
    assert centre_point(mask_of((7, 2)), clicked=around) == Centre(7, 2, 1)


def test_without_a_pixel_to_click_the_distance_is_nothing() -> None:
    assert centre_point(np.zeros((4, 5), dtype=bool)).distance == 0
    assert centre_point(mask_of((2, 3), (8, 0)), clicked=[(8, 0), (2, 3)]).distance == 0


def test_a_large_region_is_measured_exactly() -> None:
    region = np.zeros((1500, 2000), dtype=bool)
    region[200:1201, 300:1901] = True  # 501 from its rows 700, from columns 800 to 1400
    assert centre_point(region) == Centre(800, 700, 501.0)


def discs(*places: int) -> np.ndarray:
    """Equal discs at some of twelve places in a row; OpenCV gives their centres distances that differ by rounding."""
    region = np.zeros((28, 12, 29), dtype=np.uint8)
    for place in places:
        region[:, place] = cv2.circle(np.zeros((28, 29), dtype=np.uint8), (14, 14), 13, color=1, thickness=-1)
    return region.reshape(28, 348).astype(bool)


def test_of_equals_the_first_is_the_centre() -> None:
    assert centre_point(discs(*range(12))) == centre_point(discs(0)) == Centre(14, 14, 170**0.5)


@pytest.mark.parametrize(("missed", "wrong"), [(place, (place + 5) % 12) for place in range(12)])
def test_equal_errors_anywhere_give_a_negative_click(missed: int, wrong: int) -> None:
    assert centre_error_point(discs(missed), discs(wrong)) == Click(14 + 29 * wrong, 14, False)


def test_an_error_is_drawn_as_the_protocol_writes_down() -> None:
    truth, mask = blobs(1), blobs(2)
    rng = np.random.Generator(np.random.PCG64([7, 42, 2]))
    y, x = divmod(int(rng.choice(np.flatnonzero(truth ^ mask))), 26)
    assert uniform_error_point(truth, mask, seed=7, ann_id=42, number=2) == Click(x, y, bool(truth[y, x]))


def test_every_wrong_pixel_is_as_likely_as_any_other() -> None:
    truth, mask = mask_of((0, 0), (3, 3), (4, 3)), mask_of((3, 3), (8, 5), (7, 0))
    clicks = [uniform_error_point(truth, mask, seed=0, ann_id=ann_id, number=1) for ann_id in range(800)]
    wrong = [Click(0, 0, True), Click(4, 3, True), Click(8, 5, False), Click(7, 0, False)]
    counts = [clicks.count(click) for click in wrong]
    assert sum(counts) == 800
    assert all(150 < count < 250 for count in counts)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"ann_id": 2}, {"number": 2}])
def test_another_seed_annotation_or_number_draws_another_error(changed: dict[str, int]) -> None:
    truth, mask = np.ones((50, 50), dtype=bool), np.zeros((50, 50), dtype=bool)
    usual = {"seed": 0, "ann_id": 1, "number": 1}
    first = uniform_error_point(truth, mask, **usual)
    assert first == uniform_error_point(truth, mask, **usual)
    assert first != uniform_error_point(truth, mask, **{**usual, **changed})


def test_an_error_is_not_drawn_with_the_generator_of_the_first_points() -> None:
    with pytest.raises(AssertionError, match="click 0"):
        uniform_error_point(one_pixel(), ~one_pixel(), seed=0, ann_id=1, number=0)


@pytest.mark.parametrize("seed", range(12))
def test_the_centre_of_the_larger_error_is_clicked(seed: int) -> None:
    truth, mask = blobs(seed), blobs(seed + 1)
    clicked: list[tuple[int, int]] = []
    for _ in range(3):
        missed, wrong = slow_centre(truth & ~mask, clicked), slow_centre(mask & ~truth, clicked)
        positive = missed[2] > wrong[2]
        x, y, _ = missed if positive else wrong
        assert centre_error_point(truth, mask, clicked=clicked) == Click(x, y, positive)
        clicked.append((x, y))


def test_errors_of_equal_distance_give_a_negative_click() -> None:
    assert centre_error_point(mask_of((1, 1), (4, 4)), mask_of((7, 2), (4, 4))) == Click(7, 2, False)
    assert centre_error_point(mask_of((1, 1)), mask_of((7, 2)), clicked=[(7, 2)]) == Click(1, 1, True)


@pytest.mark.parametrize("seed", range(3))
def test_memory_order_does_not_matter_to_errors(seed: int) -> None:
    truth, mask = blobs(seed), blobs(seed + 1)
    drawn = uniform_error_point(truth, mask, seed=seed, ann_id=1, number=1)
    centre = centre_error_point(truth, mask)
    turned = np.asfortranarray(truth)
    for other in (mask, np.asfortranarray(mask)):
        assert uniform_error_point(turned, other, seed=seed, ann_id=1, number=1) == drawn
        assert centre_error_point(turned, other) == centre


def test_a_mask_without_an_error_left_is_not_clicked() -> None:
    truth = blobs(0)
    assert uniform_error_point(truth, truth.copy(), seed=0, ann_id=1, number=1) is None
    assert centre_error_point(truth, truth.copy()) is None
    assert centre_error_point(mask_of((1, 1)), mask_of((7, 2)), clicked=[(1, 1), (7, 2)]) is None
