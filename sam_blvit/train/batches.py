"""Order of the photographs: a new permutation per epoch, divided among the processes.

The order depends only on (seed, epoch) and the number of samples seen so far. A run can therefore be resumed at any
step with any number of processes, and no photograph is seen twice in an epoch.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from sam_blvit.data.samples import Damaged, Sample
from sam_blvit.system.distributed import Processes
from sam_blvit.system.files import first_line

Batch = list[Sample | Damaged]


class Batches(Sampler[list[tuple[int, int]]]):
    """Sampler of one process: yields (epoch, index) for the samples of each batch.

    Sample p of the run is number p % length of the permutation of epoch p // length. Starting at sample `start`, the
    processes take turns of `batch_size` samples.
    """

    def __init__(
        self, length: int, *, batch_size: int, start: int, batches: int, seed: int, processes: Processes
    ) -> None:
        self.length, self.batch_size, self.start, self.batches = length, batch_size, start, batches
        self.seed, self.processes = seed, processes

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders: dict[int, NDArray[np.int64]] = {}
        for batch in range(self.batches):
            first = self.start + (batch * self.processes.count + self.processes.rank) * self.batch_size
            places = [divmod(position, self.length) for position in range(first, first + self.batch_size)]
            orders = {epoch: orders[epoch] if epoch in orders else self._order(epoch) for epoch, _ in places}
            yield [(epoch, int(orders[epoch][place])) for epoch, place in places]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(self.length)


@contextmanager
def batches_of(
    dataset: Dataset[Sample | Damaged], places: Iterable[list[tuple[int, int]]], workers: int
) -> Iterator[Iterator[Batch]]:
    """Load the batches at `places` ahead of time in `workers` processes, which are stopped when the context exits."""
    loader: DataLoader[Sample | Damaged] = DataLoader(
        dataset, batch_sampler=places, collate_fn=list, num_workers=workers, worker_init_fn=_undisturbed
    )
    batches = iter(loader)
    try:
        yield batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ValueError(f"a data-loading process died ({first_line(error)}); try fewer workers") from error
    finally:
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()  # they ignore the signal that Python would end them with


def _undisturbed(_: int) -> None:
    """Ignore signals in a worker. Schedulers signal every process, and workers must outlive the trainer's last step."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
