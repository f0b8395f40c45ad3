"""Your own photographs and masks: annotations in COCO's instance format, and a directory of images.

Everything except the pixels is checked when the source is created, so a mask that cannot be drawn stops a run before
it starts.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam_blvit.data.annotated import Annotated
from sam_blvit.data.instances import ImageFile, Instance, check_masks, find_images, read_instances


class Coco:
    """The photographs that `annotations` lists, by ascending image id (a `Source`).

    Photographs without objects are included: they add nothing to the mask loss but are still distilled.
    """

    def __init__(self, annotations: str | Path, images: str | Path) -> None:
        """Crowds are left out, with a warning that counts them.

        Raises:
            ValueError: if the annotations are malformed, a mask cannot be drawn, or a photograph is not found in
                directory `images`.
        """
        dataset = read_instances(annotations, may_be_empty=True)
        records = dataset.records
        objects = [instance for instance in dataset.instances if not instance.crowd]
        if crowds := len(dataset.instances) - len(objects):
            warnings.warn(
                f"annotations {annotations}: {crowds} crowds of {len(dataset.instances)} annotations are left out",
                stacklevel=2,
            )
        try:
            check_masks(objects, records)
        except ValueError as error:
            raise ValueError(f"annotations {annotations}: {error}") from error
        files = find_images([records[image_id] for image_id in sorted(records)], images)
        of_image: dict[int, list[Instance]] = defaultdict(list)
        for instance in objects:
            of_image[instance.image_id].append(instance)
        self.name = str(annotations)
        self.annotations_sha256 = dataset.sha256
        self.image_ids: NDArray[np.int64] = np.array([file.image_id for file in files], dtype=np.int64)
        # relative_to would reject absolute file names
        self._locations = [os.path.splitext(os.path.relpath(file.path, images))[0] for file in files]
        # bytes are shared by data-loading processes, objects would be copied into each (see pairs.py)
        packed = [pickle.dumps((file, of_image[file.image_id])) for file in files]
        self._ends = np.cumsum([len(one) for one in packed])
        self._packed = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.image_ids)

    def location(self, index: int) -> str:
        """The photograph's path from the directory of images, without its suffix."""
        return self._locations[index]

    def read(self, index: int) -> Annotated:
        """The photograph and its objects; ValueError if it cannot be read or has another size than annotated."""
        file, instances = self._unpacked(index)
        return Annotated(file.image_id, file.pixels(), instances)

    def _unpacked(self, index: int) -> tuple[ImageFile, list[Instance]]:
        start = int(self._ends[index - 1]) if index else 0
        found: tuple[ImageFile, list[Instance]] = pickle.loads(self._packed[start : self._ends[index]].tobytes())
        return found
