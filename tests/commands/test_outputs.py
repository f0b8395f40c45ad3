"""Several photographs to one command: what each result is called, and what is not overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sam_blvit.checkpoint.load import save_sam
from sam_blvit.cli import main
from sam_blvit.commands.outputs import find_photographs, plan_outputs
from sam_blvit.config import MODELS
from sam_blvit.model.build import build_sam

ENDINGS = {"json": ".json", "mask": "_mask.png"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_sam(build_sam(MODELS["blvit_tiny"]), path)
    return path


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A directory with same.jpg, same.png and other.PNG."""
    directory = tmp_path / "photographs"
    directory.mkdir()
    for name in ("same.jpg", "same.png", "other.PNG"):
        Image.new("RGB", (40, 30), (200, 10, 10)).save(directory / name)
    (directory / "notes.txt").write_text("no photograph")
    return directory


@pytest.fixture
def command(weights: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run segment or everything on photographs, to a directory which is returned."""

    def call(verb: str, *images: Path) -> Path:
        flags = ["--point", "20,15"] if verb == "segment" else ["--points-per-side", "2"]
        output = tmp_path / "out"
        main([verb, *map(str, images), *flags, "--model", str(weights), "--device", "cpu", "--output", str(output)])
        return output

    return call


@pytest.mark.parametrize(("verb", "ending"), [("segment", ""), ("everything", "_everything")])
def test_each_photograph_of_a_directory_has_a_result_that_names_it(
    command: Callable[..., Path], photographs: Path, verb: str, ending: str
) -> None:
    output = command(verb, photographs)
    records = {path.name: json.loads(path.read_text())["photograph"] for path in output.glob("*.json")}
    names = {"other": "other.PNG", "same.jpg": "same.jpg", "same.png": "same.png"}
    assert records == {f"{stem}{ending}.json": str(photographs / name) for stem, name in names.items()}


@pytest.mark.parametrize("verb", ["segment", "everything"])
def test_a_result_is_made_again_but_never_another_photographs(
    command: Callable[..., Path], photographs: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = command(verb, photographs / "same.jpg")
    command(verb, photographs / "same.jpg")
    before = {path: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(SystemExit):
        command(verb, photographs / "same.png")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "already exists and was not made from" in line
    assert {path: path.read_bytes() for path in output.iterdir()} == before


def test_a_photograph_that_cannot_be_read_does_not_stop_the_others(
    command: Callable[..., Path], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photographs / "damaged.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit) as stop:
        command("segment", photographs)
    assert stop.value.code == 2
    note, error = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("note", "error"))]
    assert "damaged.jpg is left out" in note
    assert error == "error: 1 of 4 photographs cannot be used; see the notes above"
    assert len(list((tmp_path / "out").glob("*.json"))) == 3


@pytest.mark.parametrize("content", ["mine", "[" * 100_000, "[]"])
def test_a_file_of_somebody_else_is_kept(photographs: Path, tmp_path: Path, content: str, refused: Any) -> None:
    (tmp_path / "other.json").write_text(content)
    with refused(ValueError, r"other\.json already exists and was not made from"):
        plan_outputs([photographs / "other.PNG"], tmp_path, ENDINGS)


def test_a_picture_without_a_record_is_kept(photographs: Path, tmp_path: Path, refused: Any) -> None:
    (tmp_path / "other_mask.png").write_text("mine")
    with refused(ValueError, r"other_mask\.png already exists"):
        plan_outputs([photographs / "other.PNG"], tmp_path, ENDINGS)


def test_photographs_of_one_name_want_outputs_of_their_own(photographs: Path, tmp_path: Path, refused: Any) -> None:
    again = tmp_path / "again" / "same.jpg"
    again.parent.mkdir()
    again.write_bytes((photographs / "same.jpg").read_bytes())
    with refused(ValueError, r"would both be called same\.jpg"):
        plan_outputs([photographs / "same.jpg", again], tmp_path, ENDINGS)


def test_a_photograph_named_twice_counts_once(photographs: Path, tmp_path: Path) -> None:
    found = find_photographs([photographs / "same.png", photographs], tmp_path)
    assert [path.name for path in found] == ["same.png", "other.PNG", "same.jpg"]


def test_a_directory_without_photographs_is_named(tmp_path: Path, refused: Any) -> None:
    (tmp_path / "empty").mkdir()
    with refused(ValueError, "empty has no photograph"):
        find_photographs([tmp_path / "empty"], tmp_path)


def test_results_go_elsewhere_than_the_photographs(photographs: Path, refused: Any) -> None:
    with refused(ValueError, "also holds the photographs"):
        find_photographs([photographs], photographs)
