"""Pictures for judging results: masks on their photograph, tokens that the routers chose.

Takes and returns (H, W, 3) uint8 RGB; inputs are not modified. Line width scales with the picture.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike

from sam_blvit.config import PATCH_SIZE
from sam_blvit.model.router import Routing
from sam_blvit.model.windows import WindowLayout

Colour = tuple[int, int, int]
MASK: Colour = (30, 144, 255)
POSITIVE: Colour = (40, 200, 80)
NEGATIVE: Colour = (235, 50, 50)
BOX: Colour = (255, 200, 0)
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)
PAPER: Colour = (248, 248, 248)
INK: Colour = (40, 40, 40)
OPACITY = 0.45
WAITING: Colour = (18, 24, 44)
"""Tint of tokens that were not sent to the performance block: not black, which occurs in photographs."""
WAITING_BRIGHTNESS = 0.25
PANEL = 640
"""Longest side of a routing panel, pixels."""
COLUMNS = 4
"""Routing panels in a row."""
OBJECTS: tuple[Colour, ...] = (MASK, BOX, NEGATIVE)
"""Objects of one picture, in their order."""


def draw_overlay(
    image: np.ndarray,
    mask: np.ndarray,
    *,
    points: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    box: ArrayLike | None = None,
) -> np.ndarray:
    """`image` (H, W, 3) with `mask` (H, W) tinted and outlined, and its prompt.

    `points` (n, 2) are green for label 1 (on the object) and red for 0 (off it); without `labels` (n,) all are green.
    `box` (4,) is X0, Y0, X1, Y1. All in pixels of `image`.
    """
    drawn = _outline(_tint(image, mask, MASK), mask, WHITE)
    if box is not None:
        drawn = _draw_box(drawn, np.asarray(box).reshape(4))
    if points is not None:
        points = np.asarray(points)
        drawn = _draw_points(drawn, points, np.ones(len(points)) if labels is None else np.asarray(labels))
    return drawn


def draw_errors(image: np.ndarray, mask: np.ndarray, truth: np.ndarray, *, box: ArrayLike | None = None) -> np.ndarray:
    """`image` (H, W, 3) with `mask` (H, W) against `truth` (H, W): right pixels blue, missed yellow, wrong red.

    `box` (4,) is X0, Y0, X1, Y1 in pixels of `image`.
    """
    mask, truth = mask.astype(bool), truth.astype(bool)
    drawn = image
    for pixels, colour in ((mask & truth, MASK), (truth & ~mask, BOX), (mask & ~truth, NEGATIVE)):
        drawn = _tint(drawn, pixels, colour)
    return drawn if box is None else _draw_box(drawn, np.asarray(box).reshape(4))


def draw_objects(image: np.ndarray, masks: np.ndarray, *, boxes: ArrayLike | None = None) -> np.ndarray:
    """`image` (H, W, 3) with each of `masks` (n, H, W) tinted and outlined, and its box, in a colour of its own.

    `boxes` (n, 4) are X0, Y0, X1, Y1 in pixels of `image`. n is at most 3, the number of colours.
    """
    assert len(masks) <= len(OBJECTS), f"{len(masks)} objects"
    drawn = image
    for mask, colour in zip(masks, OBJECTS, strict=False):
        drawn = _outline(_tint(drawn, mask, colour), mask, colour)
    for box, colour in zip(() if boxes is None else np.asarray(boxes), OBJECTS, strict=False):
        drawn = _draw_box(drawn, box, colour)
    return drawn


def draw_everything(image: np.ndarray, masks: Iterable[np.ndarray]) -> np.ndarray:
    """`image` (H, W, 3) with any number of `masks`, each (H, W) bool, tinted and outlined in colours of their own.

    Later masks are drawn over earlier ones.
    """
    painted, outlines = image.copy(), []
    for number, mask in enumerate(masks):
        colour = _hue(number)
        painted[mask] = colour
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        outlines.append((contours, colour))
    drawn = np.rint((1 - OPACITY) * image + OPACITY * painted).astype(np.uint8)
    for contours, colour in outlines:
        cv2.drawContours(drawn, contours, -1, colour, _line_width(image), cv2.LINE_AA)
    return drawn


def routing_map(routing: Routing, layout: WindowLayout) -> np.ndarray:
    """Which tokens of the first image `routing` sent to the performance block, (Gh, Gw) bool in raster order."""
    return layout.by_raster(routing.primary)[0, :, :, 0].bool().cpu().numpy()


def draw_routing(image: np.ndarray, maps: Mapping[int, np.ndarray], *, input_size: tuple[int, int]) -> np.ndarray:
    """The `routing_panels` of `image` as one picture; ValueError if there are none."""
    if not maps:
        raise ValueError("no router chose anything, so there is nothing to draw; see keep_ratio")
    return _tiled(routing_panels(scaled(image, PANEL), maps, input_size=input_size), COLUMNS)


def routing_panels(
    image: np.ndarray, maps: Mapping[int, np.ndarray], *, input_size: tuple[int, int]
) -> list[np.ndarray]:
    """One panel per router: `image` with secondary tokens darkened, captioned with the router's layer and share.

    `maps` holds each router's `routing_map` by the layer it follows. `input_size` (h, w) is the photograph's size as
    the encoder saw it: tokens beyond it lie on padding, count in the share and are not drawn.
    """
    return [
        captioned(
            _darken(image, on_image(chosen, input_size=input_size, size=(image.shape[0], image.shape[1]))),
            f"After layer {layer}: {chosen.mean():.0%} of tokens",
        )
        for layer, chosen in sorted(maps.items())
    ]


def draw_page(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """One picture of `rows` of panels; the panels of a row have the same height."""
    strips = [_tiled(panels, len(panels)) for panels in rows]
    width = max(strip.shape[1] for strip in strips)
    return np.concatenate([_widened(strip, width) for strip in strips])


def on_image(chosen: np.ndarray, *, input_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """`chosen` (Gh, Gw) by token as a mask (H, W) on an image of `size`, which the encoder saw as `input_size`."""
    rows = (np.arange(size[0]) + 0.5) * input_size[0] / size[0] // PATCH_SIZE
    cols = (np.arange(size[1]) + 0.5) * input_size[1] / size[1] // PATCH_SIZE
    return chosen[rows.astype(int)[:, None], cols.astype(int)[None]]


def _tint(image: np.ndarray, mask: np.ndarray, colour: Colour) -> np.ndarray:
    mask = mask.astype(bool)
    tinted = image.copy()
    tinted[mask] = np.rint((1 - OPACITY) * image[mask] + OPACITY * np.array(colour)).astype(np.uint8)
    return tinted


def _hue(number: int) -> Colour:
    """A bright colour; steps of the golden angle keep the colours of near numbers apart."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.381966 % 1, 0.75, 1)
    return round(255 * red), round(255 * green), round(255 * blue)


