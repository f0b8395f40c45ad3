"""Which photographs make which step: each once an epoch, from any start, for any number of processes."""

from __future__ import annotations

import pytest

from sam_blvit.system.distributed import Processes
from sam_blvit.train.batches import Batches


def batches(**options: object) -> Batches:
    settings = {"batch_size": 4, "start": 0, "batches": 5, "seed": 0, "processes": Processes(), **options}
    return Batches(10, **settings)  # type: ignore[arg-type]


def test_each_epoch_holds_every_photograph_once() -> None:
    places = [place for batch in batches() for place in batch]
    assert sorted(places) == [(epoch, index) for epoch in range(2) for index in range(10)]


def test_each_epoch_has_an_order_of_its_own() -> None:
    places = [place for batch in batches() for place in batch]
    orders = [[index for epoch, index in places if epoch == number] for number in range(2)]
    assert orders[0] != orders[1]
    assert orders[0] != list(range(10))


def test_a_later_start_changes_nothing_of_what_follows() -> None:
    assert list(batches(start=12, batches=2)) == list(batches())[3:]


def test_a_start_may_lie_anywhere() -> None:
    places = [place for batch in batches() for place in batch]
    assert [place for batch in batches(start=3, batches=4) for place in batch] == places[3:19]


def test_another_seed_is_another_order() -> None:
    assert list(batches(seed=1)) != list(batches())


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_take_what_one_would(count: int) -> None:
    alone = list(batches())
    parts = [list(batches(batch_size=4 // count, processes=Processes(rank, count))) for rank in range(count)]
    assert [[place for part in parts for place in part[step]] for step in range(5)] == alone


def test_the_number_of_batches_is_told() -> None:
    assert len(batches(batches=7)) == len(list(batches(batches=7))) == 7
