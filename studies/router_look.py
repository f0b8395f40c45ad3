"""Where routers place primary tokens: shares on edges and inside objects, stability under small changes, pictures.

$ python studies/router_look.py instances.json IMAGES CHECKPOINT [CHECKPOINT ...] --output DIR

A token is on an edge if its cell of 16 x 16 pixels has pixels of an annotated object and pixels outside of it, and
inside if its cell lies wholly in an object and on no edge. Tokens on padding are ignored. Chance is the share among all
tokens of a photograph, which a random choice within each window would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import skimage
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm
from tyro.conf import Positional

from sam_blvit.checkpoint.load import load_model
from sam_blvit.cli import run
from sam_blvit.config import PATCH_SIZE, WeightsConfig
from sam_blvit.data.images import read_image
from sam_blvit.data.instances import ImageFile, Instance, find_images, read_instances
from sam_blvit.draw.pictures import captioned, draw_page, on_image, routing_map, routing_panels, scaled
from sam_blvit.evaluate.masks import MaskMeasure, measure_masks
from sam_blvit.evaluate.metrics.statistics import Interval, paired_bootstrap
from sam_blvit.evaluate.metrics.summary import markdown
from sam_blvit.evaluate.photographs import by_image, photographs
from sam_blvit.evaluate.protocol.perturb import perturbation_named
from sam_blvit.evaluate.protocol.protocols import PROTOCOLS
from sam_blvit.model.measuring import measuring
from sam_blvit.model.sam import PhotographEncoding, Sam
from sam_blvit.system.files import output_directory, write_atomically
from sam_blvit.system.machine import processor

PERTURBATIONS = ("shift8", "jpeg30")
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
"""scikit-image's."""
SIDE = 320
"""Longest side of a picture's panel, pixels."""


