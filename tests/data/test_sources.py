"""Which photographs a run uses, and that they are the same wherever and however they lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datasets import annotation, squares, write_annotations, write_dataset
from sam_blvit.config import TrainingDataConfig
from sam_blvit.data.sources import Source, held_out, identity, part, training_source
from synthetic import write_flat, write_tar

DATA = Path(__file__).parents[3] / "shared" / "data" / "real_train"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Nine photographs in three tars."""
    for i in range(3):
        write_tar(tmp_path / "data" / f"sa_00000{i}.tar", range(3 * i, 3 * i + 3))
    return tmp_path / "data"


def source_of(data: Path, **options: Any) -> Source:
    return training_source(TrainingDataConfig(data=data, **options))


def listed(path: Path, *entries: tuple[int, str]) -> Path:
    path.write_text("".join(f"{image_id}\t{location}\n" for image_id, location in entries))
    return path


def ids(source: Source) -> list[int]:
    """Of a source, each read to see that it is the photograph that it says."""
    found = [source.read(index).image_id for index in range(len(source))]
    assert found == source.image_ids.tolist()
    return found


def test_all_photographs_are_used_unless_told_otherwise(root: Path) -> None:
    assert ids(source_of(root)) == list(range(9))


def test_annotations_name_own_photographs(tmp_path: Path) -> None:
    assert ids(source_of(write_dataset(tmp_path), annotations=tmp_path / "annotations.json")) == [1, 2]


def test_the_manifest_is_what_is_used_in_whatever_order(root: Path, tmp_path: Path) -> None:
    manifest = listed(tmp_path / "list", (7, "sa_000002.tar"), (0, "sa_000000.tar"), (8, "sa_000002.tar"))
    source = source_of(root, manifest=manifest)
    assert ids(source) == [0, 7, 8]
    assert [source.location(index) for index in range(3)] == ["sa_000000.tar", "sa_000002.tar", "sa_000002.tar"]


def test_only_the_tars_of_the_manifest_are_looked_into(root: Path, tmp_path: Path) -> None:
    (root / "sa_000000.tar").write_bytes(b"no tar")
    assert ids(source_of(root, manifest=listed(tmp_path / "list", (4, "sa_000001.tar")))) == [4]
    assert [path.name for path in root.glob("*.npz")] == ["sa_000001.tar.index.npz"]


def test_a_manifest_of_tars_serves_the_same_data_unpacked(tmp_path: Path) -> None:
    write_flat(tmp_path / "flat", range(5))
    assert ids(source_of(tmp_path / "flat", manifest=listed(tmp_path / "list", (3, "sa_000020.tar")))) == [3]


def test_a_manifest_of_files_is_followed(tmp_path: Path) -> None:
    write_flat(tmp_path / "flat", range(5))
    assert ids(source_of(tmp_path / "flat", manifest=listed(tmp_path / "list", (3, "sa_3"), (1, "sa_1")))) == [1, 3]


def test_photographs_of_the_manifest_that_are_missing_are_counted(
    root: Path, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    manifest = listed(tmp_path / "list", (0, "sa_000000.tar"), (50, "sa_000000.tar"), (40, "sa_000000.tar"))
    with refused(ValueError, r"manifest .*list: 2 of 3 photographs are not in .*data, first 40"):
        source_of(root, manifest=manifest)


def test_tars_of_the_manifest_that_are_missing_are_counted(
    root: Path, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    manifest = listed(tmp_path / "list", (0, "sa_000000.tar"), (50, "sa_000009.tar"), (40, "sa_000008.tar"))
    with refused(ValueError, r"names 2 tars that are not in .*data, first sa_000008\.tar; copy them there"):
        source_of(root, manifest=manifest)


def test_a_manifest_and_no_data_name_the_data(tmp_path: Path, refused: Callable[..., Any]) -> None:
    with refused(ValueError, "data .*nowhere is not a directory"):
        source_of(tmp_path / "nowhere", manifest=listed(tmp_path / "list", (0, "sa_000000.tar")))


def test_what_is_excluded_is_left_out_and_counted(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("4\n0\n77\n")
    source = source_of(root, exclude=tmp_path / "out")
    assert ids(source) == [1, 2, 3, 5, 6, 7, 8]
    assert source.name == f"{root}, 2 left out by {tmp_path / 'out'}"


def test_excluding_nothing_that_is_there_leaves_all(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    assert ids(source_of(root, exclude=tmp_path / "out")) == list(range(9))


def test_excluding_everything_is_refused(root: Path, tmp_path: Path, refused: Callable[..., Any]) -> None:
    (tmp_path / "out").write_text("\n".join(map(str, range(9))))
    with refused(ValueError, r"exclude=.*out leaves none of the 9 photographs"):
        source_of(root, exclude=tmp_path / "out")


def test_held_out_photographs_are_not_trained_on(root: Path) -> None:
    rest, held = held_out(source_of(root), 4, seed=0)
    assert (len(rest), len(held)) == (5, 4)
    assert sorted(ids(rest) + ids(held)) == list(range(9))
    assert ids(held) != [0, 1, 2, 3]


def test_what_is_held_out_depends_on_the_seed_alone(root: Path, tmp_path: Path) -> None:
    flat = source_of(write_flat(tmp_path / "flat", range(9)))
    drawn = [[ids(held_out(source, 4, seed=seed)[1]) for seed in (0, 1)] for source in (source_of(root), flat)]
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


@pytest.mark.parametrize("count", [9, 10])
def test_holding_out_everything_is_refused(root: Path, count: int, refused: Callable[..., Any]) -> None:
    with refused(ValueError, rf"holdout={count} of the 9 photographs of .* leaves none to train on"):
        held_out(source_of(root), count, seed=0)


def test_a_part_of_a_part_reads_the_right_photographs(root: Path) -> None:
    inner = part(part(source_of(root), [8, 2, 5, 7]), [7, 2])
    assert ids(inner) == [2, 7]
    assert inner.location(1) == "sa_000002.tar"


def test_a_part_that_is_not_there_is_refused(root: Path, refused: Callable[..., Any]) -> None:
    with refused(ValueError, r"2 of 3 photographs are not in .*data, first 9"):
        part(source_of(root), [1, 11, 9])


def test_data_that_moved_are_the_same_data(root: Path, tmp_path: Path) -> None:
    before = identity(source_of(root))
    shutil.move(root, tmp_path / "moved")
    assert identity(source_of(tmp_path / "moved")) == before


def test_other_photographs_or_other_places_are_other_data(root: Path, tmp_path: Path) -> None:
    whole = source_of(root)
    found = {
        identity(whole),
        identity(part(whole, range(8))),
        identity(part(whole, range(1, 9))),
        identity(source_of(write_flat(tmp_path / "flat", range(9)))),
    }
    assert len(found) == 4
    assert identity(part(whole, range(9))) == identity(whole)


def test_other_annotations_of_the_same_photographs_are_other_data(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    path = tmp_path / "annotations.json"
    before = identity(part(source_of(tmp_path, annotations=path), [1]))
    write_annotations(tmp_path, [*squares((1, 2)), annotation(50, 1, 2, 2, 5)], (1, 2))
    assert identity(part(source_of(tmp_path, annotations=path), [1])) != before


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:.*tar indexes cannot be kept")
def test_the_real_validation_photographs_are_left_out() -> None:
    assert len(source_of(DATA, exclude=DATA / "val_ids.txt")) == 2464
