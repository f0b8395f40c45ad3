"""The command line: YAML and flags to a dataclass, errors to one line. The only module that knows tyro and YAML."""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import tyro
import yaml

from sam_blvit.allocator import tune_allocator

USAGE_ERROR = 2


def run(command: Callable[[Any], Any], args: Sequence[str] | None = None) -> None:
    """Call `command`, whose only parameter is a config dataclass, with what the command line says.

    A first argument ending in .yaml names a file with defaults; flags after it win.
    """
    args = list(sys.argv[1:] if args is None else args)
    (config_type,) = [t for name, t in typing.get_type_hints(command).items() if name != "return"]

    def parse_and_call() -> Any:
        given = args
        if given and given[0].endswith((".yaml", ".yml")):
            given = _flags_of(Path(given[0]), config_type) + given[1:]
        program = Path(sys.argv[0]).name
        config = tyro.cli(config_type, args=given, prog=f"{program} [CONFIG.yaml]", description=sys.modules[command.__module__].__doc__)
        return command(config)

    _one_line_errors(parse_and_call)


def _one_line_errors(action: Callable[[], Any]) -> None:
    tune_allocator()
    try:
        action()
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(USAGE_ERROR) from None


def _flags_of(path: Path, config_type: type) -> list[str]:
    """The settings in a YAML file as flags."""
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    known = [field.name for field in fields(config_type)]
    if not isinstance(settings, dict) or (unknown := sorted(set(settings) - set(known))):
        raise ValueError(f"{path}: unknown settings {unknown if isinstance(settings, dict) else settings!r}; there are {', '.join(known)}")
    flags: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return flags
