"""Scores and costs of classifiers on a folder of photographs, written as the files that a cascade reads.

One model is in memory at a time. Files: `scores/MODEL.npz`, and `scores/MODEL.PERTURBATION.npz` of corrupted copies.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from sam_blvit.cascade.classifiers import Classifier, classify, load_classifier
from sam_blvit.cascade.saved import perturbed_file, read_labels
from sam_blvit.config.cascade import CascadeConfig
from sam_blvit.cost.latency import median_milliseconds, now
from sam_blvit.cost.macs import module_macs
from sam_blvit.data.images import PHOTOGRAPH_SUFFIXES, read_image
from sam_blvit.evaluate.protocol.perturb import CLEAN, Perturbation, perturbations_named
from sam_blvit.system.distributed import pick_device
from sam_blvit.system.files import check_inputs_stay, write_atomically

SCORES, LABELS = "scores", "labels.csv"
WARM_UPS = 3
"""Photographs that are answered before the clock counts."""


@dataclass(frozen=True)
class Folder:
    """Photographs, and the table of their labels."""

    images: Path
    names: list[str]
    """(n,) paths inside `images`."""
    labels: Path
    classes: int | None
    """How many class folders there are; None if a table has the labels."""

    def read(self, name: str) -> NDArray[np.uint8]:
        """The photograph called `name`, (H, W, 3)."""
        return np.asarray(read_image(self.images / name))


def score_models(config: CascadeConfig) -> CascadeConfig:
    """Write the scores of each of `config.models`, and return the settings that read them.

    Raises:
        ValueError: For a model, photograph or label that cannot be used, before the first file is written where
            possible.
    """
    device = pick_device(config.device)
    perturbations = perturbations_named(config.perturb)
    paths = {name: config.output / SCORES / (re.sub(r"[^\w.-]+", "_", name) + ".npz") for name in config.models}
    if len(set(paths.values())) < len(config.models):
        raise ValueError(f"models={' '.join(config.models)}: two would have one file of scores; name each once")
    folder = find_folder(config)
    files = [perturbed_file(path, each.name) for path in paths.values() for each in perturbations]
    check_inputs_stay(files, [folder.labels, *(folder.images / name for name in folder.names)])
    for name, path in paths.items():
        score_model(name, path, folder, config, perturbations=perturbations, device=device)
    names = tuple(each.name for each in perturbations if each is not CLEAN)
    return replace(config, models=(), images=None, scores=tuple(paths.values()), labels=folder.labels, perturb=names)


def find_folder(config: CascadeConfig) -> Folder:
    """The photographs in `config.images`, at any depth, and their labels.

    Labels are in `config.labels`, else in `labels.csv` beside the photographs, else the class folders that photographs
    lie in, numbered by name; the table of these is written to the output.
    """
    images = config.images
    if images is None or not images.is_dir():
        raise ValueError(f"images {images} is not a directory; name the one that holds the photographs")
    found = sorted(path for path in images.rglob("*") if path.suffix.lower() in PHOTOGRAPH_SUFFIXES and path.is_file())
    names = [path.relative_to(images).as_posix() for path in found]
    if not names:
        raise ValueError(f"images {images} holds no photograph ({', '.join(sorted(PHOTOGRAPH_SUFFIXES))})")
    labels = config.labels or images / LABELS
    if config.labels is not None or labels.is_file():
        return Folder(images, names, labels, classes=None)
    if outside := [name for name in names if name.count("/") != 1]:
        raise ValueError(
            f"{outside[0]} is in no class folder of {images}; move it to CLASS/{Path(outside[0]).name}, or name a "
            "table of labels with --labels"
        )
    classes = sorted({name.split("/")[0] for name in names})
    labels = config.output / LABELS
    _write_labels(labels, {name: classes.index(name.split("/")[0]) for name in names})
    return Folder(images, names, labels, classes=len(classes))


def score_model(
    name: str,
    path: Path,
    folder: Folder,
    config: CascadeConfig,
    *,
    perturbations: Sequence[Perturbation],
    device: torch.device,
) -> None:
    """Write the scores and costs of the model called `name` to `path`, and to files beside it of corrupted copies."""
    load = partial(load_classifier, name, device)
    costs = {}
    if config.timed:
        costs["load_milliseconds"] = median_milliseconds(load, device)
    classifier = load()
    first = folder.read(folder.names[0])
    _check_classes(name, folder, classify(classifier, [first], device).shape[1])
    costs["macs"] = module_macs(classifier.model, classifier.transform(Image.fromarray(first))[None].to(device))
    if config.timed:
        costs["milliseconds"] = _milliseconds(classifier, folder, config.timed, device)
    scores = _scores(classifier, folder, perturbations, config.batch_size, device)
    for perturbation, rows in scores.items():
        arrays = {"scores": rows, "names": np.array(folder.names), **costs}
        write_atomically(perturbed_file(path, perturbation), partial(_save, arrays))


def _check_classes(name: str, folder: Folder, classes: int) -> None:
    """Before hours of work: every photograph has a label that the model can give."""
    if folder.classes not in (None, classes):
        raise ValueError(
            f"model={name} has {classes} classes, {folder.images} has {folder.classes} class folders, so which "
            "is which is unknown; name a table of labels with --labels"
        )
    read_labels(folder.labels, folder.names, classes=classes)


def _milliseconds(classifier: Classifier, folder: Folder, timed: int, device: torch.device) -> float:
    """Median over `timed` photographs of a batch of 1: transform, model and the scores' way back."""
    photographs = [folder.read(name) for name in folder.names[:timed]]
    spent = []
    for photograph in [*photographs[:WARM_UPS], *photographs]:
        start = now(device)
        classify(classifier, [photograph], device)
        spent.append(now(device) - start)
    return statistics.median(spent[-len(photographs) :])


def _scores(
    classifier: Classifier,
    folder: Folder,
    perturbations: Sequence[Perturbation],
    batch_size: int,
    device: torch.device,
) -> dict[str, NDArray[np.float32]]:
    """Scores (n, C) by perturbation. Each photograph is decoded once."""
    rows: dict[str, list[NDArray[np.float32]]] = {each.name: [] for each in perturbations}
    with tqdm(total=len(folder.names), desc="scores", unit="image", disable=None) as bar:
        for start in range(0, len(folder.names), batch_size):
            photographs = [folder.read(name) for name in folder.names[start : start + batch_size]]
            for each in perturbations:
                rows[each.name].append(classify(classifier, [each.image(pixels) for pixels in photographs], device))
            bar.update(len(photographs))
    return {name: np.concatenate(of_batches) for name, of_batches in rows.items()}


def _save(arrays: Mapping[str, object], to: str) -> None:
    with open(to, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _write_labels(path: Path, label_of: Mapping[str, int]) -> None:
    def write(to: str) -> None:
        with open(to, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("name", "label"), *label_of.items()])

    write_atomically(path, write)
