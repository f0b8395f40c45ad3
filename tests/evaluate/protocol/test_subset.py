"""Subsets of photographs: by the split that their annotations name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sam_blvit.data.instances import ImageRecord
from sam_blvit.evaluate.protocol.subset import in_subset

Refused = Callable[..., Any]

ANNOTATIONS = Path("lvis.json")


def records(*splits: str) -> dict[int, ImageRecord]:
    return {
        10 + number: ImageRecord(image_id=10 + number, height=6, width=8, name=f"{number}.jpg", split=split)
        for number, split in enumerate(splits)
    }


def test_the_full_set_is_all_of_it() -> None:
    everything = records("train2017", "val2017", "")
    assert in_subset(everything, "full", ANNOTATIONS) == everything


def test_minival_is_the_photographs_of_val2017_in_their_order() -> None:
    everything = records("val2017", "train2017", "", "val2014", "val2017")
    assert list(in_subset(everything, "minival", ANNOTATIONS)) == [10, 14]


def test_a_minival_without_a_photograph_is_refused(refused: Refused) -> None:
    with refused(ValueError, match=r"subset=minival: lvis\.json has no photograph of val2017.*take subset=full"):
        in_subset(records("train2017", ""), "minival", ANNOTATIONS)


def test_the_full_set_needs_no_split() -> None:
    assert len(in_subset(records("", ""), "full", ANNOTATIONS)) == 2
