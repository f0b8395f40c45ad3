"""Items come in order, made a little ahead, and nothing is made once nobody asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from sam_blvit.data.prefetch import prefetched

PATIENCE = 10
"""Seconds after which a thread that was to do something has not."""


def test_order_is_kept_however_long_an_item_takes() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item * item

    assert list(prefetched(slow_first, range(10), ahead=3)) == [item * item for item in range(10)]


@pytest.mark.parametrize("number", range(5))
def test_any_number_of_items_is_made(number: int) -> None:
    assert list(prefetched(str, range(number))) == [str(item) for item in range(number)]


def test_the_next_items_are_made_while_this_one_is_worked_on() -> None:
    made = [threading.Event() for _ in range(5)]
    results = prefetched(lambda item: made[item].set(), range(5), ahead=2)
    next(results)
    assert made[1].wait(PATIENCE)
    assert made[2].wait(PATIENCE)
    results.close()


@pytest.mark.parametrize("ahead", [1, 2, 4])
def test_at_most_that_many_are_made_early(ahead: int) -> None:
    started: list[int] = []
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(12):
            taken.append(item)
            yield item

    results = prefetched(started.append, items(), ahead=ahead)
    assert taken == []  # not one before the first is asked for
    for asked in range(1, 13):
        next(results)
        time.sleep(0.01)  # for a thread that runs too far
        assert len(started) <= min(asked + ahead, 12)
        assert len(taken) == min(asked + ahead, 12)
    assert sorted(started) == list(range(12))


def test_several_are_made_at_the_same_time() -> None:
    together = threading.Barrier(2, timeout=PATIENCE)

    def meet(item: int) -> int:
        together.wait()  # broken, an error, unless another item is being made
        return item

    assert list(prefetched(meet, range(6), ahead=2)) == list(range(6))


def test_an_error_is_raised_when_its_turn_comes() -> None:
    failed = threading.Event()

    def make(item: int) -> int:
        if item == 2:
            failed.set()
            raise ValueError("item 2 is damaged")
        return item

    results = prefetched(make, range(9), ahead=2)
    assert next(results) == 0
    assert failed.wait(PATIENCE)
    assert next(results) == 1
    with pytest.raises(ValueError, match=r"^item 2 is damaged$"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_an_error_of_the_items_themselves_is_raised() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise ValueError("the list ends in nothing")

    with pytest.raises(ValueError, match="the list ends in nothing"):
        list(prefetched(str, items()))


@pytest.mark.parametrize("ending", ["closed", "failed"])
def test_once_it_ends_early_nothing_is_being_made(ending: str) -> None:
    started: list[int] = []
    finished: list[int] = []
    threads: set[threading.Thread] = set()

    def make(item: int) -> int:
        started.append(item)
        threads.add(threading.current_thread())
        if item == 1 and ending == "failed":
            raise ValueError
        time.sleep(0.05 if item else 0)
        finished.append(item)
        return item

    results = prefetched(make, range(1000), ahead=2)
    assert next(results) == 0
    if ending == "closed":
        results.close()
    else:
        with pytest.raises(ValueError, match=r"^$"):
            next(results)
    assert set(started) - set(finished) <= ({1} if ending == "failed" else set())
    assert max(started) <= 3
    assert not any(thread.is_alive() for thread in threads)
    assert threading.current_thread() not in threads
