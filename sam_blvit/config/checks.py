"""Checks shared by several configs. Each raises a ValueError that names the setting and its value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any


def check_words(config: object, choices: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError if a setting in `choices` is not one of the allowed words."""
    for name, words in choices.items():
        if (value := getattr(config, name)) not in words:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(words)}")


def check_at_least(config: object, least: int, *names: str) -> None:
    """Raise ValueError if a setting in `names` is below `least`, 0 or 1. None passes."""
    for name in names:
        if (value := getattr(config, name)) is not None and not value >= least:
            kind = "a positive number" if least == 1 else "negative" if value < 0 else "a number from 0 up"
            raise ValueError(f"{name}={value} is {'not ' if kind != 'negative' else ''}{kind}")


def check_finite(config: Any) -> None:
    """Raise ValueError if a setting is infinite or NaN."""
    for field in dataclasses.fields(config):
        if isinstance(value := getattr(config, field.name), float) and not math.isfinite(value):
            raise ValueError(f"{field.name}={value} is not a finite number")
