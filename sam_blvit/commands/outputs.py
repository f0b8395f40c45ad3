"""Which photographs a command takes, and what it may call the files it writes of each.

The JSON of a result names its photograph. A file that is there already is overwritten only if the JSON beside it names
the same photograph, so neither another photograph's result nor anybody's own file is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sam_blvit.data.images import PHOTOGRAPH_SUFFIXES
from sam_blvit.system.files import check_inputs_stay, parse_json

JSON = "json"


@dataclass(frozen=True)
class Outputs:
    """A photograph, and the files that its result goes to."""

    photograph: Path
    files: dict[str, Path]
    """By what they hold; `json` is the record that names the photograph."""

    @property
    def name(self) -> str:
        """The photograph, as the record names it."""
        return str(self.photograph.resolve())


def plan_outputs(
    images: Sequence[Path], directory: Path, endings: Mapping[str, str], *, inputs: Sequence[str | Path | None] = ()
) -> list[Outputs]:
    """The photographs of `images`, files and directories of them, and what to write of each to `directory`.

    A file is called after the photograph, without its suffix where no other photograph has that name, and ends as
    `endings` says. Nothing is read or written but the records that are there. `inputs` are read besides.

    Raises:
        ValueError: One line, if there is no photograph, two have one name, or a file would be lost.
    """
    photographs = find_photographs(images, directory)
    counts = Counter(path.stem for path in photographs)
    names = {path: path.stem if counts[path.stem] == 1 else path.name for path in photographs}
    owners: dict[str, Path] = {}
    for path, name in names.items():
        if name in owners:
            raise ValueError(f"{owners[name]} and {path} would both be called {name}; give them outputs of their own")
        owners[name] = path
    planned = [
        Outputs(path, {kind: directory / f"{name}{ending}" for kind, ending in endings.items()})
        for path, name in names.items()
    ]
    check_inputs_stay((file for outputs in planned for file in outputs.files.values()), [*photographs, *inputs])
    for outputs in planned:
        _check_free(outputs)
    return planned


def find_photographs(images: Sequence[Path], directory: Path) -> list[Path]:
    """`images` in their order, each once, with the photographs that lie in a directory in its place, by name."""
    found: dict[Path, Path] = {}
    for path in images:
        inside = [path]
        if path.is_dir():
            if path.resolve() == directory.resolve():
                raise ValueError(f"output {directory} holds the photographs, too; name another directory")
            inside = sorted(
                each for each in path.iterdir() if each.suffix.lower() in PHOTOGRAPH_SUFFIXES and each.is_file()
            )
            if not inside:
                raise ValueError(f"{path} holds no photograph ({', '.join(sorted(PHOTOGRAPH_SUFFIXES))})")
        for each in inside:
            found.setdefault(each.resolve(), each)
    if not found:
        raise ValueError("no photograph is given; name one or more, or a directory of them")
    return list(found.values())


def _check_free(outputs: Outputs) -> None:
    """Raise ValueError if a file is there that was not written of this photograph."""
    there = [path for path in outputs.files.values() if path.exists()]
    if there and _named_in(outputs.files[JSON]) != outputs.name:
        raise ValueError(
            f"{there[0]} is there and was not made of {outputs.photograph}; name another output, or move the file"
        )


def _named_in(record: Path) -> str | None:
    """The photograph that a record names, if it is one."""
    try:
        content = parse_json(record.read_bytes())
    except (OSError, ValueError):
        return None
    return content.get("photograph") if isinstance(content, dict) else None
