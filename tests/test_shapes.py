"""Photographs with pasted shapes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam_blvit.config import ShapesConfig
from sam_blvit.data.annotated import Annotated
from sam_blvit.data.sa1b import Sa1b
from sam_blvit.data.shapes import FIRST_ID, LEAST_PIXELS, make_shapes
from synthetic import write_flat

SIZE = (96, 128)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_flat(tmp_path / "photographs", range(3), size=SIZE, masks=1)


def made(photographs: Path, output: Path, **settings: Any) -> list[Annotated]:
    make_shapes(ShapesConfig(data=photographs, output=output, **{"images": 4, "shapes": 12, **settings}))
    source = Sa1b(output)
    return [source.read(index) for index in range(len(source))]


def masks_of(photograph: Annotated) -> np.ndarray:
    return np.stack([instance.mask(*photograph.pixels.shape[:2]).astype(bool) for instance in photograph.instances])


def test_they_are_read_as_sa1b_is(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = made(photographs, tmp_path / "shapes")
    assert [one.image_id for one in found] == [FIRST_ID + i for i in range(4)]
    assert all(one.pixels.shape == (*SIZE, 3) for one in found)
    masks = sum(len(one.instances) for one in found)
    out = capsys.readouterr().out
    assert f"4 photographs, {masks} masks; {4 * 12 - masks} shapes are covered by others and left out" in out
    assert 4 * 6 < masks < 4 * 12


def test_masks_are_what_is_seen_and_no_pixel_is_in_two(photographs: Path, tmp_path: Path) -> None:
    for one in made(photographs, tmp_path / "shapes"):
        masks = masks_of(one)
        assert masks.sum(0).max() == 1
        assert masks.sum((1, 2)).min() >= LEAST_PIXELS


def test_outside_of_all_shapes_the_photograph_is_there_and_inside_another_one(tmp_path: Path) -> None:
    write_flat(tmp_path / "photographs", range(2), size=SIZE, masks=0)
    grounds = [Sa1b(tmp_path / "photographs").read(i).pixels.astype(int) for i in range(2)]
    for one in made(tmp_path / "photographs", tmp_path / "shapes", images=3, shapes=3):
        outside = ~masks_of(one).any(0)
        outside[-1], outside[:, -1] = False, False
        apart = [np.abs(one.pixels.astype(int) - ground)[outside].mean() for ground in grounds]
        assert min(apart) < 6 < max(apart)


def test_shapes_are_of_many_sizes_and_fill_their_boxes_differently(photographs: Path, tmp_path: Path) -> None:
    sides, filled = [], []
    for one in made(photographs, tmp_path / "shapes", images=20):
        for instance, mask in zip(one.instances, masks_of(one), strict=True):
            sides.append(mask.sum() ** 0.5 / min(SIZE))
            filled.append(mask.sum() / (instance.box[2] * instance.box[3]))
    assert min(sides) < 0.15
    assert max(sides) > 0.45
    assert min(filled) < 0.4
    assert max(filled) > 0.98


def test_a_photograph_depends_on_the_seed_and_its_number_alone(photographs: Path, tmp_path: Path) -> None:
    few, many, other = (
        made(photographs, tmp_path / name, images=images, seed=seed)[0]
        for name, images, seed in (("few", 1, 0), ("many", 3, 0), ("other", 1, 1))
    )
    assert np.array_equal(few.pixels, many.pixels)
    assert np.array_equal(masks_of(few), masks_of(many))
    assert few.pixels.shape != other.pixels.shape or not np.array_equal(few.pixels, other.pixels)


def test_it_wants_two_photographs(refused: Callable[..., Any], tmp_path: Path) -> None:
    write_flat(tmp_path / "photographs", range(1))
    with refused(ValueError, match="holds 1 photograph; shapes are filled with another one's pieces"):
        made(tmp_path / "photographs", tmp_path / "shapes")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 0}, "images=0 is not a positive number"),
        ({"shapes": 0}, "shapes=0 is not a positive number"),
        ({"holdout": 2}, "holdout=2: no effect, shapes may lie on any photograph; use exclude"),
    ],
)
def test_settings_without_sense_are_refused(
    refused: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    with refused(ValueError, match=message):
        ShapesConfig(data=Path("data"), output=Path("out"), **settings)
