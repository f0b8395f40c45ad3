"""Messages for a user at a terminal, not for log files."""

from __future__ import annotations

import sys


def announce(text: str) -> None:
    """Print `text` to stderr if that is a terminal."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)
