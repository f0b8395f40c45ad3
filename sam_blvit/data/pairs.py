"""Pairs of SA-1B as one array: `sa_<id>.jpg` and `sa_<id>.json`, and where the bytes of both are.

The one thing to know: a list of Python objects is copied into every process that reads data, page by page, as
references to it are counted. An array is shared by all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from sam_blvit.data.ids import checked_id

PAIR = np.dtype(
    [
        ("image_id", "<i8"),
        ("place", "<i4"),  # number of the tar, or of the directory
        ("image", "<i8", 2),  # offset and size of the .jpg
        ("annotations", "<i8", 2),  # and of the .json
    ]
)
"""One photograph and its annotations."""
ABSENT = -1
"""As an offset: this half of the pair is not there."""
WHOLE_FILE = -1
"""As a size: all that a file holds."""
HALVES = {".jpg": "image", ".json": "annotations"}
NAME = re.compile(r"sa_(0|[1-9]\d*)\.(?:jpg|json)")

Pairs = NDArray[np.void]
"""(n,) of `PAIR`."""


def pairs_of(files: Iterable[tuple[str, int, int]]) -> Pairs:
    """The pairs among `files` (name, offset, size), by ascending id, with place 0; a half that lacks is `ABSENT`.

    Names other than .jpg and .json, and hidden ones, are passed over. ValueError where a name is not SA-1B's, or is
    there twice.
    """
    halves: dict[str, dict[int, tuple[int, int]]] = {half: {} for half in HALVES.values()}
    for name, offset, size in files:
        suffix = name[name.rfind(".") :]
        if suffix not in HALVES or name.startswith("."):
            continue
        matched = NAME.fullmatch(name)
        if matched is None:
            raise ValueError(
                f"{name} is not named sa_<id>.jpg or sa_<id>.json as in SA-1B; for data of your own name their "
                "annotations in COCO's format"
            )
        try:
            image_id = checked_id(int(matched[1]))
        except ValueError as error:
            raise ValueError(f"{name:.80} has an id that cannot be used ({error})") from error
        extents = halves[HALVES[suffix]]
        if image_id in extents:
            raise ValueError(f"{name} is there twice; remove one of them")
        extents[image_id] = (offset, size)
    ids = sorted(halves["image"].keys() | halves["annotations"].keys())
    pairs = np.zeros(len(ids), dtype=PAIR)
    pairs["image_id"] = ids
    for half, extents in halves.items():
        pairs[half] = np.array([extents.get(image_id, (ABSENT, 0)) for image_id in ids]).reshape(-1, 2)
    return pairs


def are_whole(pairs: Pairs) -> NDArray[np.bool_]:
    """Whether both halves of each of `pairs` are there."""
    return (pairs["image"][:, 0] != ABSENT) & (pairs["annotations"][:, 0] != ABSENT)