@dataclass(frozen=True, kw_only=True)
class LookConfig:
    """Models whose routers are looked at, and the photographs."""

    annotations: Positional[Path]
    """Annotations in LVIS v0.5, LVIS v1 or COCO format."""
    images: Positional[Path]
    """Directory of the photographs."""
    checkpoints: Positional[tuple[Path, ...]]
    """Our big.LITTLE checkpoints."""
    output: Path
    """Directory for router_look.md and a picture of each checkpoint."""
    photos: tuple[Path, ...] = ()
    """Photographs for the pictures. Default: scikit-image's."""
    keep_ratio: float = 0.25
    """Share of the tokens that are primary."""
    image_size: int | None = None
    """Longest side of the encoder's input, pixels. Default: the checkpoint's."""
    limit: int | None = None
    """Photographs to measure. Default: all."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio < 1:
            raise ValueError(f"keep_ratio={self.keep_ratio}: name one between 0 and 1, where routers choose")
        pictures = [picture_of(checkpoint) for checkpoint in self.checkpoints]
        if twice := [name for name in pictures if pictures.count(name) > 1]:
            raise ValueError(f"two checkpoints would have the picture {twice[0]}; look at one at a time")


@dataclass(frozen=True)
class Places:
    """Where tokens lie: a share of them on edges of objects, another inside."""

    edge: float
    inside: float


@dataclass(frozen=True)
class Look:
    """One photograph."""

    image_id: int
    chance: Places
    """Of all its tokens."""
    primary: dict[int, Places]
    """Of the primary ones, by the layer a router follows."""


def looks(sam: Sam, images: Sequence[ImageFile], instances: Sequence[Instance]) -> list[Look]:
    """Where the primary tokens of `sam` lie on each of `images`."""
    found = []
    read = photographs(images, by_image(instances), side=sam.image_encoder.img_size)
    for photograph in tqdm(read, total=len(images), unit="image"):
        shape = photograph.resized.shape[:2]
        masks = [truth.mask for truth in photograph.truths]
        edge, inside = objects_on_tokens(masks, input_size=(shape[0], shape[1]), size=photograph.size)
        primary = {
            layer: places(chosen[: edge.shape[0], : edge.shape[1]], edge, inside)
            for layer, chosen in routing_maps(routed(sam, photograph.resized)).items()
        }
        found.append(Look(photograph.image.image_id, places(np.ones_like(edge), edge, inside), primary))
    return found


def objects_on_tokens(
    masks: Sequence[NDArray[np.bool_]], *, input_size: tuple[int, int], size: tuple[int, int]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which tokens (rows, columns) of a photograph are on an edge of one of `masks` (H, W), and which inside of one.

    The encoder sees the photograph of `size` (H, W) as `input_size` (h, w).
    """
    rows, columns = (-(-length // PATCH_SIZE) for length in input_size)
    token = on_image(np.arange(rows * columns).reshape(rows, columns), input_size=input_size, size=size)
    pixels = np.bincount(token.ravel(), minlength=rows * columns)
    edge, inside = np.zeros((2, rows * columns), dtype=bool)
    for mask in masks:
        covered = np.bincount(token[mask], minlength=rows * columns)
        edge |= (covered > 0) & (covered < pixels)
        inside |= (covered > 0) & (covered == pixels)
    return edge.reshape(rows, columns), (inside & ~edge).reshape(rows, columns)


def places(tokens: NDArray[np.bool_], edge: NDArray[np.bool_], inside: NDArray[np.bool_]) -> Places:
    """Shares of `tokens` on edges and inside, all (rows, columns); none of no tokens."""
    number = max(1, tokens.sum())
    return Places(edge=float((tokens & edge).sum() / number), inside=float((tokens & inside).sum() / number))


def routed(sam: Sam, pixels: NDArray[np.uint8]) -> PhotographEncoding:
    """The encoding of a photograph (H, W, 3) by `sam`. ValueError if no router runs."""
    encoding = sam.encode_photograph(pixels)
    if not encoding.routings:
        raise ValueError(
            f"{sam.config.name} at keep_ratio={sam.image_encoder.keep_ratio:g} routes no tokens; "
            "name a big.LITTLE checkpoint, or a higher keep ratio"
        )
    return encoding


def routing_maps(encoding: PhotographEncoding) -> dict[int, NDArray[np.bool_]]:
    """The tokens (Gh, Gw) that each router chose, by its layer."""
    return {layer: routing_map(routing, encoding.layout) for layer, routing in encoding.routings.items()}


def kept(sam: Sam, images: Sequence[ImageFile], instances: Sequence[Instance], perturbation: str) -> dict[int, float]:
    """Share of each router's primary tokens that stay primary under `perturbation`, by its layer.

    The evaluation counts them. It gets only the largest object of each photograph, whose mask is not used.
    """
    largest = [max(objects, key=lambda one: one.area) for objects in by_image(instances).values()]
    how = MaskMeasure(protocol=PROTOCOLS["blvit"], perturbation=perturbation_named(perturbation), boundary=False)
    return {int(layer): stay / of for layer, (stay, of) in measure_masks(sam, images, largest, how).primary.items()}


def lines(name: str, found: Sequence[Look], stays: Sequence[dict[int, float]]) -> list[list[str]]:
    """Cells of the table for each router of checkpoint `name`."""
    ids = np.array([look.image_id for look in found])
    table = []
    chance = np.array([[look.chance.edge, look.chance.inside] for look in found])
    for layer in found[0].primary:
        shares = np.array([[look.primary[layer].edge, look.primary[layer].inside] for look in found])
        cells = [
            cell
            for share, by_chance, gap in zip(
                shares.mean(0), chance.mean(0), paired_bootstrap(shares - chance, ids), strict=True
            )
            for cell in (f"{100 * share:.1f}", f"{100 * by_chance:.1f}", interval(gap))
        ]
        table.append([name, str(layer), *cells, *(f"{100 * stay[layer]:.1f}" for stay in stays)])
    return table


def interval(found: Interval) -> str:
    """Mean and bounds, percent."""
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def picture(sam: Sam, photos: Sequence[Path]) -> NDArray[np.uint8]:
    """A row for each of `photos`: the photograph, then for each router its primary tokens bright, the others dark."""
    rows = []
    for path in photos:
        photograph = read_image(path)
        encoding = routed(sam, photograph)
        shown = scaled(photograph, SIDE)
        panels = routing_panels(shown, routing_maps(encoding), input_size=encoding.input_size)
        rows.append([captioned(shown, path.stem), *panels])
    return draw_page(rows)


def picture_of(checkpoint: Path) -> str:
    """The file name of a checkpoint's picture. It includes the directory, because many are named `last.safetensors`."""
    return f"{checkpoint.resolve().parent.name}_{checkpoint.stem}.png"


def router_look(config: LookConfig) -> None:
    """Print the table and write it, with a picture of each checkpoint. ValueError if an input cannot be used."""
    dataset = read_instances(config.annotations)
    objects = by_image([instance for instance in dataset.instances if not instance.crowd])
    images = find_images([dataset.records[image_id] for image_id in objects][: config.limit], config.images)
    instances = [instance for image in images for instance in objects[image.image_id]]
    photos = config.photos or [Path(skimage.__file__).parent / "data" / name for name in PHOTOS]
    output = output_directory(config.output)
    table = []
    for path in config.checkpoints:
        sam = load_model(WeightsConfig(model=str(path), image_size=config.image_size, device=config.device))
        if not sam.config.routed:
            raise ValueError(f"{path} holds the dense {sam.config.name}, which routes no tokens; leave it out")
        with measuring(sam, config.keep_ratio):
            stays = [kept(sam, images, instances, name) for name in PERTURBATIONS]
            table += lines(str(path), looks(sam, images, instances), stays)
            page = Image.fromarray(picture(sam, photos))
        write_atomically(output / picture_of(path), partial(page.save, format="PNG"))
    shares = ["on edges, %", "by chance", "difference", "inside, %", "by chance", "difference"]
    head = ["checkpoint", "router after layer", *shares, *(f"stay, {name}" for name in PERTURBATIONS)]
    text = (
        f"{processor()}, {sam.device}, {torch.get_num_threads()} threads, torch {torch.__version__}; keep ratio "
        f"{config.keep_ratio:g}; {len(images)} photographs, {len(instances)} objects, crowds left out\n\n"
        "Where primary tokens lie (means over photographs, differences with their 95 % interval by bootstrap), and "
        "what percentage stays primary under a shift by 8 pixels and as JPEG of quality 30 (by chance "
        f"{100 * config.keep_ratio:g}):\n\n{markdown(head, table)}\n"
    )
    print(text, end="")
    write_atomically(output / "router_look.md", lambda to: Path(to).write_text(text))


if __name__ == "__main__":
    run(router_look)
