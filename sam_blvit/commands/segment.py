"""`sam-blvit segment`: one object of each photograph, from prompts in text to a mask, a picture and numbers."""

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

Asked = TypeVar("Asked")


@dataclass(frozen=True)
class Prompt:
    """What points at the object, in pixels of the photograph."""

    points: np.ndarray | None
    """(n, 2), each X, Y."""
    labels: np.ndarray | None
    """(n,) 1 on the object, 0 off it."""
    box: np.ndarray | None
    """(4,) X0, Y0, X1, Y1."""

    @property
    def ambiguous(self) -> bool:
        """Whether the best of three masks answers, rather than the one for clear prompts: for one point alone.

        It may mean a part or the whole; SAM's paper and notebooks ask for three masks there only. For boxes the weights
        of `blvit_s_t` agree: 59.1 mIoU by the single mask, 56.9 by the best of three at keep ratio 0.25 (48 boxes of
        COCO val2017), and the same at 1.
        """
        return self.box is None and self.points is not None and len(self.points) == 1

    def to_json(self) -> dict[str, Any]:
        """Plain lists and None."""
        return {
            name: None if values is None else values.tolist()
            for name, values in (("points", self.points), ("labels", self.labels), ("box", self.box))
        }


@dataclass(frozen=True)
class Answer:
    """The mask chosen for a prompt."""

    mask: np.ndarray
    """(H, W) bool."""
    predicted_iou: float
    milliseconds: dict[str, float]
    """encoder: resizing, upload and embedding of the photograph; decoder: prompt to full-size mask."""


def segment(images: Sequence[Path], config: SegmentConfig) -> Iterator[dict[str, Any]]:
    """Mask the object that `config`'s prompts name in each of `images`, photographs and directories of them.

    Writes to `config.output` `<stem>_mask.png` (0 and 255, the photograph's size, upright), `<stem>_overlay.png`,
    `<stem>.json`, and with `show_routing` `<stem>_routing.png`; where two photographs have one stem, the whole name in
    its place. Yields the JSON's content with the paths written under `files`.

    Raises:
        ValueError: One line, for a photograph, prompt, checkpoint or output directory that cannot be used. Of several
            photographs, those that can be read are masked first.
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
    planned: Sequence[Outputs], ask: Callable[[tuple[int, int]], Asked]
) -> Iterator[tuple[Outputs, np.ndarray, Asked]]:
    """Each photograph (H, W, 3), and what `ask` makes of its size (H, W).

    Raises:
        ValueError: For a single photograph that cannot be used. Of several, it is left out with a warning, and the
            error comes after the last.
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
        raise ValueError(f"{left_out} of {len(planned)} photographs cannot be used; the notes above say why")


def _segmented(
    sam: Sam, config: SegmentConfig, outputs: Outputs, photograph: np.ndarray, prompt: Prompt
) -> dict[str, Any]:
    """Mask one photograph (H, W, 3) and write what came of it; the record, with the paths under `files`."""
    predictor = SamPredictor(sam)
    answer = predict(predictor, photograph, prompt)
    pictures = {
        "mask": answer.mask.astype(np.uint8) * 255,
        "overlay": draw_overlay(photograph, answer.mask, points=prompt.points, labels=prompt.labels, box=prompt.box),
    }
    if config.show_routing:
        pictures["routing"] = routing_picture(predictor, photograph)
    record = {
        "photograph": outputs.name,
        **_describe(answer),
        **describe_run(sam, config, photograph),
        "prompt": prompt.to_json(),
    }
    write_json(outputs.files[JSON], record)  # first: it says whose the pictures are
    for name, picture in pictures.items():
        write_atomically(outputs.files[name], partial(Image.fromarray(picture).save, format="PNG"))
    return {**record, "files": {name: str(outputs.files[name]) for name in (*pictures, JSON)}}


def predict(predictor: SamPredictor, photograph: np.ndarray, prompt: Prompt) -> Answer:
    """Set `photograph` (H, W, 3) and mask what `prompt` names: of three masks the one of highest predicted IoU if it is
    ambiguous."""
    start = now(predictor.device)
    predictor.set_image(photograph)
    embedded = now(predictor.device)
    masks, iou, _ = predictor.predict(prompt.points, prompt.labels, prompt.box, multimask_output=prompt.ambiguous)
    decoded = now(predictor.device)
    best = int(iou.argmax())
    return Answer(
        mask=masks[best],
        predicted_iou=float(iou[best]),
        milliseconds={"encoder": round(embedded - start, 3), "decoder": round(decoded - embedded, 3)},
    )


def routing_picture(predictor: SamPredictor, photograph: np.ndarray) -> np.ndarray:
    """Draw which tokens each router sent to the performance block, on the `photograph` (H, W, 3) that was set.

    A compiled encoder returns no routing, so it encodes the photograph again, eagerly.

    Raises:
        ValueError: if the model routed no tokens.
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


def parse_prompt(config: SegmentConfig, size: tuple[int, int]) -> Prompt:
    """`config`'s points and box on a photograph of `size` (H, W) pixels; ValueError names the one that is wrong."""
    if not config.point and config.box is None:
        raise ValueError("nothing to segment: give at least one --point X,Y on the object, or --box X0,Y0,X1,Y1")
    texts = (*config.point, *config.negative)
    points, labels = None, None
    if texts:
        coords = [parse_numbers(text, "X,Y") for text in texts]
        marks = [1] * len(config.point) + [0] * len(config.negative)
        points, labels = checked_points(coords, marks)
        check_inside(points, size=size)
    return Prompt(points=points, labels=labels, box=None if config.box is None else _parse_box(config.box, size))


def parse_numbers(text: str, form: str) -> list[float]:
    """The finite numbers in `text`, as many as `form` (such as X,Y) names; ValueError shows both."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(form.split(",")) or not np.isfinite(numbers).all():
        raise ValueError(f"{text!r} is not {form}, numbers of pixels with commas between")
    return numbers


def _parse_box(text: str, size: tuple[int, int]) -> np.ndarray:
    """A box typed by hand lies wholly inside the image, unlike a detector's: anything else is a mistake."""
    box = checked_box(parse_numbers(text, "X0,Y0,X1,Y1"), size=size)
    height, width = size
    if box.min() < 0 or (box[2:] > (width, height)).any():
        raise ValueError(f"box {text} reaches outside the image of {width} x {height} pixels (width x height)")
    if (box[:2] == box[2:]).any():
        raise ValueError(f"box {text} has nothing inside; pass X0,Y0,X1,Y1 with X0 < X1 and Y0 < Y1")
    return box


def _describe(answer: Answer) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(answer.mask, dtype=np.uint8))
    x, y, width, height = coco.toBbox(rle).tolist()
    return {
        "predicted_iou": answer.predicted_iou,
        "box": [x, y, x + width, y + height],  # X0, Y0, X1, Y1, as the prompt's
        "area": int(answer.mask.sum()),
        "rle": {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")},
        "milliseconds": answer.milliseconds,
    }


def describe_run(sam: Sam, config: WeightsConfig, photograph: np.ndarray) -> dict[str, Any]:
    """Which model ran, where, and on what size of `photograph` (H, W, 3), as plain JSON values."""
    weights = config.checkpoint if config.model is None or config.model in MODELS else config.model
    return {
        "model": sam.config.name,
        "checkpoint": None if weights is None else str(weights),
        "keep_ratio": sam.image_encoder.keep_ratio,
        "device": str(sam.device),
        "image_size": {"height": photograph.shape[0], "width": photograph.shape[1]},
    }
