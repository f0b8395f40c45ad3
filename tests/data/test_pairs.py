"""Names of files and where they are, as one array of pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sam_blvit.data.pairs import PAIR, are_whole, pairs_of


def test_two_files_of_a_name_are_one_pair_by_ascending_id() -> None:
    pairs = pairs_of([("sa_20.json", 1, 2), ("sa_3.jpg", 3, 4), ("sa_20.jpg", 5, 6), ("sa_3.json", 7, 8)])
    assert pairs.dtype == PAIR
    assert pairs["image_id"].tolist() == [3, 20]
    assert pairs["image"].tolist() == [[3, 4], [5, 6]]
    assert pairs["annotations"].tolist() == [[7, 8], [1, 2]]
    assert are_whole(pairs).all()


def test_a_half_that_lacks_is_seen() -> None:
    pairs = pairs_of([("sa_1.jpg", 0, 9), ("sa_2.jpg", 9, 9), ("sa_2.json", 18, 9), ("sa_3.json", 27, 9)])
    assert are_whole(pairs).tolist() == [False, True, False]


def test_no_file_is_no_pair() -> None:
    assert len(pairs_of([])) == 0


def test_other_files_and_hidden_ones_are_passed_over() -> None:
    assert len(pairs_of([("README.txt", 0, 1), ("._sa_1.jpg", 1, 1), ("LICENSE", 2, 1)])) == 0


@pytest.mark.parametrize("name", ["1.jpg", "sa_x.json", "sa_007.jpg", "picture.jpg"])
def test_a_name_that_is_not_sa1bs_is_refused(name: str, refused: Callable[..., Any]) -> None:
    with refused(ValueError, rf"{name} is not named sa_<id>\.jpg"):
        pairs_of([(name, 0, 1)])


def test_the_largest_id_is_the_last_that_fits_64_bits(refused: Callable[..., Any]) -> None:
    largest = 2**63 - 1
    assert pairs_of([(f"sa_{largest}.jpg", 0, 1)])["image_id"].tolist() == [largest]
    for number in (2**63, 10**30):
        with refused(ValueError, rf"sa_{number}\.json has an id that cannot be used .* not below 2\*\*63"):
            pairs_of([(f"sa_{number}.json", 0, 1)])


def test_a_name_that_is_there_twice_is_refused(refused: Callable[..., Any]) -> None:
    with refused(ValueError, r"sa_1\.jpg is there twice"):
        pairs_of([("sa_1.jpg", 0, 1), ("sa_1.jpg", 5, 1)])
