"""Fields of a model as words, NAME=VALUE each: how a recipe or a command line replaces any of them."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable, Sequence

from sam_blvit.config.model import ModelConfig

FLAGS = {"name": "model", "window": "window", "image_size": "image_size"}
"""Fields that settings of their own replace, and those settings."""


def parse_options(options: Sequence[str]) -> dict[str, object]:
    """Fields of a `ModelConfig` by name, read from NAME=VALUE each by the type of the field.

    Tuples are numbers with commas between them, perhaps none. ValueError, one line, names the option that cannot be.
    """
    fields: dict[str, object] = {}
    for option in options:
        name, equals, word = option.partition("=")
        if not equals:
            raise ValueError(
                f"options: {option!r} is not NAME=VALUE, as in dim=128; in YAML, quote what has a comma in it"
            )
        _check_name(name, option)
        if name in fields:
            raise ValueError(f"options: {option!r} names {name} again; name it once")
        fields[name] = _read(name, word, option)
    return fields


def _check_name(name: str, option: str) -> None:
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    if name not in names:
        near = difflib.get_close_matches(name, names)
        hint = f"perhaps {' or '.join(near)} is meant" if near else f"there are {', '.join(names)}"
        raise ValueError(f"options: {option!r} names no field of a model; {hint}")
    if name in FLAGS:
        raise ValueError(f"options: {option!r} has a setting of its own; give it with {FLAGS[name]}")


def _read(name: str, word: str, option: str) -> object:
    read, wanted = READERS[typing.get_type_hints(ModelConfig)[name]]
    try:
        return read(word)
    except ValueError:
        raise ValueError(f"options: {option!r} does not give {name} {wanted}") from None


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
    tuple[int, ...]: (_numbers, "whole numbers with commas between them, as in 3,6, or nothing"),
    int | None: (_number_or_none, "a whole number or none"),
}
"""How a field of each type is read, and what that wants."""
