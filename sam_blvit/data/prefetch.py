"""The next items are made while this one is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def prefetched(make: Callable[[Item], Made], items: Iterable[Item], *, ahead: int = 2) -> Iterator[Made]:
    """`make(item)` for each of `items`, in their order, at most `ahead` of them made before they are asked for.

    Threads suffice where `make` reads files, decodes or resizes pictures: those release the interpreter. What `make`
    raises is raised when its item's turn comes.
    """
    pool = ThreadPoolExecutor(max_workers=ahead)
    try:
        pending: deque[Future[Made]] = deque()
        for item in items:
            pending.append(pool.submit(make, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
