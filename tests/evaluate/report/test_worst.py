"""The worst objects' pictures show the object, right, missed and wrong pixels, where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sam_blvit.data.instances import ImageFile, Instance
from sam_blvit.draw.pictures import BOX, MASK, NEGATIVE, OPACITY
from sam_blvit.evaluate.protocol.perturb import CLEAN, Perturbation, perturbation_named
from sam_blvit.evaluate.report.worst import SIDE, BadAnswer, bad_answer, write_worst

GREY = 100
SIZE = (160, 200)
BLUR = 14
"""What JPEG may change of an even colour."""


def instance(ann_id: int, box: tuple[float, float, float, float], *, image_id: int = 1) -> Instance:
    """A rectangle of that box x, y, width, height."""
    x, y, width, height = box
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    return Instance(ann_id, image_id, 5, width * height, box, False, [corners])


def block(x: int, y: int, width: int, height: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = True
    return mask


def grey_file(path: Path, size: tuple[int, int] = SIZE, image_id: int = 1) -> ImageFile:
    Image.new("RGB", size[::-1], (GREY, GREY, GREY)).save(path)
    return ImageFile(image_id, *size, path)


def answer(to: Instance, mask: np.ndarray | None = None, *, iou_box: float = 10.0, piou_box: float = 50.0) -> BadAnswer:
    return bad_answer(to, block(0, 0, 1, 1) if mask is None else mask, iou_box=iou_box, piou_box=piou_box)


def written(
    root: Path,
    answers: list[BadAnswer],
    instances: list[Instance],
    images: list[ImageFile],
    perturbation: Perturbation = CLEAN,
) -> list[dict[str, Any]]:
    """What worst.json says after writing."""
    write_worst(
        root,
        answers,
        images={image.image_id: image for image in images},
        instances={image.image_id: [a for a in instances if a.image_id == image.image_id] for image in images},
        perturbation=perturbation,
    )
    return json.loads((root / "worst" / "worst.json").read_text())


def picture(root: Path, name: str) -> np.ndarray:
    with Image.open(root / "worst" / name) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        return np.array(image).astype(int)


def tinted(colour: tuple[int, int, int], grey: int = GREY) -> np.ndarray:
    return (1 - OPACITY) * grey + OPACITY * np.array(colour)


def test_the_lowest_twenty_are_drawn_ties_by_id(tmp_path: Path) -> None:
    image = grey_file(tmp_path / "1.png")
    ious = {ann_id: float(ann_id * 7 % 5) for ann_id in range(101, 131)}  # six of each of 0 to 4
    objects = [instance(ann_id, (20, 30, 40, 40)) for ann_id in ious]
    answers = [answer(a, iou_box=ious[a.ann_id], piou_box=ious[a.ann_id] + 0.25) for a in objects]
    entries = written(tmp_path, answers[::-1], objects, [image])
    lowest = sorted(ious, key=lambda ann_id: (ious[ann_id], ann_id))[:20]
    names = [f"{rank:02d}_{ann_id}.jpg" for rank, ann_id in enumerate(lowest, start=1)]
    assert entries == [
        {
            "file": name,
            "ann_id": ann_id,
            "image_id": 1,
            "category_id": 5,
            "iou_box": ious[ann_id],
            "piou_box": ious[ann_id] + 0.25,
        }
        for name, ann_id in zip(names, lowest, strict=True)
    ]
    assert sorted(path.name for path in (tmp_path / "worst").iterdir()) == sorted([*names, "worst.json"])


@pytest.mark.parametrize("number", [0, 1, 3])
def test_fewer_are_all_drawn(tmp_path: Path, number: int) -> None:
    objects = [instance(ann_id, (20, 30, 40, 40)) for ann_id in range(number)]
    entries = written(tmp_path, [answer(a) for a in objects], objects, [grey_file(tmp_path / "1.png")])
    names = [f"{ann_id + 1:02d}_{ann_id}.jpg" for ann_id in range(number)]
    assert [entry["file"] for entry in entries] == names
    assert sorted(path.name for path in (tmp_path / "worst").iterdir()) == [*names, "worst.json"]


def test_right_missed_and_wrong_pixels_have_colours_of_their_own(tmp_path: Path) -> None:
    image, truth = grey_file(tmp_path / "1.png"), instance(9, (60, 50, 40, 40))
    written(tmp_path, [answer(truth, block(40, 60, 40, 20))], [truth], [image])
    shown = picture(tmp_path, "01_9.jpg")
    assert shown.shape == (SIDE, SIDE, 3)  # the box and 24 pixels around it, 88 x 88 from 36, 26
    places = {
        (70, 70): tinted(MASK),
        (90, 70): tinted(BOX),
        (70, 55): tinted(BOX),
        (50, 70): tinted(NEGATIVE),
        (50, 35): (GREY,) * 3,
        (110, 100): (GREY,) * 3,
    }
    for (x, y), colour in places.items():
        column, row = round((x - 36 + 0.5) * SIDE / 88), round((y - 26 + 0.5) * SIDE / 88)
        assert np.abs(shown[row, column] - colour).max() < BLUR


def test_the_prompted_box_is_drawn(tmp_path: Path) -> None:
    image, truth = grey_file(tmp_path / "1.png"), instance(9, (60, 50, 40, 40))
    written(tmp_path, [answer(truth)], [truth], [image])
    shown = picture(tmp_path, "01_9.jpg")
    low, high = round(24 * SIDE / 88), round(64 * SIDE / 88)
    for row, column in ((low, 160), (high, 160), (160, low), (160, high)):
        assert np.abs(shown[row, column] - BOX).max() < 60  # a thin line in JPEG
        assert shown[row, column, 0] - shown[row, column, 2] > 100


def test_the_margin_grows_with_the_object(tmp_path: Path) -> None:
    image, truth = grey_file(tmp_path / "1.png", (400, 600)), instance(9, (200, 150, 100, 60))
    written(tmp_path, [answer(truth, block(200, 150, 100, 60, (400, 600)))], [truth], [image])
    shown = picture(tmp_path, "01_9.jpg")
    assert shown.shape == (256, 320, 3)  # 200 x 160 pixels, 50 around the box
    blue = np.abs(shown - tinted(MASK)).max(axis=-1) < BLUR
    rows, columns = np.flatnonzero(blue.any(axis=1)), np.flatnonzero(blue.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == pytest.approx((80, 176, 80, 240), abs=8)


def test_each_object_is_drawn_on_its_own_photograph(tmp_path: Path) -> None:
    images = [grey_file(tmp_path / "1.png"), grey_file(tmp_path / "2.png", image_id=2)]
    Image.new("RGB", SIZE[::-1], (200, 200, 200)).save(images[1].path)
    objects = [instance(8, (60, 50, 40, 40)), instance(9, (60, 50, 40, 40), image_id=2)]
    entries = written(tmp_path, [answer(a) for a in objects], objects, images)
    assert [entry["image_id"] for entry in entries] == [1, 2]
    assert picture(tmp_path, "01_8.jpg")[5, 5] == pytest.approx(GREY, abs=BLUR)
    assert picture(tmp_path, "02_9.jpg")[5, 5] == pytest.approx(200, abs=BLUR)


def test_a_perturbed_photograph_is_shown_as_the_model_saw_it(tmp_path: Path) -> None:
    image, truth = grey_file(tmp_path / "1.png"), instance(9, (60, 50, 40, 40))
    written(tmp_path, [answer(truth)], [truth], [image], perturbation_named("dark"))
    shown = picture(tmp_path, "01_9.jpg")
    assert shown[5, 5] == pytest.approx(GREY // 4, abs=BLUR)
    assert np.abs(shown[160, 160] - tinted(BOX, GREY // 4)).max() < BLUR


def test_what_is_shown_moves_with_the_photograph(tmp_path: Path) -> None:
    image, truth = grey_file(tmp_path / "1.png"), instance(9, (60, 50, 40, 40))
    mask = block(80, 70, 40, 20)  # moved by 20, the upper half of the object
    written(tmp_path, [answer(truth, mask)], [truth], [image], perturbation_named("shift20"))
    shown = picture(tmp_path, "01_9.jpg")
    assert shown.shape == (SIDE, SIDE, 3)  # 88 x 88 from 56, 46
    for (x, y), colour in {(100, 80): MASK, (100, 100): BOX}.items():
        column, row = round((x - 56 + 0.5) * SIDE / 88), round((y - 46 + 0.5) * SIDE / 88)
        assert np.abs(shown[row, column] - tinted(colour)).max() < BLUR


# the box x, y, width, height; what is shown of the photograph as columns and rows; and a pixel x, y of the object
BORDERS = {
    "the whole image": ((0, 0, 200, 160), (0, 200), (0, 160), (100, 80)),
    "the upper left corner": ((0, 0, 40, 40), (0, 64), (0, 64), (20, 20)),
    "the lower right corner": ((160, 120, 40, 40), (136, 200), (96, 160), (180, 140)),
    "partly beyond the right": ((180, 60, 60, 20), (150, 200), (30, 110), (190, 70)),
    "partly beyond the upper left": ((-30, -20, 60, 40), (0, 60), (0, 50), (15, 10)),
    "one pixel": ((100, 80, 1, 1), (76, 125), (56, 105), (100, 80)),
}


@pytest.mark.parametrize("where", BORDERS)
def test_an_object_at_the_border_or_tiny_is_shown_in_its_place(tmp_path: Path, where: str) -> None:
    box, columns, rows, (x, y) = BORDERS[where]
    truth = instance(9, box)
    written(tmp_path, [answer(truth)], [truth], [grey_file(tmp_path / "1.png")])
    shown = picture(tmp_path, "01_9.jpg")
    width, height = columns[1] - columns[0], rows[1] - rows[0]
    scale = SIDE / max(width, height)
    assert shown.shape == (round(scale * height), round(scale * width), 3)
    column, row = round((x - columns[0] + 0.5) * scale), round((y - rows[0] + 0.5) * scale)
    assert shown[row, column, 0] - shown[row, column, 2] > 50  # yellow, missed; of one pixel the frame covers much


OUTSIDE = {
    "a point": (100, 80, 0, 0),
    "a fraction of a pixel": (100.25, 80.5, 0.5, 0.25),
    "the last corner": (200, 160, 0, 0),
    "after the image": (300, 300, 20, 20),
    "before the image": (-90, -90, 20, 20),
    "beside the image": (-90, 60, 20, 20),
}


@pytest.mark.parametrize("where", OUTSIDE)
def test_a_box_of_next_to_nothing_or_outside_shows_what_is_nearest(tmp_path: Path, where: str) -> None:
    truth = instance(9, OUTSIDE[where])
    nothing = np.zeros(SIZE, dtype=bool)
    written(tmp_path, [answer(truth, nothing)], [truth], [grey_file(tmp_path / "1.png")])
    shown = picture(tmp_path, "01_9.jpg")
    assert max(shown.shape[:2]) == SIDE
    assert np.median(shown) == pytest.approx(GREY, abs=BLUR)


def test_a_photograph_of_one_pixel_has_a_picture(tmp_path: Path) -> None:
    truth = instance(9, (0, 0, 1, 1))
    image = grey_file(tmp_path / "1.png", (1, 1))
    written(tmp_path, [answer(truth, np.ones((1, 1), dtype=bool))], [truth], [image])
    assert picture(tmp_path, "01_9.jpg")[160, 160] == pytest.approx(tinted(MASK), abs=BLUR)


def test_an_answer_keeps_its_mask_as_coco_run_lengths() -> None:
    mask = np.random.default_rng(0).random((9, 13)) < 0.4
    bad = bad_answer(instance(9, (1, 2, 3, 4), image_id=4), mask, iou_box=12.5, piou_box=80.25)
    assert (bad.ann_id, bad.image_id, bad.category_id, bad.iou_box, bad.piou_box) == (9, 4, 5, 12.5, 80.25)
    json.dumps(bad.counts)
    decoded = coco_mask.decode({"size": [9, 13], "counts": bad.counts.encode()})
    np.testing.assert_array_equal(decoded.astype(bool), mask)
