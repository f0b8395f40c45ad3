"""A protocol is exactly what its name says, whatever is overridden is said with it, and nothing else is taken."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sam_blvit.evaluate.protocol.protocols import PROTOCOLS, Protocol, protocol_named

PUBLISHED = {
    "blvit": ("uniform", "uniform", "argmax"),
    "edge-rand": ("uniform", "uniform-error", "single"),
    "edge-center": ("centre", "uniform-error", "single"),
    "ritm": ("centre", "centre-error", "argmax"),
    "sam-rand": ("uniform", "centre-error", "sam"),
}
"""First point, later points and the mask scored: what numbers were published under must not change unseen."""
COMMON = {"box_source": "ann", "feed_mask": False, "average": "instance", "subset": "full", "overridden": ()}
FROZEN = {
    "name": "blvit-cal",
    "first": "centre",
    "later": "uniform-error",
    "select": "oracle",
    "box_source": "mask",
    "feed_mask": True,
    "average": "category",
    "subset": "minival",
}


def frozen(directory: Path, content: Any = FROZEN) -> str:
    """The path of a protocol's file."""
    path = directory / "blvit-cal.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_the_named_protocols_are_these() -> None:
    assert {name: dataclasses.asdict(protocol) for name, protocol in PROTOCOLS.items()} == {
        name: {"name": name, "first": first, "later": later, "select": select, **COMMON}
        for name, (first, later, select) in PUBLISHED.items()
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_protocol_goes_by_its_name(name: str) -> None:
    assert protocol_named(name) == PROTOCOLS[name]
    assert protocol_named(name).label == name


@pytest.mark.parametrize(("later", "iterative"), [("uniform", False), ("uniform-error", True), ("centre-error", True)])
def test_points_that_correct_a_mask_are_iterative(later: str, iterative: bool) -> None:
    assert Protocol(name="mine", first="centre", later=later, select="single").iterative is iterative


def test_overrides_change_what_they_name_alone() -> None:
    protocol = protocol_named("sam-rand", select="single", feed_mask=True)
    assert protocol == dataclasses.replace(PROTOCOLS["sam-rand"], select="single", feed_mask=True)
    assert PROTOCOLS["sam-rand"].select == "sam"


def test_an_override_of_none_changes_nothing() -> None:
    assert protocol_named("ritm", select=None, box_source=None, feed_mask=None, subset=None) == PROTOCOLS["ritm"]


def test_an_override_of_no_is_one(tmp_path: Path) -> None:
    assert protocol_named(frozen(tmp_path), feed_mask=False).feed_mask is False


def test_the_label_names_what_was_overridden() -> None:
    assert protocol_named("blvit", box_source="mask").label == "blvit box_source=mask"
    changed = protocol_named("sam-rand", subset="minival", feed_mask=True, select="argmax")
    assert changed.label == "sam-rand select=argmax feed_mask=True subset=minival"


def test_the_label_does_not_name_an_override_that_says_the_same() -> None:
    assert protocol_named("ritm", select="argmax", box_source="ann", feed_mask=False, subset="full").label == "ritm"


def test_a_frozen_protocol_is_what_its_file_says(tmp_path: Path) -> None:
    protocol = protocol_named(frozen(tmp_path))
    assert dataclasses.asdict(protocol) == {**FROZEN, "overridden": ()}
    assert protocol.label == "blvit-cal"


def test_a_frozen_protocol_may_leave_out_what_is_usual(tmp_path: Path) -> None:
    content = {"name": "mine", "first": "centre", "later": "uniform", "select": "single"}
    assert dataclasses.asdict(protocol_named(frozen(tmp_path, content))) == {**content, **COMMON}


def test_a_frozen_protocol_can_be_overridden(tmp_path: Path) -> None:
    changed = dataclasses.asdict(protocol_named(frozen(tmp_path), select="single"))
    assert changed == {**FROZEN, "select": "single", "overridden": ("select",)}


def test_the_label_of_a_frozen_protocol_names_what_was_overridden(tmp_path: Path) -> None:
    assert protocol_named(frozen(tmp_path), select="single").label == "blvit-cal select=single"


def test_an_unknown_protocol_is_refused_with_the_names_there_are(refused: Any) -> None:
    with refused(ValueError, "no protocol named 'RITM'; there are blvit, edge-rand, edge-center, ritm, sam-rand, or"):
        protocol_named("RITM")


def test_a_missing_file_is_refused(tmp_path: Path, refused: Any) -> None:
    with refused(ValueError, "nowhere.json is not a file; eval/calibrate.py writes one"):
        protocol_named(str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[1, 2]", "list indices must be integers"),
        ("null", "'NoneType' object is not subscriptable"),
        ("{}", "no 'name'"),
        ({**FROZEN, "name": "ritm"}, "name='ritm' is that of a published protocol"),
        ({**FROZEN, "points": "uniform"}, "unexpected keyword argument 'points'"),
        ({"name": "mine", "first": "centre", "later": "uniform"}, "missing 1 required .* argument: 'select'"),
        ({**FROZEN, "first": "somewhere"}, "first='somewhere' is not one of uniform, centre"),
        ({**FROZEN, "later": "centre"}, "later='centre' is not one of uniform, uniform-error, centre-error"),
        ({**FROZEN, "select": None}, "select=None is not one of argmax, single, oracle, sam"),
        ({**FROZEN, "box_source": ["ann"]}, "box_source=..ann.. is not one of ann, mask"),
        ({**FROZEN, "average": "pixel"}, "average='pixel' is not one of instance, image, category"),
        ({**FROZEN, "subset": "train"}, "subset='train' is not one of full, minival"),
        ({**FROZEN, "later": "uniform"}, "feed_mask needs points that correct a mask"),
    ],
)
def test_a_file_that_is_no_protocol_is_refused_with_one_line(
    tmp_path: Path, content: Any, problem: str, refused: Any
) -> None:
    with refused(ValueError, f"blvit-cal.json cannot be used .*{problem}"):
        protocol_named(frozen(tmp_path, content))


def test_whether_a_mask_is_fed_is_no_word(tmp_path: Path, refused: Any) -> None:
    with refused(ValueError, "feed_mask='no'"):
        protocol_named(frozen(tmp_path, {**FROZEN, "feed_mask": "no"}))


@pytest.mark.parametrize(
    ("field", "value"),
    [("select", "best"), ("box_source", "gt"), ("subset", "val"), ("first", "center"), ("later", "error")],
)
def test_a_wrong_word_is_refused_with_the_words_there_are(field: str, value: str, refused: Any) -> None:
    with refused(ValueError, f"protocol edge-rand: {field}='{value}' is not one of "):
        protocol_named("edge-rand", **{field: value})


def test_a_mask_cannot_be_fed_to_points_of_one_shot(refused: Any) -> None:
    with refused(ValueError, "protocol blvit: feed_mask needs points that correct a mask, later=.-error"):
        protocol_named("blvit", feed_mask=True)


@pytest.mark.parametrize("name", ["edge-rand", "edge-center", "ritm", "sam-rand"])
def test_a_mask_can_be_fed_to_points_that_correct_it(name: str) -> None:
    assert protocol_named(name, feed_mask=True).feed_mask is True
