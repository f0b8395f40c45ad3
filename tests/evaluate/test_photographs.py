"""Photographs come in order, resized as segment_anything resizes, with the truth moved along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from segment_anything.utils.transforms import ResizeLongestSide

from sam_blvit.data.instances import ImageFile, Instance
from sam_blvit.evaluate.photographs import Photograph, Truth, by_image, photographs, truth_of
from sam_blvit.evaluate.protocol.perturb import CLEAN, Perturbation, perturbation_named

SIDE = 64
SIZES = {7: (45, 60), 3: (75, 35), 5: (64, 64), 9: (130, 97), 2: (20, 90)}
"""Height and width of the photographs, by image id."""


def instance(ann_id: int, image_id: int, x: int = 2, y: int = 3, side: int = 10) -> Instance:
    """A square object; of side 0, one without a pixel."""
    corners = [x, y, x + side, y, x + side, y + side, x, y + side]
    return Instance(
        ann_id=ann_id,
        image_id=image_id,
        category_id=1,
        area=side**2,
        box=(x, y, side, side),
        crowd=False,
        segmentation=[corners] if side else [],
    )


def square(image_id: int, x: int = 2, y: int = 3, side: int = 10) -> np.ndarray:
    mask = np.zeros(SIZES[image_id], dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


INSTANCES = [instance(70, 7), instance(30, 3, 20, 40, 12), instance(71, 7, 30, 20, 9), instance(50, 5, 40, 41, 23)]


@pytest.fixture
def images(tmp_path: Path) -> list[ImageFile]:
    """Noise of the right sizes on disk."""
    rng = np.random.default_rng(0)
    files = []
    for image_id, (height, width) in SIZES.items():
        path = tmp_path / f"{image_id}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        files.append(ImageFile(image_id, height, width, path))
    return files


def loaded(
    images: Sequence[ImageFile], instances: Sequence[Instance] = INSTANCES, perturbation: Perturbation = CLEAN
) -> list[Photograph]:
    return list(photographs(images, by_image(instances), side=SIDE, perturbation=perturbation))


def pixels_in(image: ImageFile) -> np.ndarray:
    return np.array(Image.open(image.path))


def test_photographs_come_in_the_order_given(images: list[ImageFile]) -> None:
    assert [photograph.image for photograph in loaded(images)] == images
    assert [photograph.image for photograph in loaded(images[::-1])] == images[::-1]


def test_pixels_are_resized_as_by_segment_anything(images: list[ImageFile]) -> None:
    for image, photograph in zip(images, loaded(images), strict=True):
        expected = ResizeLongestSide(SIDE).apply_image(pixels_in(image))
        np.testing.assert_array_equal(photograph.resized, expected)
        np.testing.assert_array_equal(photograph.unperturbed, expected)
        assert max(photograph.resized.shape) == SIDE
        assert photograph.size == SIZES[image.image_id]


def test_a_grey_photograph_becomes_rgb(images: list[ImageFile]) -> None:
    grey = pixels_in(images[0])[..., 0]
    Image.fromarray(grey).save(images[0].path)
    (photograph,) = loaded(images[:1])
    expected = ResizeLongestSide(SIDE).apply_image(np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(photograph.resized, expected)


def test_each_photograph_has_its_own_objects_in_the_order_of_the_annotations(images: list[ImageFile]) -> None:
    found = {photograph.image.image_id: photograph.truths for photograph in loaded(images)}
    assert {image_id: [truth.instance for truth in truths] for image_id, truths in found.items()} == {
        7: [INSTANCES[0], INSTANCES[2]],
        3: [INSTANCES[1]],
        5: [INSTANCES[3]],
        9: [],
        2: [],
    }


def test_masks_and_boxes_are_those_annotated_in_pixels_of_the_photograph(images: list[ImageFile]) -> None:
    first, second = loaded(images)[0].truths
    np.testing.assert_array_equal(first.mask, square(7))
    np.testing.assert_array_equal(second.mask, square(7, 30, 20, 9))
    assert (first.box, second.box) == ((2, 3, 12, 13), (30, 20, 39, 29))


def test_objects_without_a_pixel_are_named_not_returned(images: list[ImageFile]) -> None:
    empty = [instance(1, 7, side=0), INSTANCES[0], instance(2, 7, side=0)]
    (photograph,) = loaded(images[:1], empty)
    assert photograph.skipped_empty == [1, 2]
    assert [truth.instance.ann_id for truth in photograph.truths] == [70]
    assert [photograph.skipped_empty for photograph in loaded(images)] == [[]] * 5


@pytest.mark.parametrize("name", ["dark", "jpeg30", "shift8"])
def test_a_perturbation_changes_what_the_encoder_sees_before_resizing(images: list[ImageFile], name: str) -> None:
    perturbation = perturbation_named(name)
    resize = ResizeLongestSide(SIDE)
    for image, photograph in zip(images, loaded(images, perturbation=perturbation), strict=True):
        pixels = pixels_in(image)
        np.testing.assert_array_equal(photograph.resized, resize.apply_image(perturbation.image(pixels)))
        np.testing.assert_array_equal(photograph.unperturbed, resize.apply_image(pixels))
        assert not np.array_equal(photograph.resized, photograph.unperturbed)


def test_the_truth_moves_with_the_photograph(images: list[ImageFile]) -> None:
    first, second = loaded(images, perturbation=perturbation_named("shift8"))[0].truths
    np.testing.assert_array_equal(first.mask, square(7, 10, 11))
    np.testing.assert_array_equal(second.mask, square(7, 38, 28, 9))
    assert (first.box, second.box) == ((10, 11, 20, 21), (38, 28, 47, 37))


def test_an_object_that_is_moved_across_the_border_is_cut_there(images: list[ImageFile]) -> None:
    shift = perturbation_named("shift18")
    truth = truth_of(instance(1, 7, 20, 5, 30), images[0], shift)  # 60 x 45 pixels
    np.testing.assert_array_equal(truth.mask, square(7, 38, 23, 30))
    assert truth.box == (38, 23, 60, 45)
    assert all(type(corner) is float for corner in truth.box)


def test_a_box_that_was_annotated_beyond_the_border_stays_as_it_is(images: list[ImageFile]) -> None:
    for name in ("clean", "dark"):
        assert truth_of(instance(1, 7, 40, 30, 30), images[0], perturbation_named(name)).box == (40, 30, 70, 60)


def test_an_object_that_is_moved_out_of_the_photograph_is_named_too(images: list[ImageFile]) -> None:
    (photograph,) = loaded(images[2:3], perturbation=perturbation_named("shift24"))
    assert (photograph.truths, photograph.skipped_empty) == ([], [50])


@pytest.mark.parametrize("name", ["clean", "dark"])
def test_a_photograph_of_another_size_stops_at_its_turn_with_one_line(
    images: list[ImageFile], name: str, refused: Callable[..., Any]
) -> None:
    Image.new("RGB", (35, 74)).save(images[1].path)
    found = photographs(images, {}, side=SIDE, perturbation=perturbation_named(name))
    assert next(found).image is images[0]
    with refused(ValueError, "3.png is 35 x 74 pixels, its annotations are for 35 x 75; use the dataset's original"):
        next(found)


def test_a_turned_photograph_is_refused(images: list[ImageFile], refused: Callable[..., Any]) -> None:
    height, width = SIZES[7]
    Image.new("RGB", (height, width)).save(images[0].path)
    with refused(ValueError, "7.png is 45 x 60 pixels, its annotations are for 60 x 45"):
        images[0].pixels()


def test_a_photograph_that_its_exif_turns_is_refused_with_the_cause(
    images: list[ImageFile], refused: Callable[..., Any]
) -> None:
    height, width = SIZES[7]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (width, height)).save(images[0].path, exif=exif)
    with refused(ValueError, "7.png is 45 x 60 pixels, .* for 60 x 45, as before its EXIF orientation 6"):
        images[0].pixels()


def test_a_damaged_photograph_is_named(images: list[ImageFile], refused: Callable[..., Any]) -> None:
    images[0].path.write_bytes(b"no picture")
    with refused(ValueError, "7.png is in no format that Pillow reads"):
        loaded(images)


def test_a_malformed_annotation_is_named(images: list[ImageFile], refused: Callable[..., Any]) -> None:
    broken = Instance(77, 7, 1, 1.0, (0, 0, 1, 1), False, "not a segmentation")
    with refused(ValueError, "annotation 77: segmentation is malformed"):
        loaded(images, [broken])


def test_no_photographs_are_none() -> None:
    assert loaded([]) == []


def test_instances_are_grouped_by_image_in_their_order() -> None:
    groups = by_image(iter(INSTANCES))
    assert groups == {7: [INSTANCES[0], INSTANCES[2]], 3: [INSTANCES[1]], 5: [INSTANCES[3]]}
    assert list(groups) == [7, 3, 5]
    with pytest.raises(KeyError):
        groups[9]


def test_a_truth_may_be_empty(images: list[ImageFile]) -> None:
    truth = truth_of(instance(1, 7, side=0), images[0], CLEAN)
    assert isinstance(truth, Truth)
    assert (truth.mask.shape, truth.mask.any()) == ((45, 60), False)
