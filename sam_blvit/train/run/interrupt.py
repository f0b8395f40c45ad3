"""A scheduler asks a run to leave: it saves and ends with a code that says "start me again"."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

REQUEUE = 75
"""Exit code of a run that was asked to stop, saved and wants to go on: EX_TEMPFAIL of sysexits.h."""
ASKED_BY = (signal.SIGTERM, signal.SIGUSR1)


class Interrupt:
    """While the context lasts SIGTERM and SIGUSR1 are remembered instead of ending the process."""

    def __init__(self) -> None:
        self.received: str | None = None
        """Name of the first signal that came."""

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._remember) for number in ASKED_BY}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
