"""Fields of annotation files, each checked and converted, and the line that names a malformed one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, TypeVar

from sam_blvit.data.ids import checked_count

Value = TypeVar("Value")


def read_field(value: Any, name: str, convert: Callable[[Any], Value]) -> Value:
    """`convert(value)`; its error names the field."""
    try:
        return convert(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{reason(error)} in {name}") from error


def checked_path(value: Any) -> PurePosixPath:
    """A path as text; `.` for null or an empty one."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{value!r:.80} is not text")
    return PurePosixPath(value or "")


def checked_side(value: Any) -> int:
    """Height or width in pixels."""
    if checked_count(value) == 0:
        raise ValueError("0 is not a number of pixels")
    return int(value)


def checked_box(value: Any) -> tuple[float, float, float, float]:
    """x, y, width, height."""
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"{value!r:.80} is not x, y, width, height")
    x, y, width, height = (checked_number(number) for number in value)
    if min(width, height) < 0:
        raise ValueError(f"{value!r:.80} is inside out; x, y, width, height are expected")
    return x, y, width, height


def checked_crowd(value: Any) -> bool:
    """Whether an annotation is of a crowd; null counts as no."""
    if value is not None and (type(value) not in (bool, int) or value not in (0, 1)):
        raise ValueError(f"{value!r:.80} is not 0, 1, true, false or null; write 1 for a crowd, 0 for one object")
    return bool(value)


def checked_number(value: Any) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{value!r:.80} is not a finite number")
    return float(value)


def malformed(kind: str, entry: Any, error: Exception) -> ValueError:
    """The error of an entry, an "image" or an "annotation" by `kind`, of which `error` is the cause."""
    named = entry["id"] if isinstance(entry, dict) and "id" in entry else entry
    which = "without id" if isinstance(named, dict) else f"{named!r:.40}"
    return ValueError(f"{kind} {which} is malformed ({reason(error)})")


def reason(error: Exception) -> str:
    """The first line of `error`; of a missing key that it is missing."""
    return f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
