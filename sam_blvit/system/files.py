"""Atomic writes, hashes of files, and checks of paths."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def write_atomically(path: str | Path, write: Callable[[str], object]) -> None:
    """Have `write` fill a temporary file beside `path`, then put it in place of `path` in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would make the file private
        to_disk(temporary)  # otherwise a crash may leave the name without the content
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def to_disk(path: str | Path) -> None:
    """Return once what was written to `path`, a file or a directory, would survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda to: Path(to).write_text(text, encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError also if it is nested too deeply for Python."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error


def output_directory(path: Path) -> Path:
    """`path`, created as a directory if necessary."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise ValueError(f"output {path} cannot be a directory ({reason}); name another") from error
    return path


def check_inputs_stay(outputs: Iterable[Path], inputs: Iterable[str | Path | None]) -> None:
    """Raise ValueError if an output would replace one of `inputs`, also through another path or a link."""
    given = [path for path in inputs if path is not None and os.path.exists(path)]
    for output in filter(os.path.exists, outputs):
        for path in given:
            if os.path.samefile(output, path):
                raise ValueError(f"output {output} would replace the input {path}; name another output")


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, the identity of the weights in it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of `error`'s message, or its type if the message is empty."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
