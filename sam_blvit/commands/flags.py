"""Flags as lists of words, and how tyro parses them."""

from __future__ import annotations

import contextlib
import io
import re
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from sam_blvit.config import kinds_of

T = TypeVar("T")


def registry() -> ConstructorRegistry:
    """tyro's rules and two more: 0,1,2 means the same as 0 1 2, and a path must not be empty."""
    rules = ConstructorRegistry()

    @rules.primitive_rule
    def path(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path | None] | None:
        optional = kind.type == Path | None
        if kind.type is not Path and not optional:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="{None}|PATH" if optional else "PATH",
            instance_from_str=lambda words: None if optional and words == ["None"] else _path(words[0]),
            is_instance=lambda value: isinstance(value, Path) or (optional and value is None),
            str_from_instance=lambda value: [str(value)],
        )

    @rules.primitive_rule
    def paths(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[Path, ...]] | None:
        if kind.type_origin is not tuple or typing.get_args(kind.type) != (Path, ...):
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="[PATH [PATH ...]]",
            instance_from_str=lambda words: tuple(map(_path, words)),
            is_instance=lambda value: isinstance(value, tuple) and all(isinstance(part, Path) for part in value),
            str_from_instance=lambda value: list(map(str, value)),
        )

    @rules.primitive_rule
    def numbers(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[float, ...]] | None:
        inner = typing.get_args(kind.type)
        if kind.type_origin is not tuple or inner not in ((int, ...), (float, ...)):
            return None
        number = inner[0]
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar=f"{number.__name__.upper()},...",
            instance_from_str=lambda words: tuple(number(part) for word in words for part in word.split(",")),
            is_instance=lambda value: (
                isinstance(value, tuple) and all(isinstance(part, (int, float)) for part in value)
            ),
            str_from_instance=lambda value: [",".join(f"{part:g}" for part in value)] if value else [],
        )

    return rules


def parsed(parse: Callable[[], T]) -> T:
    """Call `parse` and return its result.

    Raises:
        ValueError: With tyro's message as one line, if tyro would exit with an error.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return parse()
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise ValueError(_first_paragraph(errors.getvalue())) from None


def list_flags(*config_types: type) -> set[str]:
    """The flags of `config_types` that accept any number of values."""
    hints = (hint for config_type in config_types for hint in kinds_of(config_type).items())
    return {flag_of(name) for name, kind in hints if takes_many(kind)}


def takes_many(kind: object) -> bool:
    """Whether `kind` is, or can be, a tuple of any length."""
    return Ellipsis in typing.get_args(kind) or any(takes_many(option) for option in typing.get_args(kind))


def flag_of(name: str) -> str:
    """The flag of the setting `name`."""
    return f"--{name.replace('_', '-')}"


def joined(words: Iterable[str], lists: set[str]) -> list[str]:
    """Merge repeated flags of `lists`: --point A --point B becomes --point A B."""
    groups: list[list[str]] = [[]]  # each flag with its values; the first group has no flag
    places: dict[str, list[str]] = {}
    for word in words:
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if not word.startswith("--"):
            groups[-1].append(word)
        elif flag in places:
            places[flag] += [value] if equals else []
            groups.append(places[flag])
        else:
            groups.append([flag, value] if equals and flag in lists else [word])
            if flag in lists:
                places[flag] = groups[-1]
    distinct = {id(group): group for group in groups}
    return [word for group in distinct.values() for word in group]


def _path(word: str) -> Path:
    if not word.strip():
        raise ValueError("the path is empty; pass a file or a directory (. is the current one)")
    return Path(word)


def _first_paragraph(boxed: str) -> str:
    """The first paragraph of tyro's boxed message as one line. Without Unicode the box is drawn with - only."""
    lines = [line.strip("│ ") for line in boxed.splitlines()[1:]]
    rules = [not line or set(line) <= set("-─╰╯") for line in lines]
    start = rules.index(False)
    end = rules.index(True, start) if True in rules[start:] else len(lines)
    text = " ".join(lines[start:end])
    return re.sub(r"^Error parsing [\w.-]*dummy[\w.-]*: ", "", text) + " (see --help)"
