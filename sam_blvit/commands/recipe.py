"""Recipes: converts YAML files of settings to flags. The only module that reads YAML.

Settings may be at the top level of a file or nested below the part of the config that they belong to.
"""

from __future__ import annotations

import argparse
import typing
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml

import sam_blvit
from sam_blvit.commands.flags import flag_of, parsed, registry, takes_many
from sam_blvit.config import kinds_of, parts_of, preset_of


def recipes() -> dict[str, Path]:
    """The recipes of this package by name. They are in sam_blvit/recipes in a wheel and in configs/ in a checkout."""
    package = Path(sam_blvit.__file__).parent
    folder = package / "recipes"
    folder = folder if folder.is_dir() else package.parent / "configs"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def named_recipe(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Split a command line into its file of settings, if there is one, and the other words.

    Args:
        words: A command line. Its first word may be a .yaml file; `--recipe NAME` may stand anywhere.

    Raises:
        ValueError: If there is no recipe of that name, or both a file and a recipe are named.
    """
    if not any(word.partition("=")[0] == "--recipe" for word in words):
        first = Path(words[0]) if words and Path(words[0]).suffix in {".yaml", ".yml"} else None
        return first, list(words[1 if first else 0 :])
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", nargs="?")
    known, others = parser.parse_known_args(words)
    name = known.recipe or ""
    if others and Path(others[0]).suffix in {".yaml", ".yml"}:
        raise ValueError(f"{others[0]} and --recipe {name} are both given; give one of them")
    if name not in recipes():
        raise ValueError(f"no recipe named {name!r}; there are {', '.join(recipes())}")
    return recipes()[name], others


def recipe_flags(path: Path, config_type: type, *, but: str | None) -> list[str]:
    """The settings in a YAML file as flags, except for the field `but`.

    Raises:
        ValueError: If the file cannot be read, or has an unknown setting or an invalid value.
    """
    kinds = kinds_of(config_type)
    flags: list[str] = []
    for name, value in _flat(path, _settings_in(path), config_type).items():
        if name != but:
            try:
                flags += _flags_for(name, value, kinds[name])
            except ValueError as error:
                raise ValueError(f"{path}: {name}: {error}") from error
    return flags


def preset_flags(config_type: type, flags: Sequence[str]) -> list[str]:
    """The settings of the preset in `flags`, as flags. Empty if the config has no such preset."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")
    preset = preset_of(config_type, parser.parse_known_args(flags)[0].preset)
    kinds = kinds_of(config_type)
    return [flag for name, value in preset.items() for flag in _flags_for(name, value, kinds[name])]


def _flat(path: Path, settings: Mapping[str, Any], config_type: type) -> dict[str, Any]:
    """`settings` as one flat mapping, with nested parts expanded."""
    parts, known = parts_of(config_type), kinds_of(config_type)
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = name in parts and isinstance(value, dict)
        if name in parts and name not in known and not nested:
            raise ValueError(f"{path}: {name} is a group of settings, not a setting; indent its settings below it")
        mine, names = (value, list(kinds_of(parts[name]))) if nested else ({name: value}, list(known))
        if unknown := sorted(set(map(str, mine)) - set(names)):
            where = f"{path}: {name}" if nested else f"{path}"
            raise ValueError(f"{where}: unknown settings {', '.join(unknown)}; there are {', '.join(names)}")
        if twice := sorted(flat.keys() & mine.keys()):
            raise ValueError(f"{path}: {', '.join(twice)}: set twice, at the top level and in a group; set it once")
        flat |= mine
    return flat


def _settings_in(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: If the file is missing or holds anything else.
    """
    if not path.is_file():
        raise ValueError(f"settings {path} is not a file; --recipe NAME uses a recipe of this package")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply; write settings as name: value") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} has no settings of the form name: value")
    return settings


def _flags_for(name: str, value: object, kind: Any) -> list[str]:
    """One setting as flags.

    Raises:
        ValueError: If the value does not fit the field's type, `kind`.
    """
    if isinstance(value, bool) != (kind is bool):
        if kind is bool:
            raise ValueError(f"{value!r} is not true or false; write true or false without quotes")
        raise ValueError(f"YAML reads this word as {str(value).lower()}; put it in quotes")
    if isinstance(value, bool):
        return [flag_of(name) if value else flag_of(f"no_{name}")]
    many = takes_many(kind)
    if isinstance(value, dict) or (isinstance(value, (list, tuple)) and not many):
        raise ValueError(f"{value!r} is a collection, but a single value is expected")
    if value is None and type(None) not in typing.get_args(kind):
        raise ValueError("the value is missing; write one, or delete the line")
    words = [str(part) for part in value] if isinstance(value, (list, tuple)) else [str(value)]
    flags = [flag_of(name), *words] if many else [f"{flag_of(name)}={words[0]}"]
    setting = make_dataclass("Setting", [(name, kind)])
    parsed(lambda: tyro.cli(setting, args=flags, registry=registry()))
    return flags
