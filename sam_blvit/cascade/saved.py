"""Saved scores of a model, and true labels, read and checked.

Shapes:
    n  samples    C  classes
"""

from __future__ import annotations

import csv
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_blvit.cascade.confidence import softmax

SUM_TOLERANCE = 0.01
"""Rows of probabilities sum to 1 within this, in float16 too."""
NAME_COLUMNS = ("name", "file")
"""Columns of a table of labels that may hold the samples' names."""


@dataclass(frozen=True)
class SavedScores:
    """What one model makes of every sample."""

    source: str
    """The file's name without its ending."""
    names: list[str]
    """(n,) file name of each sample, each once."""
    probabilities: NDArray[np.float64]
    """(n, C)."""
    macs: float
    """Multiply-accumulates for one sample, in the file's own unit."""
    milliseconds: float | None
    """For one sample; None if the file does not say."""
    load_milliseconds: float | None
    """For loading the model once; None if the file does not say."""
    confidence: NDArray[np.float64] | None
    """(n,) the model's own; None if the file does not say."""

    def in_order(self, names: Sequence[str]) -> SavedScores:
        """The same with samples in the order of `names`; ValueError if the two do not name the same samples."""
        place = {name: index for index, name in enumerate(self.names)}
        if missing := [name for name in names if name not in place]:
            raise ValueError(f"{self.source}: no scores for {missing[0]!r}, which another model has scores for")
        if len(names) < len(place):
            extra = sorted(place.keys() - set(names))[0]
            raise ValueError(f"{self.source}: scores for {extra!r}, which another model has no scores for")
        order = [place[name] for name in names]
        return replace(
            self,
            names=list(names),
            probabilities=self.probabilities[order],
            confidence=None if self.confidence is None else self.confidence[order],
        )


def read_scores(path: Path, *, scores_are: str = "auto") -> SavedScores:
    """Read `scores` (n, C), `names` (n,), `macs` and, if there, `milliseconds`, `load_milliseconds` and `confidence`
    (n,) from an .npz file.

    `scores_are` logits or probabilities; auto takes rows of numbers from 0 to 1 that sum to 1 for probabilities.

    Raises:
        ValueError: One line naming the file and what is wrong with it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError, EOFError) as error:
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"{path} does not exist") from error
        raise ValueError(
            f"{path} is not an .npz file of plain arrays; write it with numpy.savez, names as an array of str"
        ) from error
    for name in ("scores", "names", "macs"):
        if name not in arrays:
            raise ValueError(f"{path}: no array {name!r}; it has {', '.join(sorted(arrays)) or 'none'}")
    names = _names(arrays["names"], path)
    scores = _numbers(arrays, "scores", path, names)
    if scores.ndim != 2 or len(scores) != len(names) or scores.shape[1] < 1:
        raise ValueError(f"{path}: scores of shape {scores.shape}: ({len(names)}, classes) is expected, as names says")
    confidence = _numbers(arrays, "confidence", path, names) if "confidence" in arrays else None
    if confidence is not None and confidence.shape != (len(names),):
        raise ValueError(f"{path}: confidence of shape {confidence.shape}: ({len(names)},) is expected")
    return SavedScores(
        source=path.stem,
        names=names,
        probabilities=scores if _are_probabilities(scores, scores_are, path) else softmax(scores),
        macs=_cost(arrays, "macs", path),
        milliseconds=_cost(arrays, "milliseconds", path) if "milliseconds" in arrays else None,
        load_milliseconds=_cost(arrays, "load_milliseconds", path) if "load_milliseconds" in arrays else None,
        confidence=confidence,
    )


def _names(array: NDArray[Any], path: Path) -> list[str]:
    if array.ndim != 1 or array.dtype.kind not in "US" or not len(array):
        raise ValueError(f"{path}: names must be a list of at least one file name, not {array.dtype} {array.shape}")
    try:
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in array.tolist()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: names are not UTF-8") from error
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{path}: {name!r} is named {times} times; names must differ")
    return names


def _numbers(arrays: Mapping[str, NDArray[Any]], key: str, path: Path, names: Sequence[str]) -> NDArray[np.float64]:
    if arrays[key].dtype.kind not in "fiu":
        raise ValueError(f"{path}: {key} are {arrays[key].dtype}, not real numbers")
    numbers = arrays[key].astype(np.float64)
    bad = np.argwhere(~np.isfinite(numbers))
    if len(bad):
        where = names[bad[0][0]] if bad.shape[1] and bad[0][0] < len(names) else "a sample"
        raise ValueError(f"{path}: {key} of {where!r} are not finite")
    return numbers


def _are_probabilities(scores: NDArray[np.float64], scores_are: str, path: Path) -> bool:
    fits = bool((scores >= 0).all() and np.abs(scores.sum(axis=1) - 1).max() <= SUM_TOLERANCE)
    if scores_are == "probabilities" and not fits:
        raise ValueError(f"{path}: scores are not probabilities, rows from 0 to 1 that sum to 1; they may be logits")
    return fits and scores_are != "logits"


def _cost(arrays: Mapping[str, NDArray[Any]], key: str, path: Path) -> float:
    array = arrays[key]
    if array.size != 1 or array.dtype.kind not in "fiu":
        raise ValueError(f"{path}: {key} must be one number for one sample, not {array.dtype} {array.shape}")
    value = float(array.reshape(-1)[0])
    if not (np.isfinite(value) and value >= 0):
        raise ValueError(f"{path}: {key}={value} is not a cost, a finite number from 0 up")
    return value


def perturbed_file(path: Path, perturbation: str) -> Path:
    """Where the scores on corrupted copies of the samples of `path` are: little.npz, little.jpeg10.npz."""
    return path if perturbation == "clean" else path.with_name(f"{path.stem}.{perturbation}.npz")


def read_labels(path: Path, names: Sequence[str], *, classes: int) -> NDArray[np.int64]:
    """True class (n,) of each of `names` from a CSV table with a column `label` and one, `name` or `file`, of names.

    Where both name columns are there, the one that holds `names` counts. Samples beyond `names` are left out.

    Raises:
        ValueError: One line naming the file, and the row that has no class from 0 to `classes` - 1.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV table in UTF-8") from error
    columns = [column for column in NAME_COLUMNS if rows and column in rows[0]]
    if not columns or "label" not in rows[0]:
        raise ValueError(f"{path}: a row of column names with name (or file) and label is expected, then the samples")
    wanted = set(names)
    held = {column: Counter(row[column] for row in rows if row[column] in wanted) for column in columns}
    column = max(columns, key=lambda name: len(held[name]))
    if missing := [name for name in names if name not in held[column]]:
        raise ValueError(f"{path}: no label for {missing[0]!r} ({len(missing)} of {len(names)} have none)")
    if twice := [name for name, times in held[column].items() if times > 1]:
        raise ValueError(f"{path}: {twice[0]!r} has more than one label")
    label_of = {row[column]: _label(row["label"], row[column], classes, path) for row in rows if row[column] in wanted}
    return np.array([label_of[name] for name in names], dtype=np.int64)


def _label(text: str | None, name: str, classes: int, path: Path) -> int:
    try:
        label = int(text or "")
    except ValueError:
        label = -1
    if not 0 <= label < classes:
        raise ValueError(f"{path}: label {text!r} of {name!r} is not a class, a whole number from 0 to {classes - 1}")
    return label
