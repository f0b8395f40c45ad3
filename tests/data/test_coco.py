"""Own photographs and masks in COCO's format, as a training source."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets import annotation, squares, write_annotations, write_dataset, write_images, write_odd_dataset
from sam_blvit.data.coco import Coco
from sam_blvit.data.instances import find_images, read_instances
from sam_blvit.system.files import file_sha256


def source(root: Path) -> Coco:
    return Coco(root / "annotations.json", root)


def test_each_photograph_comes_with_its_own_objects(tmp_path: Path) -> None:
    found = source(write_dataset(tmp_path, (3, 1, 2)))
    assert found.image_ids.tolist() == [1, 2, 3]
    for index, image_id in enumerate((1, 2, 3)):
        read = found.read(index)
        assert read.image_id == image_id
        with Image.open(tmp_path / f"val2017/{image_id}.png") as image:
            np.testing.assert_array_equal(read.pixels, np.asarray(image))
        expected = [(entry["id"], entry["area"]) for entry in squares((image_id,))]
        assert [(one.ann_id, one.area) for one in read.instances] == expected


def test_a_photograph_without_objects_is_there_all_the_same(tmp_path: Path) -> None:
    write_images(tmp_path, (1, 2))
    write_annotations(tmp_path, squares((1,)), (1, 2))
    assert source(tmp_path).read(1).instances == []


def test_crowds_are_counted_and_left_out(tmp_path: Path) -> None:
    write_odd_dataset(tmp_path)
    with pytest.warns(UserWarning, match=r"annotations\.json: 1 crowds of 6 annotations are left out"):
        found = source(tmp_path)
    assert [one.ann_id for one in found.read(1).instances] == [20, 21]


def test_a_location_is_a_path_within_the_directory(tmp_path: Path) -> None:
    assert source(write_dataset(tmp_path)).location(1) == "val2017/2"


def test_the_annotations_are_known_by_their_hash(tmp_path: Path) -> None:
    found = source(write_dataset(tmp_path))
    assert found.annotations_sha256 == file_sha256(tmp_path / "annotations.json")


def test_a_photograph_of_another_size_is_refused_when_it_is_read(tmp_path: Path, refused: Callable[..., Any]) -> None:
    found = source(write_dataset(tmp_path))
    Image.new("RGB", (9, 9)).save(tmp_path / "val2017/2.png")
    with refused(ValueError, r"2\.png is 9 x 9 pixels, its annotations are for 70 x 150"):
        found.read(1)


def test_a_mask_that_cannot_be_drawn_is_refused_at_the_start(tmp_path: Path, refused: Callable[..., Any]) -> None:
    write_images(tmp_path, (1,))
    write_annotations(tmp_path, [*squares((1,)), annotation(77, 1, 4, 4, 9, segmentation="none")], (1,))
    with refused(ValueError, r"annotations\.json: annotation 77: segmentation is malformed"):
        source(tmp_path)


def test_a_photograph_that_is_missing_is_refused_at_the_start(tmp_path: Path, refused: Callable[..., Any]) -> None:
    write_dataset(tmp_path)
    (tmp_path / "val2017/2.png").unlink()
    with refused(ValueError, "1 of 2 photographs are missing"):
        source(tmp_path)


def test_objects_travel_to_another_process_as_bytes(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    found = pickle.loads(pickle.dumps(source(tmp_path)))
    assert [one.ann_id for one in found.read(1).instances] == [20, 21]
    objects = [value for value in vars(found).values() if isinstance(value, list) and not isinstance(value[0], str)]
    assert objects == []


def test_photographs_alone_are_a_source(tmp_path: Path) -> None:
    write_images(tmp_path, (1, 2))
    write_annotations(tmp_path, [], (1, 2))
    found = source(tmp_path)
    assert [found.read(index).instances for index in range(2)] == [[], []]


@pytest.mark.parametrize("data", ["photographs", "elsewhere/../photographs", "elsewhere"])
@pytest.mark.parametrize("relative", [True, False])
def test_training_finds_every_file_name_that_evaluation_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, relative: bool
) -> None:
    write_images(tmp_path / "photographs", (1, 2, 3))
    (tmp_path / "elsewhere").mkdir()
    there = tmp_path / "photographs" / "val2017"
    names = {
        1: f"{there}/1.png",
        2: "../photographs/val2017/2.png",
        3: f"{tmp_path}/elsewhere/../photographs/val2017/3.png",
    }
    content = json.loads(write_annotations(tmp_path, squares((1, 2, 3)), (1, 2, 3)).read_text())
    for entry in content["images"]:
        entry["file_name"] = names[entry["id"]]
    (tmp_path / "own.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    root = Path(data) if relative else tmp_path / data
    found = Coco("own.json", root)
    evaluated = find_images(list(read_instances("own.json").records.values()), root)
    for index, file in enumerate(evaluated):
        np.testing.assert_array_equal(found.read(index).pixels, file.pixels())
    inside = {"photographs": "val2017", "elsewhere/../photographs": "val2017", "elsewhere": "../photographs/val2017"}
    assert [found.location(index) for index in range(3)] == [f"{inside[data]}/{number}" for number in (1, 2, 3)]


def test_file_names_in_directories_are_followed(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    for entry in content["images"]:
        entry["file_name"] = f"val2017/{entry['id']}.png"
        del entry["coco_url"]
    (tmp_path / "own.json").write_text(json.dumps(content))
    assert Coco(tmp_path / "own.json", tmp_path).location(0) == "val2017/1"
