"""Each perturbation does what its name says, to the pixels and to the truth alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam_blvit.evaluate.protocol.perturb import CLEAN, perturbation_named, perturbations_named

NAMES = ["clean", "dark", "jpeg30", "blur1", "shift2"]
BOX = (1.5, 2.0, 4.0, 6.25)


@pytest.fixture
def pixels() -> np.ndarray:
    """(5, 7, 3) with no two rows, columns or channels alike."""
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    return np.random.default_rng(1).random((5, 7)) < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_photograph_keeps_its_size_and_the_original_stays_as_it_was(name: str, pixels: np.ndarray) -> None:
    before = pixels.copy()
    changed = perturbation_named(name).image(pixels)
    assert (changed.shape, changed.dtype) == ((5, 7, 3), np.uint8)
    np.testing.assert_array_equal(pixels, before)
    assert np.array_equal(changed, before) == (name == "clean")


@pytest.mark.parametrize("name", ["clean", "dark", "jpeg30", "blur1"])
def test_where_nothing_moves_the_truth_stays(name: str, mask: np.ndarray) -> None:
    perturbation = perturbation_named(name)
    np.testing.assert_array_equal(perturbation.mask(mask), mask)
    assert perturbation.box(BOX) == BOX


@pytest.mark.parametrize("by", [1, 2, 4, 5, 6, 7, 9000])
def test_a_shift_moves_right_and_down_and_repeats_the_edge(by: int, pixels: np.ndarray, mask: np.ndarray) -> None:
    perturbation = perturbation_named(f"shift{by}")
    changed, moved = perturbation.image(pixels), perturbation.mask(mask)
    for y, x in np.ndindex(5, 7):
        np.testing.assert_array_equal(changed[y, x], pixels[max(y - by, 0), max(x - by, 0)])
        assert moved[y, x] == (y >= by and x >= by and mask[y - by, x - by])
    assert perturbation.box(BOX) == (1.5 + by, 2.0 + by, 4.0 + by, 6.25 + by)


@pytest.mark.parametrize("ordered", [np.ascontiguousarray, np.asfortranarray])
def test_a_mask_comes_back_in_rows_and_leaves_the_original(ordered: Callable, mask: np.ndarray) -> None:
    given = ordered(mask)
    moved = perturbation_named("shift1").mask(given)
    assert moved.flags.c_contiguous
    np.testing.assert_array_equal(moved[1:, 1:], mask[:-1, :-1])
    np.testing.assert_array_equal(given, mask)


def test_dark_is_a_quarter_of_every_value(pixels: np.ndarray) -> None:
    expected = [[[value // 4 for value in pixel] for pixel in row] for row in pixels.tolist()]
    assert perturbation_named("dark").image(pixels).tolist() == expected


@pytest.mark.parametrize("quality", [1, 30, 95])
def test_jpeg_is_what_a_file_of_that_quality_holds(tmp_path: Path, pixels: np.ndarray, quality: int) -> None:
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=quality)
    with Image.open(tmp_path / "photo.jpg") as stored:
        np.testing.assert_array_equal(perturbation_named(f"jpeg{quality}").image(pixels), np.asarray(stored))


def test_blur_spreads_an_edge_over_its_radius() -> None:
    point = np.zeros((41, 41, 3), dtype=np.uint8)
    point[20, 20] = 255
    wide = np.full((41, 41, 3), 90, dtype=np.uint8)
    np.testing.assert_array_equal(perturbation_named("blur3").image(wide), wide)
    edge = np.zeros((1, 41, 3), dtype=np.uint8)
    edge[:, 20:] = 255
    for radius in (2, 4):
        values = perturbation_named(f"blur{radius}").image(np.repeat(edge, 41, axis=0))[20, :, 0] / 255
        assert values[20 + radius] - values[20] == pytest.approx(0.34, abs=0.06)  # one standard deviation
        assert (np.diff(values) >= 0).all()
    assert perturbation_named("blur1").image(point)[20, 20, 0] < 255 / 3


WRONG_JPEG = ["jpeg", "jpeg0", "jpeg96", "jpeg100", "jpeg030", "jpeg-3", "jpeg30\n"]
WRONG_BLUR = ["blur", "blur0", "blur100", "blur1.5", "blur01"]
WRONG_SHIFT = ["shift", "shift0", "shift-8", "shift10000", "shift8.5", "shift8px", "shift\N{ARABIC-INDIC DIGIT THREE}"]


@pytest.mark.parametrize("name", [*WRONG_JPEG, *WRONG_SHIFT, *WRONG_BLUR, "", "Clean", "dark2"])
def test_another_name_is_refused_with_the_forms_of_names(name: str, refused: Any) -> None:
    with refused(
        ValueError, "clean, dark, jpeg<quality from 1 to 95>, blur<radius from 1 to 99> and shift<pix"
    ) as error:
        perturbation_named(name)
    assert f"no perturbation named {name!r};" in str(error.value)


@pytest.mark.parametrize("name", [*NAMES, "jpeg1", "jpeg9", "jpeg10", "jpeg89", "jpeg95", "blur99", "shift9999"])
def test_a_perturbation_goes_by_the_name_that_it_was_asked_for(name: str) -> None:
    assert perturbation_named(name).name == name


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ([], ["clean"]),
        (["jpeg30", "shift8"], ["clean", "jpeg30", "shift8"]),
        (["shift8,jpeg30", "dark"], ["clean", "shift8", "jpeg30", "dark"]),
        (["dark, jpeg30"], ["clean", "dark", "jpeg30"]),
        (["dark", "clean,clean"], ["clean", "dark"]),
        (["dark,jpeg30", "dark"], ["clean", "dark", "jpeg30"]),
    ],
)
def test_lists_are_split_and_clean_comes_first_and_once(text: list[str], names: list[str]) -> None:
    perturbations = perturbations_named(text)
    assert [perturbation.name for perturbation in perturbations] == names
    assert perturbations[0] is CLEAN


def test_one_unknown_name_of_many_is_refused(refused: Any) -> None:
    with refused(ValueError, "'blur'"):
        perturbations_named(["dark,blur"])
