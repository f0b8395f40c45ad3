"""`sam-blvit segment`: masks one object of each photograph and writes a mask, an overlay and a JSON."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from pycocotools import mask as coco
from tqdm import tqdm

from sam_blvit.checkpoint.load import load_model, weight_files
from sam_blvit.commands.outputs import JSON, Outputs, plan_outputs
from sam_blvit.config import MODELS, SegmentConfig, WeightsConfig
from sam_blvit.cost.latency import now
from sam_blvit.data.images import read_image
from sam_blvit.draw.pictures import draw_overlay, draw_routing, routing_map
from sam_blvit.model.sam import Sam
from sam_blvit.predictor import SamPredictor, check_inside, checked_box, checked_points
from sam_blvit.system.files import output_directory, write_atomically, write_json

PromptT = TypeVar("PromptT")


@dataclass(frozen=True)
class ObjectPrompt:
    """The prompt for one object, in pixels of the photograph."""

    points: np.ndarray | None
    """(n, 2), each X, Y."""
    labels: np.ndarray | None
    """(n,) 1 on the object, 0 off it."""
    box: np.ndarray | None
    """(4,) X0, Y0, X1, Y1."""

    @property
    def ambiguous(self) -> bool:
        """Whether to choose the best of three masks instead of the single mask: only for a single point.

        A point may mean a part or the whole object, and SAM's paper and notebooks predict three masks only then. For
        boxes this also holds for `blvit_s_t`: at keep ratio 0.25 the single mask has 59.1 mIoU and the best of three
        56.9 (48 boxes of COCO val2017). At keep ratio 1 it is the same.
        """
        return self.box is None and self.points is not None and len(self.points) == 1

    def to_json(self) -> dict[str, Any]:
        """Plain lists and None."""
        return {
            name: None if values is None else values.tolist()
            for name, values in (("points", self.points), ("labels", self.labels), ("box", self.box))
        }


@dataclass(frozen=True)
class SegmentedObject:
    """The mask chosen for a prompt."""

    mask: np.ndarray
    """(H, W) bool."""
    predicted_iou: float
    milliseconds: dict[str, float]
    """encoder: resizing, upload and embedding of the photograph; decoder: from the prompt to the full-size mask."""


def segment(images: Sequence[Path], config: SegmentConfig) -> Iterator[dict[str, Any]]:
    """Mask the object given by `config`'s prompts in each photograph in `images`, which may contain directories.

    Writes `<stem>_mask.png` (0 and 255, the photograph's size, upright), `<stem>_overlay.png`, `<stem>.json`, and with
    `show_routing` `<stem>_routing.png` to `config.output`. Photographs with the same stem use their whole names
    instead.

    Yields:
        The content of each JSON, plus the written paths under `files`.

    Raises:
        ValueError: If a photograph, prompt, checkpoint or output directory cannot be used. If there are several
            photographs, the readable ones are processed first.
    """
    kinds = ("mask", "overlay", *(["routing"] if config.show_routing else []))
    endings = {JSON: ".json", **{kind: f"_{kind}.png" for kind in kinds}}
    planned = plan_outputs(images, config.output, endings, inputs=weight_files(config))
    load = cache(partial(load_model, config))
    with tqdm(total=len(planned), desc="segment", unit="image", disable=None if len(planned) > 1 else True) as bar:
        for outputs, photograph, prompt in read_each(planned, partial(parse_prompt, config)):
            output_directory(config.output)
            yield _segmented(load(), config, outputs, photograph, prompt)
            bar.update()


def read_each(
    planned: Sequence[Outputs], ask: Callable[[tuple[int, int]], PromptT]
) -> Iterator[tuple[Outputs, np.ndarray, PromptT]]:
    """Read each photograph (H, W, 3) and compute its prompt, `ask(size)` for `size` (H, W).

    Raises:
        ValueError: If a photograph cannot be used. If there are several, it is skipped with a warning, and the error is
            raised after the last photograph.
    """
    left_out = 0
    for outputs in planned:
        try:
            photograph = read_image(outputs.photograph)
            asked = ask((photograph.shape[0], photograph.shape[1]))
        except ValueError as error:
            if len(planned) == 1:
                raise
            warnings.warn(f"{outputs.photograph} is left out: {error}", stacklevel=2)
            left_out += 1
            continue
        yield outputs, photograph, asked
    if left_out:
        raise ValueError(f"{left_out} of {len(planned)} photographs cannot be used; see the notes above")


def _segmented(
    sam: Sam, config: SegmentConfig, outputs: Outputs, photograph: np.ndarray, prompt: ObjectPrompt
) -> dict[str, Any]:
    """Mask one photograph (H, W, 3) and write the outputs. Returns the record with its `files`."""
    predictor = SamPredictor(sam)
    result = predict(predictor, photograph, prompt)
    pictures = {
        "mask": result.mask.astype(np.uint8) * 255,
        "overlay": draw_overlay(photograph, result.mask, points=prompt.points, labels=prompt.labels, box=prompt.box),
    }
    if config.show_routing:
        pictures["routing"] = routing_picture(predictor, photograph)
    record = {
        "photograph": outputs.name,
        **_describe(result),
        **describe_run(sam, config, photograph),
        "prompt": prompt.to_json(),
    }
    write_json(outputs.files[JSON], record)  # first, because it names the photograph that the pictures belong to
    for name, picture in pictures.items():
        write_atomically(outputs.files[name], partial(Image.fromarray(picture).save, format="PNG"))
    return {**record, "files": {name: str(outputs.files[name]) for name in (*pictures, JSON)}}


def predict(predictor: SamPredictor, photograph: np.ndarray, prompt: ObjectPrompt) -> SegmentedObject:
    """Set `photograph` (H, W, 3) and predict the mask for `prompt`.

    For an ambiguous prompt it is the mask of highest predicted IoU among three.
    """
    start = now(predictor.device)
    predictor.set_image(photograph)
    embedded = now(predictor.device)
    masks, iou, _ = predictor.predict(prompt.points, prompt.labels, prompt.box, multimask_output=prompt.ambiguous)
    decoded = now(predictor.device)
    best = int(iou.argmax())
    return SegmentedObject(
        mask=masks[best],
        predicted_iou=float(iou[best]),
        milliseconds={"encoder": round(embedded - start, 3), "decoder": round(decoded - embedded, 3)},
    )


def routing_picture(predictor: SamPredictor, photograph: np.ndarray) -> np.ndarray:
    """Draw which tokens each router sent to the performance block, on the current `photograph` (H, W, 3).

    A compiled encoder returns no routing. In that case the photograph is encoded again, eagerly.

    Raises:
        ValueError: If the model routed no tokens.
    """
    sam = predictor.model
    encoding = predictor.encoding or sam.encode_photograph(photograph)
    if not encoding.routings:
        raise ValueError(
            f"show_routing: {sam.config.name} at keep_ratio={sam.image_encoder.keep_ratio:g} routes no tokens; "
            "use a blvit model with a keep ratio between 0 and 1"
        )
    maps = {layer: routing_map(routing, encoding.layout) for layer, routing in encoding.routings.items()}
    return draw_routing(photograph, maps, input_size=encoding.input_size)


def parse_prompt(config: SegmentConfig, size: tuple[int, int]) -> ObjectPrompt:
    """Parse and check `config`'s points and box for a photograph of `size` (H, W) pixels."""
    if not config.point and config.box is None:
        raise ValueError("nothing to segment: pass at least one --point X,Y on the object, or --box X0,Y0,X1,Y1")
    texts = (*config.point, *config.negative)
    points, labels = None, None
    if texts:
        coords = [parse_numbers(text, "X,Y") for text in texts]
        marks = [1] * len(config.point) + [0] * len(config.negative)
        points, labels = checked_points(coords, marks)
        check_inside(points, size=size)
    return ObjectPrompt(points=points, labels=labels, box=None if config.box is None else _parse_box(config.box, size))


def parse_numbers(text: str, form: str) -> list[float]:
    """The finite numbers in `text`, as many as `form` (such as X,Y) has."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(form.split(",")) or not np.isfinite(numbers).all():
        raise ValueError(f"{text!r} is not {form}, comma-separated numbers of pixels")
    return numbers


def _parse_box(text: str, size: tuple[int, int]) -> np.ndarray:
    """Parse a box. Unlike a detector's box it must lie inside the image, because it was typed by hand."""
    box = checked_box(parse_numbers(text, "X0,Y0,X1,Y1"), size=size)
    height, width = size
    if box.min() < 0 or (box[2:] > (width, height)).any():
        raise ValueError(f"box {text} reaches outside the image of {width} x {height} pixels (width x height)")
    if (box[:2] == box[2:]).any():
        raise ValueError(f"box {text} is empty; pass X0,Y0,X1,Y1 with X0 < X1 and Y0 < Y1")
    return box


def _describe(result: SegmentedObject) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(result.mask, dtype=np.uint8))
    x, y, width, height = coco.toBbox(rle).tolist()
    return {
        "predicted_iou": result.predicted_iou,
        "box": [x, y, x + width, y + height],  # X0, Y0, X1, Y1, like the prompt's
        "area": int(result.mask.sum()),
        "rle": {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")},
        "milliseconds": result.milliseconds,
    }


def describe_run(sam: Sam, config: WeightsConfig, photograph: np.ndarray) -> dict[str, Any]:
    """The model, its weights and keep ratio, the device, and the size of `photograph` (H, W, 3), as JSON values."""
    weights = config.checkpoint if config.model is None or config.model in MODELS else config.model
    return {
        "model": sam.config.name,
        "checkpoint": None if weights is None else str(weights),
        "keep_ratio": sam.image_encoder.keep_ratio,
        "device": str(sam.device),
        "image_size": {"height": photograph.shape[0], "width": photograph.shape[1]},
    }
