"""Parse model fields given as NAME=VALUE in a recipe or on the command line."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable, Sequence

from sam_blvit.config.model import ModelConfig

FLAGS = {"name": "model", "window": "window", "image_size": "image_size"}
"""Fields that have a setting of their own, and the name of that setting."""


def parse_options(options: Sequence[str]) -> dict[str, object]:
    """Parse fields of a `ModelConfig`.

    Args:
        options: Each NAME=VALUE. Tuples are comma-separated numbers, or empty.

    Returns:
        Values by field name, of the types of the fields.

    Raises:
        ValueError: If an option is malformed, unknown or repeated.
    """
    fields: dict[str, object] = {}
    for option in options:
        name, equals, word = option.partition("=")
        if not equals:
            raise ValueError(f"options: {option!r} is not NAME=VALUE, as in dim=128; in YAML, quote values with commas")
        _check_name(name, option)
        if name in fields:
            raise ValueError(f"options: {option!r} repeats {name}; name it once")
        fields[name] = _read(name, word, option)
    return fields


def _check_name(name: str, option: str) -> None:
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    if name not in names:
        near = difflib.get_close_matches(name, names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the fields are {', '.join(names)}"
        raise ValueError(f"options: {option!r}: models have no field {name!r}; {hint}")
    if name in FLAGS:
        raise ValueError(f"options: {option!r} has its own setting; use {FLAGS[name]}")


def _read(name: str, word: str, option: str) -> object:
    read, wanted = READERS[typing.get_type_hints(ModelConfig)[name]]
    try:
        return read(word)
    except ValueError:
        raise ValueError(f"options: {option!r} is invalid; {name} must be {wanted}") from None


def _switch(word: str) -> bool:
    return ("false", "true").index(word.lower()) == 1


def _numbers(word: str) -> tuple[int, ...]:
    return tuple(int(part) for part in word.split(",")) if word else ()


def _number_or_none(word: str) -> int | None:
    return None if word.lower() == "none" else int(word)


READERS: dict[object, tuple[Callable[[str], object], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (_switch, "true or false"),
    str: (str, "a word"),
    tuple[int, ...]: (_numbers, "comma-separated whole numbers, as in 3,6, or empty"),
    int | None: (_number_or_none, "a whole number or none"),
}
"""Parser of each type of field, and a description of the values it accepts."""
