"""Who waits at a terminal sees how far a command is; a log file does not."""

from __future__ import annotations

import io

import pytest

from sam_blvit.system.progress import announce


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal(), "wait\n"), (io.StringIO(), "")])
def test_words_go_to_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, shown: str) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    announce("wait")
    assert stream.getvalue() == shown
