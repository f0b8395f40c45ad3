"""A scheduler's signal is remembered, and handled as before once the run is over."""

from __future__ import annotations

import os
import signal

import pytest

from sam_blvit.train.run.interrupt import Interrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_by_name(number: signal.Signals) -> None:
    with Interrupt() as interrupt:
        assert interrupt.received is None
        os.kill(os.getpid(), number)
        assert interrupt.received == number.name


def test_the_first_of_several_signals_counts() -> None:
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.received == "SIGUSR1"


def test_afterwards_signals_are_handled_as_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
