"""Parts of SA-1B drawn by seed: what they hold, and that nothing but the seed decides it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sam_blvit.cli import run
from sam_blvit.config import SubsetConfig, TrainingDataConfig
from sam_blvit.data.draw import draw_subset
from sam_blvit.data.manifest import read_manifest
from sam_blvit.data.sources import training_source
from sam_blvit.system.files import file_sha256
from synthetic import write_flat, write_tar


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Ten tars of four photographs."""
    for i in range(10):
        write_tar(tmp_path / "data" / f"sa_00000{i}.tar", range(4 * i, 4 * i + 4), size=(8, 8), masks=0)
    return tmp_path / "data"


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return write_flat(tmp_path / "flat", range(40), size=(8, 8), masks=0)


def draw(data: Path, name: str = "subset", **options: Any) -> Path:
    output = data.parent / name
    draw_subset(SubsetConfig(data=data, output=output, **{"validation": 3, "fraction": 0.2, **options}))
    return output


def read(output: Path) -> tuple[dict[int, str], dict[int, str]]:
    return read_manifest(output / "train.tsv"), read_manifest(output / "validation.tsv")


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


def test_whole_tars_are_drawn_and_validation_is_of_one_more(tars: Path) -> None:
    train, validation = read(draw(tars))
    drawn = set(train.values())
    assert len(drawn) == 2
    assert len(train) == 8
    assert {image_id // 4 for image_id in train} == {int(name[3:9]) for name in drawn}
    (further,) = set(validation.values())
    assert further not in drawn
    assert len(validation) == 3


def test_at_least_one_tar_is_drawn(tars: Path) -> None:
    assert len(read(draw(tars, fraction=0.001))[0]) == 4


def test_single_images_are_drawn(tars: Path) -> None:
    train, validation = read(draw(tars, unit="image", fraction=0.25, validation=7))
    assert (len(train), len(validation)) == (10, 7)
    assert not train.keys() & validation.keys()
    assert len(set(train.values())) > 3
    assert all(int(location[3:9]) == image_id // 4 for image_id, location in train.items())


def test_images_are_drawn_from_a_flat_directory_as_from_tars(tars: Path, flat: Path) -> None:
    packed, unpacked = read(draw(tars, unit="image")), read(draw(flat, "other", unit="image"))
    assert [list(one) for one in packed] == [list(one) for one in unpacked]
    assert unpacked[0][next(iter(unpacked[0]))].startswith("sa_")


@pytest.mark.parametrize("unit", ["tar", "image"])
def test_the_seed_alone_decides_byte_for_byte(tars: Path, monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    first = contents(draw(tars, unit=unit))
    listed, scanned = os.listdir, os.scandir

    class Shuffled:
        def __init__(self, path: Any) -> None:
            with scanned(path) as entries:
                self.entries = random.Random(1).sample(found := list(entries), len(found))

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "listdir", lambda path: sorted(listed(path), reverse=True))
    monkeypatch.setattr(os, "scandir", Shuffled)
    again = draw(tars, "again", unit=unit)
    monkeypatch.undo()
    assert contents(again) == first
    assert contents(draw(tars, "other", unit=unit, seed=1))["train.tsv"] != first["train.tsv"]


def test_the_summary_says_what_was_drawn(tars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = draw(tars)
    summary = json.loads((output / "subset.json").read_text())
    assert summary["settings"] == {
        "data": str(tars), "unit": "tar", "fraction": 0.2, "validation": 3, "seed": 0
    }  # fmt: skip
    for kind, entries in zip(("train", "validation"), read(output), strict=True):
        assert summary[kind] == {
            "images": len(entries),
            "sha256": file_sha256(output / f"{kind}.tsv"),
            "tars": sorted(set(entries.values())),
        }
    (line,) = capsys.readouterr().out.splitlines()
    assert f"train.tsv 8 images, sha256 {summary['train']['sha256']}" in line
    assert f"validation.tsv 3 images, sha256 {summary['validation']['sha256']}" in line


def test_without_validation_there_is_no_list_of_it(tars: Path) -> None:
    draw(tars)
    output = draw(tars, validation=0, fraction=1.0)  # over an earlier draw
    assert sorted(path.name for path in output.iterdir()) == ["subset.json", "train.tsv"]
    assert "validation" not in json.loads((output / "subset.json").read_text())
    assert len(read_manifest(output / "train.tsv")) == 40


def test_a_drawn_list_is_what_a_run_trains_on(tars: Path) -> None:
    output = draw(tars)
    source = training_source(TrainingDataConfig(data=tars, manifest=output / "train.tsv"))
    assert source.image_ids.tolist() == sorted(read(output)[0])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"fraction": 1.0}, r"training takes all 10 tars .*--unit image or --validation 0"),
        ({"validation": 5}, r"validation=5: sa_00000\d\.tar holds 4 images; name fewer"),
        ({"unit": "image", "fraction": 0.9, "validation": 5}, "are 41 images; .* holds 40"),
    ],
)
def test_more_than_there_is_is_refused(
    tars: Path, options: dict[str, Any], line: str, refused: Callable[..., Any]
) -> None:
    with refused(ValueError, line):
        draw(tars, **options)
    assert not (tars.parent / "subset").exists()


def test_tars_that_are_not_there_are_refused_with_the_remedy(flat: Path, refused: Callable[..., Any]) -> None:
    with refused(ValueError, r"unit=tar: .*flat holds no \.tar files; take --unit image"):
        draw(flat)
    with refused(ValueError, "unit=tar: .*nowhere holds no"):
        draw(flat / "nowhere")


def test_the_command_line_draws(tars: Path) -> None:
    output = tars.parent / "subset"
    run(draw_subset, ["--data", str(tars), "--output", str(output), "--fraction", "0.2", "--validation", "3"])
    assert [len(entries) for entries in read(output)] == [8, 3]
