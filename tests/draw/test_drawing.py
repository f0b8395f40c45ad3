"""Pictures show the mask, the prompt and the routing where they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sam_blvit.draw.pictures import (
    BOX,
    MASK,
    NEGATIVE,
    OPACITY,
    POSITIVE,
    Colour,
    draw_errors,
    draw_everything,
    draw_overlay,
    draw_routing,
    on_image,
    routing_map,
)
from sam_blvit.model.router import choose
from sam_blvit.model.windows import WindowLayout


def _grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def _block(height: int, width: int, rows: slice, cols: slice) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[rows, cols] = True
    return mask


def test_an_overlay_tints_the_mask_outlines_it_and_leaves_the_rest() -> None:
    image, mask = _grey(60, 80), _block(60, 80, slice(20, 40), slice(30, 60))
    drawn = draw_overlay(image, mask)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert drawn[20, 45].min() > 200
    assert (drawn[25:35, 35:55] == drawn[30, 45]).all()
    assert tuple(drawn[30, 45]) != (100, 100, 100)
    far = ~_block(60, 80, slice(17, 43), slice(27, 63))
    assert (drawn[far] == 100).all()
    assert (image == 100).all()


def test_an_overlay_shows_a_hole_in_the_mask() -> None:
    mask = _block(60, 80, slice(10, 50), slice(10, 70))
    mask[20:40, 30:50] = False
    drawn = draw_overlay(_grey(60, 80), mask)
    assert tuple(drawn[30, 40]) == (100, 100, 100)
    assert drawn[19, 40].min() > 200


def test_an_overlay_shows_the_prompt() -> None:
    points, labels = np.array([[20.0, 30.0], [60.0, 40.0]]), np.array([1, 0])
    empty = np.zeros((60, 80), bool)
    drawn = draw_overlay(_grey(60, 80), empty, points=points, labels=labels, box=np.array([5.0, 4, 75, 55]))
    assert tuple(drawn[30, 20]) == POSITIVE
    assert tuple(drawn[40, 60]) == NEGATIVE
    assert [tuple(drawn[y, x]) for y, x in ((4, 40), (55, 40), (30, 5), (30, 75))] == [BOX] * 4
    assert (draw_overlay(_grey(60, 80), empty) == 100).all()


def test_marks_grow_with_the_photograph() -> None:
    def share(side: int) -> float:
        centre = np.array([[side / 2, side / 2]])
        drawn = draw_overlay(_grey(side, side), np.zeros((side, side), bool), points=centre, labels=np.array([1]))
        return float((drawn != 100).any(-1).mean())

    assert share(4000) == pytest.approx(share(400), rel=0.25)


def test_a_prompt_at_the_edge_and_a_photograph_of_one_pixel_can_be_drawn() -> None:
    mask = np.ones((1, 1), bool)
    drawn = draw_overlay(_grey(1, 1), mask, points=np.array([[0.0, 0.0]]), labels=np.array([1]), box=np.zeros(4))
    assert drawn.shape == (1, 1, 3)


def _tinted(image: np.ndarray, colour: Colour) -> np.ndarray:
    return np.rint((1 - OPACITY) * image + OPACITY * np.array(colour)).astype(np.uint8)


def test_right_missed_and_wrong_pixels_are_blue_yellow_and_red() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    mask, truth = _block(60, 80, slice(10, 40), slice(10, 50)), _block(60, 80, slice(20, 50), slice(30, 70))
    drawn = draw_errors(image, mask, truth)
    for pixels, colour in ((mask & truth, MASK), (truth & ~mask, BOX), (mask & ~truth, NEGATIVE)):
        np.testing.assert_array_equal(drawn[pixels], _tinted(image[pixels], colour))
    np.testing.assert_array_equal(drawn[~(mask | truth)], image[~(mask | truth)])


def test_errors_are_drawn_beside_what_is_given() -> None:
    image, mask, truth = _grey(60, 80), _block(60, 80, slice(3, 9), slice(5, 9)), np.ones((60, 80), bool)
    given = [array.copy() for array in (image, mask, truth)]
    draw_errors(image, mask, truth, box=(5, 5, 30, 30))
    for array, before in zip((image, mask, truth), given, strict=True):
        np.testing.assert_array_equal(array, before)


def test_masks_of_any_numbers_are_masks_too() -> None:
    mask, truth = _block(60, 80, slice(10, 40), slice(10, 50)), _block(60, 80, slice(20, 50), slice(30, 70))
    whole = draw_errors(_grey(60, 80), 255 * mask.astype(np.uint8), truth.astype(np.uint8))
    np.testing.assert_array_equal(whole, draw_errors(_grey(60, 80), mask, truth))


def test_errors_are_drawn_with_the_box_that_was_asked() -> None:
    nothing = np.zeros((60, 80), bool)
    drawn = draw_errors(_grey(60, 80), nothing, nothing, box=(5.4, 4, 74.6, 55))
    assert [tuple(drawn[y, x]) for y, x in ((4, 40), (55, 40), (30, 5), (30, 75))] == [BOX] * 4
    assert (drawn[10:50, 12:70] == 100).all()
    assert (draw_errors(_grey(60, 80), nothing, nothing) == 100).all()


@pytest.mark.parametrize("box", [(-20, -20, 300, 300), (70, 50, 70, 50), (200, 200, 210, 210)])
def test_errors_of_a_box_beyond_the_picture_can_be_drawn(box: tuple[int, ...]) -> None:
    drawn = draw_errors(_grey(60, 80), np.zeros((60, 80), bool), np.ones((60, 80), bool), box=box)
    assert drawn.shape == (60, 80, 3)
    np.testing.assert_array_equal(drawn[30, 40], _tinted(np.full(3, 100), BOX))


@pytest.mark.parametrize("grid", [(8, 8), (6, 8), (7, 5)])  # windows of 4: whole, and two that are padded
def test_a_routing_map_marks_the_best_tokens_of_each_window(grid: tuple[int, int]) -> None:
    layout = WindowLayout(grid, 4, torch.device("cpu"))
    by_raster = torch.randn(1, *grid, 1, generator=torch.Generator().manual_seed(0))
    routing = choose(layout.by_window(by_raster)[..., 0], layout=layout, num_primary=3)
    scores = by_raster[0, :, :, 0].numpy()
    expected = np.zeros(grid, bool)
    for top in range(0, grid[0], 4):
        for left in range(0, grid[1], 4):
            window = scores[top : top + 4, left : left + 4]
            expected[top : top + 4, left : left + 4] = window >= np.sort(window, axis=None)[-3:][0]
    np.testing.assert_array_equal(routing_map(routing, layout), expected)


def test_tokens_cover_16_pixels_of_what_the_encoder_saw() -> None:
    chosen = np.array([[True, False, True], [False, False, True]])  # the last column lies on padding
    mask = on_image(chosen, input_size=(32, 32), size=(64, 64))
    np.testing.assert_array_equal(mask, _block(64, 64, slice(0, 32), slice(0, 32)))


def test_a_routing_picture_keeps_chosen_tokens_and_darkens_the_others() -> None:
    image = np.full((480, 640, 3), (200, 150, 100), np.uint8)
    chosen = np.zeros((24, 32), bool)
    chosen[:, :16] = True
    picture = draw_routing(image, {1: chosen, 4: ~chosen}, input_size=(384, 512))
    panel = picture.shape[1] // 2
    row = picture[picture.shape[0] // 2]
    first, second = row[:panel], row[panel:]
    for half, bright in ((first, slice(50, 300)), (second, slice(360, 600))):
        assert (half[bright] == (200, 150, 100)).all()
    for half, dark in ((first, slice(360, 600)), (second, slice(50, 300))):
        assert half[dark].max() < 100
    np.testing.assert_array_equal(image[0, 0], (200, 150, 100))


def test_five_routers_take_two_rows_of_panels() -> None:
    maps = {layer: np.ones((4, 4), bool) for layer in range(1, 6)}
    one_row = draw_routing(_grey(64, 64), {1: maps[1]}, input_size=(64, 64))
    picture = draw_routing(_grey(64, 64), maps, input_size=(64, 64))
    assert picture.shape[0] == pytest.approx(2 * one_row.shape[0], rel=0.05)
    assert picture.shape[1] == pytest.approx(4 * one_row.shape[1], rel=0.05)


def test_captions_differ_by_layer_and_share() -> None:
    def caption(layer: int, chosen: np.ndarray) -> bytes:
        picture = draw_routing(_grey(64, 64), {layer: chosen}, input_size=(64, 64))
        return picture[:30].tobytes()

    none, every = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert len({caption(1, none), caption(4, none), caption(1, every)}) == 3


def test_no_routing_is_no_picture() -> None:
    with pytest.raises(ValueError, match="keep_ratio"):
        draw_routing(_grey(8, 8), {}, input_size=(8, 8))


def test_a_picture_of_everything_tints_each_mask_and_leaves_the_rest() -> None:
    image = _grey(60, 80)
    masks = [_block(60, 80, slice(5, 40), slice(5, 40)), _block(60, 80, slice(15, 25), slice(15, 25))]
    masks.append(_block(60, 80, slice(45, 58), slice(60, 78)))
    drawn = draw_everything(image, iter(masks))
    assert (image == 100).all()
    places = [(10, 10), (20, 20), (50, 70)]  # of the first alone, of the second above the first, of the third
    assert len({tuple(drawn[place]) for place in places} | {(100, 100, 100)}) == 4
    touched = np.any(masks, axis=0)
    assert (drawn[touched] != 100).any(axis=1).all()
    assert (drawn[0] == 100).all()
    assert (drawn[50, :50] == 100).all()


def test_a_picture_of_nothing_is_the_photograph() -> None:
    assert (draw_everything(_grey(6, 8), []) == _grey(6, 8)).all()
