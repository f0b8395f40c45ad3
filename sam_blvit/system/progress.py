"""Words for who waits at a terminal; a log file gets none."""

from __future__ import annotations

import sys


def announce(text: str) -> None:
    """Print `text` to stderr if that is a terminal."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)
