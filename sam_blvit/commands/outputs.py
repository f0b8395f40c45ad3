"""Finds the input photographs of a command and plans its output files.

The JSON of a result names its photograph. An existing file is overwritten only if the JSON beside it names the same
photograph, so that no other result and no user's file is lost.
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
    """A photograph and its output files."""

    photograph: Path
    files: dict[str, Path]
    """Paths by kind of output; `json` is the record that names the photograph."""

    @property
    def name(self) -> str:
        """The photograph's path as written in the record."""
        return str(self.photograph.resolve())


def plan_outputs(
    images: Sequence[Path], directory: Path, endings: Mapping[str, str], *, inputs: Sequence[str | Path | None] = ()
) -> list[Outputs]:
    """Plan the outputs of all photographs. Reads existing records and writes nothing.

    A file is named after its photograph, plus an ending. The photograph's suffix is kept only if another photograph has
    the same stem.

    Args:
        images: Photographs, and directories of photographs.
        directory: Output directory.
        endings: Ending of the file name for each kind of output.
        inputs: Other files that the command reads, which must not be overwritten.

    Raises:
        ValueError: If there is no photograph, two photographs have the same name, or a file would be lost.
    """
    photographs = find_photographs(images, directory)
    counts = Counter(path.stem for path in photographs)
    names = {path: path.stem if counts[path.stem] == 1 else path.name for path in photographs}
    owners: dict[str, Path] = {}
    for path, name in names.items():
        if name in owners:
            raise ValueError(f"{owners[name]} and {path} would both be called {name}; use separate output directories")
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
    """`images` in order and without duplicates, with each directory replaced by its photographs, sorted by name."""
    found: dict[Path, Path] = {}
    for path in images:
        inside = [path]
        if path.is_dir():
            if path.resolve() == directory.resolve():
                raise ValueError(f"output {directory} also holds the photographs; choose another directory")
            inside = sorted(
                each for each in path.iterdir() if each.suffix.lower() in PHOTOGRAPH_SUFFIXES and each.is_file()
            )
            if not inside:
                raise ValueError(f"{path} has no photograph ({', '.join(sorted(PHOTOGRAPH_SUFFIXES))})")
        for each in inside:
            found.setdefault(each.resolve(), each)
    if not found:
        raise ValueError("no photograph is given; pass one or more, or a directory of photographs")
    return list(found.values())


def _check_free(outputs: Outputs) -> None:
    """Raise ValueError if an output file exists that belongs to another photograph."""
    there = [path for path in outputs.files.values() if path.exists()]
    if there and _named_in(outputs.files[JSON]) != outputs.name:
        raise ValueError(
            f"{there[0]} already exists and was not made from {outputs.photograph}; choose another output or move it"
        )


def _named_in(record: Path) -> str | None:
    """The photograph named in a record file. None if the file is not a record."""
    try:
        content = parse_json(record.read_bytes())
    except (OSError, ValueError):
        return None
    return content.get("photograph") if isinstance(content, dict) else None
