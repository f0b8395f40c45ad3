"""Draw a part of SA-1B to train on, and one to validate with: lists of photographs, and nothing copied.

The one thing to know: names are sorted before anything is drawn, so a seed gives the same lists, byte for byte, on
any machine with the same data.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sam_blvit.config import SubsetConfig
from sam_blvit.data.manifest import write_manifest
from sam_blvit.data.sa1b import TAR, Sa1b, tar_names
from sam_blvit.data.sources import Source, part
from sam_blvit.system.files import check_inputs_stay, file_sha256, output_directory, write_json

TRAIN, VALIDATION = "train", "validation"
SUMMARY = "subset.json"
OUTPUTS = (f"{TRAIN}.tsv", f"{VALIDATION}.tsv", SUMMARY)


def draw_subset(config: SubsetConfig) -> dict[str, Any]:
    """Write train.tsv, validation.tsv (if any is wanted) and subset.json to `config.output`; what is in the last.

    ValueError, one line, where the data hold less than is asked for.
    """
    drawn = _tars(config) if config.unit == "tar" else _images(config)
    check_inputs_stay((config.output / name for name in OUTPUTS), map(config.data.joinpath, tar_names(config.data)))
    output = output_directory(config.output)
    lists = {kind: _written(kind, source, config) for kind, source in drawn.items() if source is not None}
    if drawn[VALIDATION] is None:
        (output / f"{VALIDATION}.tsv").unlink(missing_ok=True)  # of an earlier draw
    settings = {name: getattr(config, name) for name in ("unit", "fraction", "validation", "seed")}
    summary = {"settings": {"data": str(config.data), **settings}, **lists}
    write_json(output / SUMMARY, summary)
    told = (f"{kind}.tsv {entry['images']} images, sha256 {entry['sha256']}" for kind, entry in lists.items())
    print(f"{output}: {'; '.join(told)}")
    return summary


def _tars(config: SubsetConfig) -> dict[str, Source | None]:
    """All of some tars, and images of one more."""
    names = tar_names(config.data) if config.data.is_dir() else []
    if not names:
        raise ValueError(f"unit=tar: {config.data} holds no {TAR} files; take --unit image, or name another directory")
    count = max(1, round(config.fraction * len(names)))
    if config.validation and count == len(names):
        raise ValueError(
            f"unit=tar: training takes all {count} tars of {config.data}, and leaves none to validate with; take "
            "--unit image or --validation 0, or a smaller --fraction"
        )
    rng = np.random.default_rng(config.seed)
    order = [names[i] for i in rng.permutation(len(names))]
    train = Sa1b(config.data, tars=order[:count])
    if not config.validation:
        return {TRAIN: train, VALIDATION: None}
    further = Sa1b(config.data, tars=[order[count]])
    if len(further) < config.validation:
        raise ValueError(
            f"validation={config.validation}: {order[count]} holds {len(further)} images; name fewer, or take "
            "--unit image"
        )
    return {TRAIN: train, VALIDATION: _some(further, rng.permutation(len(further))[: config.validation])}


def _images(config: SubsetConfig) -> dict[str, Source | None]:
    """Single images, wherever they lie."""
    whole = Sa1b(config.data)
    count = max(1, round(config.fraction * len(whole)))
    if count + config.validation > len(whole):
        raise ValueError(
            f"fraction={config.fraction} and validation={config.validation} are {count + config.validation} images; "
            f"{config.data} holds {len(whole)}"
        )
    order = np.random.default_rng(config.seed).permutation(len(whole))
    validation = order[count : count + config.validation]
    return {TRAIN: _some(whole, order[:count]), VALIDATION: _some(whole, validation) if config.validation else None}


def _some(source: Source, indices: np.ndarray) -> Source:
    return part(source, source.image_ids[indices])


def _written(kind: str, source: Source, config: SubsetConfig) -> dict[str, Any]:
    """Write the list of `source`; its size, hash and tars."""
    path = config.output / f"{kind}.tsv"
    entries = [(image_id, source.location(index)) for index, image_id in enumerate(source.image_ids.tolist())]
    write_manifest(path, entries, remark=f"{len(entries)} photographs: image id, location")
    tars = sorted({location for _, location in entries if location.endswith(TAR)})
    return {"images": len(entries), "sha256": file_sha256(path), "tars": tars}
