"""Signals of a scheduler: the run saves, and exits with a code that asks to be started again."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

REQUEUE = 75
"""Exit code of a run that was asked to stop, has saved, and should be started again: EX_TEMPFAIL of sysexits.h."""
ASKED_BY = (signal.SIGTERM, signal.SIGUSR1)


class Interrupt:
    """Context in which SIGTERM and SIGUSR1 are recorded instead of ending the process."""

    def __init__(self) -> None:
        self.received: str | None = None
        """Name of the first signal received."""

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._remember) for number in ASKED_BY}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
