"""Prompts depend on the seed and the annotation alone."""

from __future__ import annotations

import numpy as np
import pytest

from sam_blvit.data.prompts import corners, uniform_points


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
