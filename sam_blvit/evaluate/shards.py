"""Results of a run on disk as they come, a file for each process, so that a killed run goes on where it stopped.

Each line is whole JSON: first what the run is, then an image's id and its record. Whatever number of processes wrote
them, the records of a run are joined in the order of its images.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sam_blvit.system.distributed import Processes
from sam_blvit.system.files import parse_json

DIRECTORY = "shards"


class Shards:
    """What the processes of one run have measured so far, under `directory`."""

    def __init__(self, directory: Path, identity: Mapping[str, Any], *, resume: bool, processes: Processes) -> None:
        """Take up what is there, if `resume`; ValueError if there is something and it is not this run's, or not
        asked for."""
        self._directory = directory / DIRECTORY
        self._identity = json.loads(json.dumps(identity))
        self._processes = processes
        self.done = self._read()
        """Records by image id, from before."""
        if self.done and not resume:
            raise ValueError(
                f"output {self._directory} is an unfinished run; go on with --resume, or delete it to start again"
            )
        processes.wait()  # nobody writes before everybody has read
        if processes.first:
            with writable(self._directory):
                self._directory.mkdir(parents=True, exist_ok=True)
        processes.wait()
        if not self._directory.is_dir():
            raise ValueError(f"output {self._directory} is not seen by all processes; name one on a shared disk")

    def write(self, results: Iterable[tuple[int, Any]]) -> None:
        """Keep each image's record as soon as it is there. ValueError if the disk takes no more; nothing is lost."""
        path = self._directory / f"{len(self.done):06d}-{self._processes.rank}.jsonl"
        with writable(path):
            path.write_text(_line({"run": self._identity}))
        for image_id, record in _resumable(results):
            line = _line({"image_id": image_id, "record": record})
            with writable(path), path.open("a") as file:
                file.write(line)

    def joined(self, image_ids: Sequence[int]) -> list[Any]:
        """The record of each of `image_ids`, in that order; ValueError if one is missing."""
        records = self._read()
        if missing := [image_id for image_id in image_ids if image_id not in records]:
            raise ValueError(
                f"output {self._directory}: {len(missing)} of {len(image_ids)} images have no record, first "
                f"{missing[0]}; go on with --resume"
            )
        return [records[image_id] for image_id in image_ids]

    def remove(self) -> None:
        """Forget the records, once what they add up to is written."""
        shutil.rmtree(self._directory)

    def _read(self) -> dict[int, Any]:
        paths = sorted(self._directory.glob("*.jsonl"))
        records: dict[int, Any] = {}
        torn = 0
        for path in paths:
            lines = []
            for text in path.read_text(errors="replace").splitlines():
                try:
                    line = parse_json(text)
                except ValueError:
                    line = None
                if isinstance(line, dict):
                    lines.append(line)
                else:
                    torn += 1
            if len(lines) > 1:
                self._check_identity(lines[0].get("run", {}), path)
                records.update({line["image_id"]: line["record"] for line in lines[1:]})
        if torn and self._processes.first:
            warnings.warn(
                f"{self._directory}: {torn} torn lines left out, their images are measured again", stacklevel=4
            )
        return records

    def _check_identity(self, run: Mapping[str, Any], path: Path) -> None:
        differing = [name for name in {**self._identity, **run} if run.get(name) != self._identity.get(name)]
        if differing:
            told = "; ".join(f"{name} was {run.get(name)}, is {self._identity.get(name)}" for name in differing)
            raise ValueError(f"output {path} is of another run ({told}); delete it, or name another output")


def _resumable(results: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """`results`; what is wrong with one of them is said with what to do after it is mended."""
    try:
        yield from results
    except ValueError as error:
        raise ValueError(f"{error}; what was measured before is kept: mend it and go on with --resume") from error


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk into a ValueError that says what to do."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"output {path}: cannot be written ({error.strerror}); what was measured is kept: make room and go on with "
            "--resume"
        ) from error


def _line(content: Any) -> str:
    return json.dumps(content, allow_nan=False) + "\n"
