"""Lists of photographs as text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sam_blvit.data.manifest import read_ids, read_manifest, write_manifest


def test_what_was_written_is_read(tmp_path: Path) -> None:
    entries = {20: "sa_000001.tar", 3: "images/train/sa_3"}
    write_manifest(tmp_path / "list.tsv", entries.items(), remark="two photographs")
    assert read_manifest(tmp_path / "list.tsv") == entries
    assert (tmp_path / "list.tsv").read_bytes() == b"# two photographs\n3\timages/train/sa_3\n20\tsa_000001.tar\n"


def test_the_order_of_entries_does_not_change_the_file(tmp_path: Path) -> None:
    entries = [(i, f"sa_{i}") for i in range(20)]
    write_manifest(tmp_path / "a", entries, remark="x")
    write_manifest(tmp_path / "b", reversed(entries), remark="x")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_remarks_and_empty_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text("# mine\n\n7\tsa_7\n# more\n  \n8\tsa_8\n")
    assert read_manifest(tmp_path / "list.tsv") == {7: "sa_7", 8: "sa_8"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("7\tsa_7\nsa_8\tx\n", "line 2 is 'sa_8.tx', not an image id"),
        ("7\n", "line 1 is '7', not an image id, a tab and a location"),
        ("7 sa_7\n", "line 1 is '7 sa_7'"),
        ("7\t \n", "line 1 is"),
        ("-7\tsa_7\n", "line 1 is"),
        ("9223372036854775808\tsa_7\n", "line 1 is '9223372036854775808.tsa_7', not an image id"),
        ("7\tsa_7\n7\tsa_8\n", "line 2 lists image 7 again"),
        ("# nothing\n", "lists no photograph; write it with tools/make_subset.py"),
    ],
)
def test_a_malformed_manifest_is_named_with_its_line(
    tmp_path: Path, text: str, line: str, refused: Callable[..., Any]
) -> None:
    (tmp_path / "list.tsv").write_text(text)
    with refused(ValueError, rf"manifest .*list\.tsv:? .*{line}"):
        read_manifest(tmp_path / "list.tsv")


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path, refused: Callable[..., Any]) -> None:
    with refused(ValueError, r"manifest .*none\.tsv cannot be read \(No such file"):
        read_manifest(tmp_path / "none.tsv")
    (tmp_path / "list.tsv").write_bytes(b"\xff\xfe\x00")
    with refused(ValueError, r"manifest .*list\.tsv is no text file"):
        read_manifest(tmp_path / "list.tsv")


def test_ids_are_read_one_a_line(tmp_path: Path, refused: Callable[..., Any]) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("3\n14\n")
    assert read_ids(path) == [3, 14]
    path.write_text("0\n007\n9223372036854775807\n")
    assert read_ids(path) == [0, 7, 2**63 - 1]
    for text in (str(2**63), "9" * 5000, "²"):
        path.write_text(text)
        with refused(ValueError, "entry 1 is .*, not an image id"):
            read_ids(path)
    path.write_text("3\nsa_14\n")
    with refused(ValueError, r"ids\.txt: entry 2 is 'sa_14', not an image id"):
        read_ids(path)
    with refused(ValueError, r"list .*none\.txt cannot be read"):
        read_ids(tmp_path / "none.txt")
