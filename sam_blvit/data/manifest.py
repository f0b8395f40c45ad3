"""Lists of photographs as text: a line `image_id<TAB>location` each, # before remarks.

The one thing to know: the list is what a run is trained on, whatever else lies in `data`. Its order means nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sam_blvit.data.ids import ID_LIMIT
from sam_blvit.system.files import write_atomically

REMARK = "#"


def write_manifest(path: Path, entries: Iterable[tuple[int, str]], *, remark: str) -> None:
    """Write `entries` (image id, location) by ascending id, under one line that says what they are."""
    lines = [f"{REMARK} {remark}", *(f"{image_id}\t{location}" for image_id, location in sorted(entries))]
    write_atomically(path, lambda to: Path(to).write_bytes("".join(f"{line}\n" for line in lines).encode()))


def read_manifest(path: Path) -> dict[int, str]:
    """The location of each image id; ValueError names the file and the first line that is no entry."""
    locations: dict[int, str] = {}
    for number, line in enumerate(_text(path, "manifest").splitlines(), start=1):
        if not line.strip() or line.startswith(REMARK):
            continue
        image_id, _, location = line.partition("\t")
        if not _is_id(image_id) or not location.strip():
            raise ValueError(f"manifest {path}: line {number} is {line!r:.80}, not an image id, a tab and a location")
        if int(image_id) in locations:
            raise ValueError(f"manifest {path}: line {number} lists image {image_id} again; remove it")
        locations[int(image_id)] = location.strip()
    if not locations:
        raise ValueError(f"manifest {path} lists no photograph; write it with tools/make_subset.py")
    return locations


def read_ids(path: Path) -> list[int]:
    """Image ids of a text file with one a line; ValueError names the file and the first that is none."""
    ids = []
    for number, word in enumerate(_text(path, "list").split(), start=1):
        if not _is_id(word):
            raise ValueError(f"{path}: entry {number} is {word!r:.80}, not an image id")
        ids.append(int(word))
    return ids


def _text(path: Path, kind: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{kind} {path} is no text file; name one with an image id a line") from error
    except OSError as error:
        raise ValueError(f"{kind} {path} cannot be read ({error.strerror}); name a text file") from error


def _is_id(word: str) -> bool:
    digits = word.lstrip("0")
    return word.isascii() and word.isdigit() and len(digits) <= len(str(ID_LIMIT)) and int(digits or 0) < ID_LIMIT
