"""Files are written as a whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch

from sam_blvit.system.files import check_inputs_stay, file_sha256, parse_json, write_atomically, write_json


def test_a_writer_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "kept.pth"
    path.write_text("old")

    def fail(temporary: str) -> None:
        Path(temporary).write_text("half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_replaces_the_old_one_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way" / "new.pth"
    for text in ("old", "new"):
        write_atomically(path, lambda temporary, text=text: Path(temporary).write_text(text))
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="no umask there")
def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    write_atomically(tmp_path / "written", lambda temporary: Path(temporary).write_text("x"))
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("written", "any")]
    assert modes[0] == modes[1]


def test_a_files_sha256_is_the_usual_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == expected


def test_json_is_written_as_people_read_it(tmp_path: Path) -> None:
    content = {"miou": [1 / 3, None], "name": "b"}
    write_json(tmp_path / "made" / "summary.json", content)
    text = (tmp_path / "made" / "summary.json").read_text()
    assert json.loads(text) == content
    assert text.endswith("}\n")
    assert '\n  "name": "b"' in text


def test_json_that_cannot_be_written_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"old": True})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"new": True, "tensor": torch.zeros(1)})
    assert json.loads(path.read_text()) == {"old": True}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("link", ["same", "spelling", "symlink", "hardlink"])
def test_an_output_that_is_an_input_is_refused(tmp_path: Path, link: str) -> None:
    given, output = tmp_path / "in.pth", tmp_path / "out.pth"
    given.write_text("weights")
    if link == "symlink":
        output.symlink_to(given)
    elif link == "hardlink":
        os.link(given, output)
    else:
        (tmp_path / "sub").mkdir()
        output = given if link == "same" else tmp_path / "sub" / ".." / "in.pth"
    with pytest.raises(ValueError, match=r"output .* would replace the input .*in\.pth; name another output"):
        check_inputs_stay([tmp_path / "new.pth", output], [None, "vit_b", given])


def test_an_output_beside_the_inputs_is_fine(tmp_path: Path) -> None:
    (tmp_path / "in.pth").touch()
    (tmp_path / "old.pth").touch()
    check_inputs_stay([tmp_path / "old.pth", tmp_path / "new.pth"], [tmp_path / "in.pth", tmp_path / "nowhere"])


@pytest.mark.parametrize("text", ["[" * 100_000, b"[" * 100_000, "{", b"\xff"])
def test_json_that_cannot_be_read_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse_json(text)
    assert "\n" not in str(error.value)


def test_json_is_read_by_parse_json_alone() -> None:
    """`json.loads` ends in a traceback where the text is nested deeply; a config, which imports nothing, catches it."""
    root = Path(__file__).parents[2]
    modules = [path for folder in ("sam_blvit", "tools", "eval", "studies") for path in root.glob(f"{folder}/**/*.py")]
    texts = {str(path.relative_to(root)): path.read_text().replace("json.loads(json.dumps(", "") for path in modules}
    plain = {name for name, text in texts.items() if "json.load" in text}
    assert plain == {"sam_blvit/system/files.py", "sam_blvit/config/model.py"}
