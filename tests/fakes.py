"""Stand-ins of a segment_anything Sam whose answers are known: the truth, nothing, the box itself.

`module:function` builders for `--model fakes:perfect` and its kin. The perfect one learns the truth from the
annotations and images that the environment names.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn

from sam_blvit.data.images import read_image
from sam_blvit.data.instances import find_images, read_instances

SIDE = 128
ANNOTATIONS, IMAGES = "FAKES_ANNOTATIONS", "FAKES_IMAGES"
Mask = np.ndarray
Answer = Callable[[int, np.ndarray | None, np.ndarray | None, tuple[int, int]], Mask]
"""From the image's index, a point and a box in pixels of the photograph, and its size to the mask."""


class Encoder(nn.Module):
    """Recognises a photograph by the sum of its pixels; answers with its index."""

    def __init__(self, side: int, sums: list[float]) -> None:
        super().__init__()
        self.img_size = side
        self.sums = sums
        self.sizes: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        total = float(x.double().sum())
        index = min(range(len(self.sums)), key=lambda i: abs(self.sums[i] - total)) if self.sums else 0
        return torch.full((1, 1), index)


class Prompts(nn.Module):
    """Passes prompts through."""

    def forward(self, points: object, boxes: object, masks: object) -> tuple[object, object]:
        return (points, boxes), masks

    def get_dense_pe(self) -> None:
        """Nothing is needed of positions."""


class FakeSam(nn.Module):
    """A Sam whose masks are `answer`'s; of three the second is right and said to be so."""

    mask_threshold = 0.0

    def __init__(self, answer: Answer, *, side: int = SIDE, images: list[np.ndarray] | None = None) -> None:
        super().__init__()
        resize = ResizeLongestSide(side)
        self.sizes = [image.shape[:2] for image in images or []]
        sums = [float(resize.apply_image(image).astype(np.float64).sum()) for image in images or []]
        self.image_encoder = Encoder(side, sums)
        self.prompt_encoder = Prompts()
        self.mask_decoder = self.decode
        self.answer = answer
        self.weight = nn.Parameter(torch.zeros(1))

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def preprocess(self, x: Tensor) -> Tensor:
        return x.float()

    def decode(self, *, image_embeddings, sparse_prompt_embeddings, multimask_output, **_: object):  # type: ignore[no-untyped-def]
        points, boxes = sparse_prompt_embeddings
        asked = {"index": int(image_embeddings), "points": points, "boxes": boxes}
        count = len(boxes if points is None else points[0])
        self.asked = asked
        masks = 3 if multimask_output else 1
        predicted = torch.tensor([[0.1, 0.9, 0.2] if masks == 3 else [0.9]]).expand(count, -1)
        places = torch.arange(count)[:, None, None, None].expand(count, masks, 1, 1).float().clone()
        if masks == 3:
            places[:, [0, 2]] = -1  # the wrong ones
        return places, predicted

    def postprocess_masks(self, places: Tensor, resized: tuple[int, int], size: tuple[int, int]) -> Tensor:
        scale = np.array([size[1] / resized[1], size[0] / resized[0]])
        points, boxes = self.asked["points"], self.asked["boxes"]
        full = -torch.ones(*places.shape[:2], *size)
        for i in range(places.shape[0]):
            for j in range(places.shape[1]):
                place = int(places[i, j])
                if place < 0:
                    continue
                point = None if points is None else points[0][place, 0].numpy() * scale
                box = None if boxes is None else boxes[place].reshape(4).numpy() * np.tile(scale, 2)
                full[i, j][torch.from_numpy(self.answer(self.asked["index"], point, box, size))] = 1
        return full


def perfect(checkpoint: str | None = None) -> FakeSam:
    """Answers every prompt with the annotated object that it means."""
    dataset = read_instances(os.environ[ANNOTATIONS])
    files = find_images(list(dataset.records.values()), Path(os.environ[IMAGES]))
    objects = [[a for a in dataset.instances if a.image_id == file.image_id] for file in files]

    def answer(index: int, point: np.ndarray | None, box: np.ndarray | None, size: tuple[int, int]) -> Mask:
        masks = [a.mask(*size) if size == (files[index].height, files[index].width) else None for a in objects[index]]
        if any(mask is None for mask in masks):  # not a photograph of the dataset: the clock is asking
            return np.zeros(size, dtype=bool)
        if box is not None:
            corners = [np.array([*a.box[:2], a.box[0] + a.box[2], a.box[1] + a.box[3]]) for a in objects[index]]
            return masks[int(np.argmin([np.abs(corner - box).sum() for corner in corners]))]
        x, y = np.rint(point).astype(int)
        return next((mask for mask in masks if mask[y, x]), np.zeros(size, dtype=bool))

    return FakeSam(answer, images=[read_image(file.path) for file in files])


def empty() -> FakeSam:
    """Finds nothing anywhere."""
    return FakeSam(lambda index, point, box, size: np.zeros(size, dtype=bool))


def box_filler() -> FakeSam:
    """Answers a box with the box, a point with nothing."""

    def answer(index: int, point: np.ndarray | None, box: np.ndarray | None, size: tuple[int, int]) -> Mask:
        mask = np.zeros(size, dtype=bool)
        if box is not None:
            x0, y0, x1, y1 = (round(float(value)) for value in box)
            mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
        return mask

    return FakeSam(answer, side=640)
