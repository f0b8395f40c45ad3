"""SA-1B in each of its layouts, and what is said where it is not whole."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam_blvit.data.sa1b import Sa1b, tar_names
from synthetic import sa1b_files, write_flat, write_split, write_tar

DATA = Path(__file__).parents[3] / "shared" / "data" / "real_train"


def packed(root: Path) -> Path:
    write_tar(root / "sa_000001.tar", range(3))
    write_tar(root / "sa_000000.tar", range(3, 5))
    return root


def halves(root: Path) -> Path:
    write_split(root, range(3), split="train")
    return write_split(root, range(3, 5), split="val")


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "tars": (packed, "sa_000001.tar", "sa_000000.tar"),
    "flat": (lambda root: write_flat(root, range(5)), "sa_0", "sa_4"),
    "split": (lambda root: write_split(root, range(5)), "images/sa_0", "images/sa_4"),
    "train and val": (halves, "images/train/sa_0", "images/val/sa_4"),
    "masks": (lambda root: write_split(root, range(5), annotations="masks"), "images/sa_0", "images/sa_4"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_same_photographs_and_masks(tmp_path: Path, layout: str) -> None:
    write, first, last = LAYOUTS[layout]
    source = Sa1b(write(tmp_path))
    assert source.image_ids.tolist() == [0, 1, 2, 3, 4]
    assert [source.location(index) for index in (0, 4)] == [first, last]
    for index in range(5):
        files = sa1b_files(index)
        found = source.read(index)
        with Image.open(io.BytesIO(files[f"sa_{index}.jpg"])) as image:
            np.testing.assert_array_equal(found.pixels, np.asarray(image))
        entries = json.loads(files[f"sa_{index}.json"])["annotations"]
        assert [(one.ann_id, one.area, list(one.box)) for one in found.instances] == [
            (entry["id"], entry["area"], entry["bbox"]) for entry in entries
        ]
        assert [int(one.mask(48, 64).sum()) for one in found.instances] == [entry["area"] for entry in entries]


def test_nothing_is_listed_after_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Sa1b(write_split(tmp_path, range(3)))

    def listed(*_: object) -> None:
        raise AssertionError("a directory was listed")

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, listed)
    assert source.read(2).image_id == 2


def test_a_source_travels_to_another_process_as_arrays(tmp_path: Path) -> None:
    small = len(pickle.dumps(Sa1b(write_flat(tmp_path / "few", range(2), size=(8, 8), masks=0))))
    large = len(pickle.dumps(Sa1b(write_flat(tmp_path / "many", range(202), size=(8, 8), masks=0))))
    assert (large - small) / 200 < 64  # bytes a photograph; a path alone takes more


def test_only_the_tars_that_are_named_are_looked_into(tmp_path: Path) -> None:
    packed(tmp_path)
    (tmp_path / "sa_000002.tar").write_bytes(b"no tar")
    assert Sa1b(tmp_path, tars=["sa_000000.tar"]).image_ids.tolist() == [3, 4]


def test_names_of_tars_are_in_order_without_hidden_ones(tmp_path: Path) -> None:
    packed(tmp_path)
    (tmp_path / "._sa_000000.tar").touch()
    assert tar_names(tmp_path) == ["sa_000000.tar", "sa_000001.tar"]


def test_files_beside_tars_are_counted_and_left_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "sa_000000.tar", range(2))
    write_flat(tmp_path, range(5, 8))
    with pytest.warns(UserWarning, match=r"holds 1 \.tar files, so 6 files beside them are left out"):
        assert Sa1b(tmp_path).image_ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (lambda root, ids, i: write_tar(root / f"sa_00000{i}.tar", ids), r"sa_1 is both in .*0\.tar and in .*1\.tar"),
        (
            lambda root, ids, i: write_split(root, ids, split=("train", "val")[i]),
            "sa_1 is both in .*images/train and in .*images/val",
        ),
    ],
)
def test_an_image_that_is_there_twice_is_named(
    tmp_path: Path, write: Callable[..., object], line: str, refused: Callable[..., Any]
) -> None:
    write(tmp_path, range(2), 0)
    write(tmp_path, range(1, 3), 1)
    with refused(ValueError, line):
        Sa1b(tmp_path)


def test_few_incomplete_pairs_are_counted_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_blvit.data.sa1b.MAX_BAD_SHARE", 0.5)
    write_flat(tmp_path, range(4))
    (tmp_path / "sa_2.json").unlink()
    with pytest.warns(UserWarning, match="1 of 4 images or annotations lack the other half and are left out"):
        assert Sa1b(tmp_path).image_ids.tolist() == [0, 1, 3]


def test_many_incomplete_pairs_are_refused(tmp_path: Path, refused: Callable[..., Any]) -> None:
    write_flat(tmp_path, range(4))
    (tmp_path / "sa_2.jpg").unlink()
    with refused(ValueError, r"1 of 4 .* more than 0\.1%; is a tar cut short"):
        Sa1b(tmp_path)


def test_a_directory_without_images_is_named(tmp_path: Path, refused: Callable[..., Any]) -> None:
    with refused(ValueError, "holds no pair of sa_<id>"):
        Sa1b(tmp_path)
    with refused(ValueError, "is not a directory"):
        Sa1b(tmp_path / "nowhere")


def test_a_name_that_is_not_sa1bs_is_refused_with_its_directory(tmp_path: Path, refused: Callable[..., Any]) -> None:
    write_flat(tmp_path, range(2))
    (tmp_path / "holiday.jpg").touch()
    with refused(ValueError, rf"{tmp_path}: holiday\.jpg is not named .* COCO's format"):
        Sa1b(tmp_path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda a: a.pop("area"), "no 'area'"),
        (lambda a: a.pop("bbox"), "no 'bbox'"),
        (lambda a: a.update(area=None), "annotation 0 is malformed .None is not a finite number in area"),
        (lambda a: a.update(id="7"), "annotation '7' is malformed .'7' is not a whole number from 0 up in id"),
        (lambda a: a.update(id=-7), "annotation -7 is malformed"),
        (lambda a: a.update(bbox=[0, 0, float("nan"), 1]), "annotation 0 is malformed .nan is not a finite number"),
        (lambda a: a.update(segmentation=[[0, 0, 9, 0, 9, 9]]), "annotation 0 holds no compressed run lengths"),
        (
            lambda a: a["segmentation"].update(size=[9, 9]),
            "annotation 0: the photograph is 64 x 48 pixels, its annotations are for 9 x 9; use",
        ),
    ],
)
def test_an_annotation_that_is_not_sa1bs_is_named(
    tmp_path: Path, change: Callable[[dict], object], line: str, refused: Callable[..., Any]
) -> None:
    write_flat(tmp_path, range(1))
    path = tmp_path / "sa_0.json"
    record = json.loads(path.read_text())
    change(record["annotations"][0])
    path.write_text(json.dumps(record))
    with refused(ValueError, f"sa_0 in .* is damaged .*{line}"):
        Sa1b(tmp_path).read(0)


@pytest.mark.parametrize("suffix", [".jpg", ".json"])
@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"\xff" * len(b)])
def test_a_damaged_file_is_named(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes], refused: Callable[..., Any]
) -> None:
    path = write_flat(tmp_path, range(1)) / f"sa_0{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    with refused(ValueError, r"sa_0 in .*sa_0\.jpg is damaged"):
        Sa1b(tmp_path).read(0)


def test_a_photograph_that_is_no_image_is_named_and_not_its_bytes(tmp_path: Path, refused: Callable[..., Any]) -> None:
    write_flat(tmp_path, range(1))
    (tmp_path / "sa_0.jpg").write_bytes(b"no picture")
    with refused(ValueError, r"sa_0\.jpg is damaged \(the photograph is in no format that Pillow reads") as error:
        Sa1b(tmp_path).read(0)
    assert "BytesIO" not in str(error.value)


def test_a_turned_photograph_is_read_upright(tmp_path: Path, refused: Callable[..., Any]) -> None:
    path = write_flat(tmp_path, range(1)) / "sa_0.jpg"
    exif = Image.Exif()
    with Image.open(path) as image:
        upright = image.convert("RGB")
    exif[0x0112] = 8
    upright.transpose(Image.Transpose.ROTATE_270).save(path, exif=exif)
    assert Sa1b(tmp_path).read(0).pixels.shape[:2] == upright.size[::-1]
    upright.save(path, exif=exif)
    with refused(ValueError, "as before its EXIF orientation 8 turns it"):
        Sa1b(tmp_path).read(0)


def test_a_file_that_vanished_is_named(tmp_path: Path, refused: Callable[..., Any]) -> None:
    source = Sa1b(write_flat(tmp_path, range(1)))
    (tmp_path / "sa_0.jpg").unlink()
    with refused(ValueError, "sa_0 in .* is damaged .*No such file"):
        source.read(0)


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:.*tar indexes cannot be kept")
def test_the_real_tars_are_read() -> None:
    source = Sa1b(DATA)
    assert len(source) == 2564
    assert source.read(5).image_id == source.image_ids[5]
