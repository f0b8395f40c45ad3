"""`sam-blvit everything`: every object of one photograph, to a picture and a JSON."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from pycocotools import mask as coco

from sam_blvit.checkpoint import load_model, weight_files
from sam_blvit.config import THRESHOLDS, EverythingConfig
from sam_blvit.data.images import read_image
from sam_blvit.drawing import draw_everything
from sam_blvit.everything import SamAutomaticMaskGenerator
from sam_blvit.files import check_inputs_stay, output_directory, write_atomically, write_json
from sam_blvit.segment import describe_run

SUFFIXES = {"everything": "png", "json": "json"}
SETTINGS = ("points_per_side", *THRESHOLDS, "min_mask_region_area")


def segment_everything(image: Path, config: EverythingConfig) -> dict[str, Any]:
    """Mask the objects of `image`, and write `<stem>_everything.png` and `<stem>_everything.json` to `config.output`.

    The JSON holds `annotations` (`SamAutomaticMaskGenerator`'s records, masks as COCO RLE; none without a pixel), what
    ran, and its milliseconds. Returns its content with the paths written under `files`.
    Raises ValueError, one line, for a photograph, checkpoint or output directory that cannot be used.
    """
    photograph = read_image(image)
    output = output_directory(config.output)
    files = {name: output / f"{Path(image).stem}_everything.{suffix}" for name, suffix in SUFFIXES.items()}
    check_inputs_stay(files.values(), [image, *weight_files(config)])
    sam = load_model(config)
    given = {name: value for name in SETTINGS if (value := getattr(config, name)) is not None}
    generator = SamAutomaticMaskGenerator(sam, **given, output_mode="coco_rle")
    settings = given | {name: getattr(generator, name) for name in THRESHOLDS}
    annotations = [annotation for annotation in generator.generate(photograph) if annotation["area"]]
    largest_first = sorted(annotations, key=lambda annotation: annotation["area"], reverse=True)
    masks = (coco.decode(annotation["segmentation"]).astype(bool) for annotation in largest_first)
    picture = draw_everything(photograph, masks)
    record = {
        **describe_run(sam, config, photograph),
        "settings": settings,
        "milliseconds": {part: round(spent, 3) for part, spent in generator.milliseconds.items()},
        "annotations": annotations,
    }
    write_json(files["json"], record)
    write_atomically(files["everything"], partial(Image.fromarray(picture).save, format="PNG"))
    return {**record, "files": {name: str(path) for name, path in files.items()}}
