"""Annotations as people have them: every format is read, every mistake stops with one line."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sam_blvit.data.instances import ImageRecord, Instance, find_images, read_instances
from sam_blvit.data.segmentation import run_lengths
from sam_blvit.system.files import file_sha256

REAL = Path(__file__).parents[3] / "shared" / "data" / "real_eval"
HEIGHT, WIDTH = 10, 12
SQUARE = [[2, 3, 7, 3, 7, 8, 2, 8]]


def instance(segmentation: Any) -> Instance:
    return Instance(5, 1, 1, area=25.0, box=(2.0, 3.0, 5.0, 5.0), crowd=False, segmentation=segmentation)


def entry(**fields: Any) -> dict[str, Any]:
    whole = {"id": 5, "image_id": 1, "category_id": 2, "bbox": [2, 3, 5, 5], "area": 25, "segmentation": SQUARE}
    return {name: value for name, value in {**whole, **fields}.items() if value is not ...}


def image(**fields: Any) -> dict[str, Any]:
    whole = {"id": 1, "height": HEIGHT, "width": WIDTH, "file_name": "one.jpg"}
    return {name: value for name, value in {**whole, **fields}.items() if value is not ...}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(images: list[Any], annotations: list[Any]) -> Path:
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations}))
        return path

    return written


def blob() -> np.ndarray:
    """A mask with holes and a run that crosses columns."""
    return np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.4


def test_polygons_are_rasterised_as_pycocotools_does() -> None:
    two = [*SQUARE, [8, 1, 11, 1, 11, 4]]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(two, HEIGHT, WIDTH)))
    mask = instance(two).mask(HEIGHT, WIDTH)
    assert mask.dtype == bool
    assert mask.sum() > instance(SQUARE).mask(HEIGHT, WIDTH).sum()
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("as_text", [True, False])
def test_compressed_run_lengths_give_the_mask_they_were_made_from(as_text: bool) -> None:
    packed = coco_mask.encode(np.asfortranarray(blob(), dtype=np.uint8))
    counts = packed["counts"].decode() if as_text else packed["counts"]
    mask = instance({"size": [HEIGHT, WIDTH], "counts": counts}).mask(HEIGHT, WIDTH)
    np.testing.assert_array_equal(mask, blob())


def test_plain_run_lengths_go_down_the_columns() -> None:
    mask = instance({"size": [HEIGHT, WIDTH], "counts": [15, 7, 98]}).mask(HEIGHT, WIDTH)
    assert mask.sum() == 7
    assert mask[5:, 1].all()
    assert mask[:2, 2].all()


@pytest.mark.parametrize("height", [7, 300])
def test_run_lengths_unpack_as_packed(height: int) -> None:
    mask = np.random.default_rng(1).random((height, 50)) < 0.02
    changes = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False))
    packed = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert run_lengths(packed["counts"]) == np.diff([0, *changes, mask.size]).tolist()


@pytest.mark.parametrize("nothing", [[], [[]], [[1, 2]], [[1, 1, 4, 4]], [[5.4, 5.4, 5.4, 5.4, 5.4, 5.4]]])
def test_what_encloses_nothing_has_no_pixel(nothing: Any) -> None:
    mask = instance(nothing).mask(HEIGHT, WIDTH)
    assert mask.shape == (HEIGHT, WIDTH)
    assert not mask.any()


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ("junk", "str instead of polygons"),
        (None, "NoneType instead of polygons"),
        ([5], "5 is not a list of x and y"),
        ([{}], "{} is not a list of x and y"),
        (["", SQUARE[0]], "'' is not a list of x and y"),
        ([["a", 1, 2, 3, 4, 5]], "'a' is not a finite number"),
        ([[1, 1, 4, 1, 4, float("nan")]], "nan is not a finite number"),
        ([[1, 1, 4, 1, 4]], "polygon of 5 numbers"),
        ([[1, 1, 4, 1, 4, 1e12]], "polygon reaches 1e[+]12, far outside 12 x 10"),
        ({"counts": [120]}, "no 'size'"),
        ({"size": [10, 12]}, "no 'counts'"),
        ({"size": [12, 10], "counts": [120]}, r"size \[12, 10\] instead of \[10, 12\]"),
        ({"size": [10, 12], "counts": [60, 10]}, "cover 70 of 120 pixels"),
        ({"size": [10, 12], "counts": [-5, 125]}, "-5 is not a whole number"),
        ({"size": [10, 12], "counts": [1.5, 118.5]}, "1.5 is not a whole number"),
        ({"size": [10, 12], "counts": []}, "cover 0 of 120 pixels"),
        ({"size": [10, 12], "counts": ""}, "cover 0 of 120 pixels"),
        ({"size": [10, 12], "counts": "h3n0"}, "cover 150 of 120 pixels"),
        ({"size": [10, 12], "counts": "h"}, "end in the middle of a number"),
        ({"size": [10, 12], "counts": 7}, "no attribute 'encode'"),
    ],
)
def test_a_malformed_segmentation_names_its_annotation(segmentation: Any, reason: str, refused: Any) -> None:
    with refused(ValueError, f"annotation 5: segmentation is malformed .*{reason}"):
        instance(segmentation).mask(HEIGHT, WIDTH)


def test_coco_and_lvis_entries_are_read(write: Any) -> None:
    lvis = image(id=2, file_name=..., coco_url="http://images.cocodataset.org/train2017/two.jpg")
    path = write([image(), lvis], [entry(), entry(id=6, image_id=2, iscrowd=1)])
    dataset = read_instances(path)
    images, (first, second) = dataset.records, dataset.instances
    assert images[1] == ImageRecord(1, HEIGHT, WIDTH, name="one.jpg", split="")
    assert images[2] == ImageRecord(2, HEIGHT, WIDTH, name="two.jpg", split="train2017")
    assert (first.ann_id, first.category_id, first.area, first.box) == (5, 2, 25.0, (2.0, 3.0, 5.0, 5.0))
    assert (first.crowd, second.crowd) == (False, True)


def test_a_dataset_keeps_the_content_and_the_hash_of_its_file(write: Any) -> None:
    path = write([image(license=3)], [entry(), entry(id=6)])
    dataset = read_instances(path)
    assert dataset.content == json.loads(path.read_text())
    assert dataset.identity == {"file": "annotations.json", "sha256": file_sha256(path)}


@pytest.mark.parametrize(
    ("value", "crowd"), [(0, False), (1, True), (False, False), (True, True), (None, False), (..., False)]
)
def test_a_crowd_is_one_by_number_or_truth(write: Any, value: Any, crowd: bool) -> None:
    (found,) = read_instances(write([image()], [entry(iscrowd=value)])).instances
    assert found.crowd is crowd


@pytest.mark.parametrize("value", ["0", "1", "false", "no", "", -1, 2, 0.5, 1.0, float("nan"), [], [0], {}])
def test_any_other_crowd_is_named(write: Any, value: Any, refused: Any) -> None:
    problem = f"annotation 5 is malformed ({value!r} is not 0, 1, true, false or null; write 1 for a crowd"
    with refused(ValueError, re.escape(problem)):
        read_instances(write([image()], [entry(iscrowd=value)]))


@pytest.mark.parametrize("area", [0, -1, HEIGHT * WIDTH, 25])
@pytest.mark.parametrize(
    ("segmentation", "pixels"),
    [
        (SQUARE, 25),
        ([*SQUARE, [9, 1, 11, 1, 11, 3, 9, 3]], 29),
        ([], 0),
        ({"size": [HEIGHT, WIDTH], "counts": [15, 7, 98]}, 7),
        (coco_mask.encode(np.ones((HEIGHT, WIDTH), dtype=np.uint8, order="F")), HEIGHT * WIDTH),
    ],
)
def test_pixels_are_counted_whatever_the_annotated_area(segmentation: Any, pixels: int, area: float) -> None:
    one = replace(instance(segmentation), area=area)
    assert one.pixels(HEIGHT, WIDTH) == one.mask(HEIGHT, WIDTH).sum() == pixels


def test_photographs_alone_are_read_where_that_is_asked_for(write: Any) -> None:
    dataset = read_instances(write([image()], []), may_be_empty=True)
    assert (list(dataset.records), dataset.instances) == ([1], [])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not JSON .Expecting property name"),
        ("[]", "has no list 'images'"),
        ('{"images": [1]}', "has no list 'annotations'"),
        ('{"images": [], "annotations": [1]}', "empty list 'images'"),
        ('{"images": [1], "annotations": []}', "empty list 'annotations'"),
        (b"\xff\xfe\x1f\x8b", "is not JSON"),
    ],
)
def test_what_is_no_annotation_file_is_refused(
    tmp_path: Path, content: str | bytes, problem: str, refused: Any
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(ValueError, f"a.json .*{problem}"):
        read_instances(path)


def test_a_missing_annotation_file_is_refused(tmp_path: Path, refused: Any) -> None:
    with refused(ValueError, "none.json is not a file"):
        read_instances(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("images", "annotations", "problem"),
    [
        ([image(height=...)], [entry()], "image 1 is malformed .no 'height'"),
        ([image(width="12")], [entry()], "image 1 is malformed .'12' is not a whole number"),
        ([image(file_name=...)], [entry()], "image 1 is malformed .neither file_name nor coco_url"),
        ([image(file_name=7)], [entry()], "image 1 is malformed"),
        ([7], [entry()], "image 7 is malformed"),
        ([image()], [entry(bbox=...)], "annotation 5 is malformed .no 'bbox'"),
        ([image()], [entry(area=...)], "annotation 5 is malformed .no 'area'"),
        ([image()], [entry(segmentation=...)], "annotation 5 is malformed .no 'segmentation'"),
        (
            [image()],
            [entry(bbox=[1, 2, 3])],
            "annotation 5 is malformed .*1, 2, 3.* is not x, y, width, height in bbox",
        ),
        ([image()], [entry(bbox=[1, 2, -3, 4])], "annotation 5 is malformed .*1, 2, -3, 4.* is inside out"),
        ([image()], [entry(bbox=[1, 2, 3, float("inf")])], "annotation 5 is malformed .inf is not a finite"),
        ([image()], [entry(area=10**400)], "annotation 5 is malformed .10+ is not a finite"),
        ([image()], [entry(id="a")], "annotation 'a' is malformed .'a' is not a whole number"),
        ([image()], [entry(id="a\nb")], r"annotation 'a\\nb' is malformed"),
        ([image(height=0)], [entry()], "image 1 is malformed .0 is not a number of pixels in height"),
        ([image(height=2**16, width=2**16)], [entry()], "image 1 is malformed .65536 x 65536 pixels are too many"),
        ([image(file_name=["one.jpg"])], [entry()], "image 1 is malformed ...one.jpg.. is not text in file_name"),
        (
            [image(id=2**63)],
            [entry()],
            "image 9223372036854775808 is malformed .* is not below 2..63; number from 1 up",
        ),
        ([image()], [entry(id=2**63)], "annotation 9223372036854775808 is malformed .* is not below 2..63"),
        ([image()], [entry(category_id=2**63)], "annotation 5 is malformed .* is not below 2..63.* in category_id"),
        ([image(id=1.5)], [entry()], "image 1.5 is malformed .1.5 is not a whole number"),
        ([image()], [entry(id=-1)], "annotation -1 is malformed .-1 is not a whole number"),
        ([image()], [entry(id=...)], "annotation without id is malformed"),
        ([image()], ["x"], "annotation 'x' is malformed"),
        ([image()], [entry(image_id=9)], "annotation 5 is of image 9, which is not listed"),
        ([image()], [entry(), entry()], "annotation id 5 is given 2 times"),
        ([image(), image()], [entry()], "image id 1 is given 2 times"),
    ],
)
def test_a_malformed_entry_is_named(
    write: Any, images: list[Any], annotations: list[Any], problem: str, refused: Any
) -> None:
    with refused(ValueError, f"annotations.json: {problem}"):
        read_instances(write(images, annotations))


def place(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


RECORD = ImageRecord(1, HEIGHT, WIDTH, name="1.jpg", split="val2017")


def test_the_split_comes_before_the_merged_directory_and_the_root(tmp_path: Path) -> None:
    for place_, others in (("1.jpg", ()), ("trainval/1.jpg", ()), ("val2017/1.jpg", ("train2017/1.jpg",))):
        place(tmp_path, place_, *others)
        (file,) = find_images([RECORD], tmp_path)
        assert file.path == tmp_path / place_
    assert (file.image_id, file.height, file.width) == (1, HEIGHT, WIDTH)


def test_another_split_is_not_looked_into(tmp_path: Path, refused: Any) -> None:
    place(tmp_path, "train2017/1.jpg")
    with refused(ValueError, "1 of 1 photographs are missing"):
        find_images([RECORD], tmp_path)


def test_a_name_of_coco_2014_finds_the_file_of_2017(tmp_path: Path) -> None:
    place(tmp_path, "val2017/000000000001.jpg")
    record = ImageRecord(1, HEIGHT, WIDTH, name="COCO_val2014_000000000001.jpg", split="val2017")
    assert find_images([record], tmp_path)[0].path == tmp_path / "val2017" / "000000000001.jpg"


def test_missing_photographs_are_counted_by_split_and_the_remedy_is_named(tmp_path: Path, refused: Any) -> None:
    place(tmp_path, "val2017/0.jpg")
    records = [ImageRecord(i, 1, 1, f"{i}.jpg", "train2017" if i else "val2017") for i in range(6)]
    with refused(ValueError, "5 of 6 photographs are missing .train2017: 5.") as error:
        find_images([*records], tmp_path)
    message = str(error.value)
    assert "first train2017/1.jpg, train2017/2.jpg, train2017/3.jpg; " in message
    assert "train2017/4.jpg" not in message
    assert "LVIS needs COCO's train2017 and val2017" in message


@pytest.mark.data
@pytest.mark.parametrize(("name", "sizes"), [("instances.json", (202, 1675)), ("lvis_val_9.json", (9, 55))])
def test_real_masks_equal_those_of_cocos_own_reader(name: str, sizes: tuple[int, int]) -> None:
    dataset = read_instances(REAL / name)
    assert (len(dataset.records), len(dataset.instances)) == sizes
    coco = COCO(REAL / name)
    crowds = [i for i in dataset.instances if i.crowd][:2]
    for one in [*dataset.instances[:15], *crowds]:
        record = dataset.records[one.image_id]
        np.testing.assert_array_equal(one.mask(record.height, record.width), coco.annToMask(coco.anns[one.ann_id]))


@pytest.mark.data
def test_real_photographs_are_found() -> None:
    dataset = read_instances(REAL / "instances.json")
    assert len(find_images(list(dataset.records.values()), REAL / "images")) == 202
