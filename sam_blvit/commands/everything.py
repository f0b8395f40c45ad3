"""`sam-blvit everything`: masks every object of each photograph and writes a picture and a JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor
from tqdm import tqdm

from sam_blvit.automatic_mask_generator import Candidates, SamAutomaticMaskGenerator
from sam_blvit.checkpoint.load import load_model, weight_files
from sam_blvit.commands.outputs import JSON, Outputs, plan_outputs
from sam_blvit.commands.segment import describe_run, read_each
from sam_blvit.config import THRESHOLDS, EverythingConfig
from sam_blvit.draw.pictures import draw_everything
from sam_blvit.model.sam import Sam
from sam_blvit.system.files import output_directory, write_atomically, write_json

PICTURE = "everything"
SETTINGS = ("points_per_side", *THRESHOLDS, "min_mask_region_area")


class WatchedGenerator(SamAutomaticMaskGenerator):
    """Advances `bar` by the points that have been processed."""

    bar: tqdm[Any]

    def _at_points(self, points: Tensor) -> Candidates:
        found = super()._at_points(points)
        self.bar.update(len(points))
        return found


def segment_everything(images: Sequence[Path], config: EverythingConfig) -> Iterator[dict[str, Any]]:
    """Mask the objects of each photograph in `images`, which may contain directories.

    Writes `<stem>_everything.png` and `<stem>_everything.json` to `config.output`. Photographs with the same stem use
    their whole names instead. The JSON holds `annotations` (`SamAutomaticMaskGenerator`'s records without empty masks,
    masks as COCO RLE), the model and settings, and the milliseconds.

    Yields:
        The content of each JSON, plus the written paths under `files`.

    Raises:
        ValueError: If a photograph, checkpoint or output directory cannot be used. If there are several photographs,
            the readable ones are processed first.
    """
    endings = {PICTURE: "_everything.png", JSON: "_everything.json"}
    planned = plan_outputs(images, config.output, endings, inputs=weight_files(config))
    load = cache(partial(load_model, config))
    points = len(planned) * config.points_per_side**2
    with tqdm(total=points, desc="everything", unit="point", disable=None) as bar:
        for outputs, photograph, _ in read_each(planned, lambda size: size):
            output_directory(config.output)
            yield _segmented(load(), config, outputs, photograph, bar)


def _segmented(
    sam: Sam, config: EverythingConfig, outputs: Outputs, photograph: np.ndarray, bar: tqdm[Any]
) -> dict[str, Any]:
    """Mask the objects of one photograph (H, W, 3) and write the outputs. Returns the record with its `files`."""
    given = {name: value for name in SETTINGS if (value := getattr(config, name)) is not None}
    generator = WatchedGenerator(sam, **given, output_mode="coco_rle")
    generator.bar = bar
    settings = given | {name: getattr(generator, name) for name in THRESHOLDS}
    annotations = [annotation for annotation in generator.generate(photograph) if annotation["area"]]
    largest_first = sorted(annotations, key=lambda annotation: annotation["area"], reverse=True)
    masks = (coco.decode(annotation["segmentation"]).astype(bool) for annotation in largest_first)
    picture = draw_everything(photograph, masks)
    record = {
        "photograph": outputs.name,
        **describe_run(sam, config, photograph),
        "settings": settings,
        "milliseconds": {part: round(spent, 3) for part, spent in generator.milliseconds.items()},
        "annotations": annotations,
    }
    write_json(outputs.files[JSON], record)
    write_atomically(outputs.files[PICTURE], partial(Image.fromarray(picture).save, format="PNG"))
    return {**record, "files": {name: str(path) for name, path in outputs.files.items()}}
