"""Ids of photographs, annotations and categories: whole numbers that fit the int64 of NumPy's arrays."""

from __future__ import annotations

from typing import Any

ID_LIMIT = 2**63
"""The first whole number that is too large for an id."""


def checked_id(value: Any) -> int:
    """`value` if it can be an id; ValueError, one line, if it cannot."""
    if checked_count(value) >= ID_LIMIT:
        raise ValueError(f"{value!r:.80} is not below 2**63; number from 1 up")
    return int(value)


def checked_count(value: Any) -> int:
    """`value` if it is a whole number that is not negative; ValueError, one line, if it is not."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r:.80} is not a whole number from 0 up")
    return value