def _outline(image: np.ndarray, mask: np.ndarray, colour: Colour) -> np.ndarray:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(image.copy(), contours, -1, colour, _line_width(image), cv2.LINE_AA)


def _draw_box(image: np.ndarray, box: np.ndarray, colour: Colour = BOX) -> np.ndarray:
    x0, y0, x1, y1 = (round(float(corner)) for corner in box)
    width = _line_width(image)
    framed = cv2.rectangle(image.copy(), (x0, y0), (x1, y1), BLACK, width + 3)
    return cv2.rectangle(framed, (x0, y0), (x1, y1), colour, width + 1)


def _draw_points(image: np.ndarray, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    drawn = image.copy()
    width = _line_width(image)
    for (x, y), label in zip(points, labels, strict=True):
        centre, radius = (round(float(x)), round(float(y))), 5 * width
        cv2.circle(drawn, centre, radius + width, BLACK, -1, cv2.LINE_AA)
        cv2.circle(drawn, centre, radius, WHITE, -1, cv2.LINE_AA)
        cv2.circle(drawn, centre, radius - width, POSITIVE if label else NEGATIVE, -1, cv2.LINE_AA)
    return drawn


def _line_width(image: np.ndarray) -> int:
    return max(1, round(max(image.shape[:2]) / 400))


def scaled(image: np.ndarray, longest: int) -> np.ndarray:
    """`image` (H, W, 3) with a longest side of `longest` pixels."""
    scale = longest / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _darken(image: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    dark = np.array(WAITING) + WAITING_BRIGHTNESS * image.mean(axis=2, keepdims=True)
    return np.where(chosen[:, :, None], image, np.rint(dark)).astype(np.uint8)


def captioned(panel: np.ndarray, text: str) -> np.ndarray:
    """`panel` below a strip with `text`, as wide as the panel or as the text needs."""
    size, _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 1)
    width = max(panel.shape[1], size[0] + 8)
    strip = np.full((size[1] * 2 + 8, width, 3), PAPER, dtype=np.uint8)
    cv2.putText(strip, text, (0, size[1] * 3 // 2 + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.6, INK, 1, cv2.LINE_AA)
    return np.concatenate([strip, _widened(panel, width)])


def _tiled(panels: Sequence[np.ndarray], most: int) -> np.ndarray:
    """`panels` of one height in rows of at most `most`, with a margin of paper."""
    margin = 8
    height, width = panels[0].shape[0], max(panel.shape[1] for panel in panels)
    columns = min(most, len(panels))
    rows = -(-len(panels) // columns)
    page = np.full((rows * (height + margin) + margin, columns * (width + margin) + margin, 3), PAPER, dtype=np.uint8)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        top, left = margin + row * (height + margin), margin + column * (width + margin)
        page[top : top + height, left : left + panel.shape[1]] = panel
    return page


def _widened(panel: np.ndarray, width: int) -> np.ndarray:
    extra = width - panel.shape[1]
    return cv2.copyMakeBorder(panel, 0, 0, 0, extra, cv2.BORDER_CONSTANT, value=PAPER)
