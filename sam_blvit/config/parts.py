"""Nested configs, and conversion to and from flat settings.

A part is a dataclass inside a config: `config.optimizer.lr`. Flags, recipes and stored runs use the flat name `lr`.
Names of settings must therefore be unique across the parts of a config.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, TypeVar

Config = TypeVar("Config")


def parts_of(config_type: type) -> dict[str, type]:
    """Return the dataclass of each part of a config by name."""
    return {name: kind for name, kind in _fields(config_type).items() if _is_part(kind)}


def kinds_of(config_type: type) -> dict[str, Any]:
    """Return the type of every setting by its flat name."""
    kinds: dict[str, Any] = {}
    for name, kind in _fields(config_type).items():
        kinds |= kinds_of(kind) if _is_part(kind) else {name: kind}
    return kinds


def settings_of(config: Any) -> dict[str, Any]:
    """Return the value of every setting by its flat name."""
    settings: dict[str, Any] = {}
    for name in _fields(type(config)):
        value = getattr(config, name)
        settings |= settings_of(value) if dataclasses.is_dataclass(value) else {name: value}
    return settings


def compose(config_type: type[Config], **settings: Any) -> Config:
    """Build a config from flat settings.

    Settings that are left out have the values of the preset, if the config has presets, else their defaults.

    Raises:
        TypeError: if a setting is unknown.
        ValueError: if a value does not pass the config's checks.
    """
    given = preset_of(config_type, settings.get("preset")) | settings
    parts = {}
    for name, kind in parts_of(config_type).items():
        mine = kinds_of(kind)
        parts[name] = kind(**{setting: given.pop(setting) for setting in list(given) if setting in mine})
    return config_type(**given, **parts)


def preset_of(config_type: type, name: object) -> dict[str, Any]:
    """Return the flat settings of a preset. Empty for an unknown preset, which the config's own check rejects."""
    return dict(getattr(config_type, "presets", {}).get(name, {}))


def _is_part(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)


def _fields(config_type: type) -> dict[str, Any]:
    kinds = typing.get_type_hints(config_type)
    return {field.name: kinds[field.name] for field in dataclasses.fields(config_type)}
