"""Charts of a report, as SVG text: one colour and one marker a prompt in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sam_blvit.draw.charts import PANEL, STYLE, legend, short, svg
from sam_blvit.evaluate.metrics.statistics import BINS, Reliability
from sam_blvit.evaluate.metrics.summary import PROMPTS

COLOURS = {"box": "#0072b2", "1pt": "#d55e00", "3pt": "#009e73"}
MARKERS = {"box": "s", "1pt": "o", "3pt": "^"}
SIZE_COLOURS = {"small": "#9ecae1", "medium": "#4292c6", "large": "#084594"}
NEAR = 0.04
"""Points of one prompt closer than this share of both axes have one label."""


@dataclass(frozen=True)
class Point:
    """A run in a chart of mIoU against something."""

    label: str
    x: float
    miou: Mapping[str, float | None]
    """By prompt, percent."""


@rc_context(STYLE)
def cost_chart(points: Sequence[Point], *, x_label: str) -> str:
    """mIoU of each of `points` by prompt against what it costs, labelled."""
    figure, axes = _panel(x_label)
    x = [point.x for point in points]
    for prompt in PROMPTS:
        axes.scatter(x, _miou(points, prompt), color=COLOURS[prompt], marker=MARKERS[prompt], label=prompt)
    axes.margins(0.12)
    _label(axes, points)
    legend(figure)
    return svg(figure)


@rc_context(STYLE)
def keep_chart(points: Sequence[Point]) -> str:
    """mIoU by prompt along the keep ratio, `x` of each of `points`."""
    figure, axes = _panel("keep ratio")
    points = sorted(points, key=lambda point: point.x)
    x = [point.x for point in points]
    for prompt in PROMPTS:
        axes.plot(x, _miou(points, prompt), color=COLOURS[prompt], marker=MARKERS[prompt], label=prompt)
    _label(axes, points)
    legend(figure)
    return svg(figure)


@rc_context(STYLE)
def size_chart(bars: Mapping[str, Mapping[str, float | None]]) -> str:
    """Box mIoU by size of the object for each run; `bars` by the run's name, then by size."""
    figure = Figure(figsize=(1.4 * PANEL[0], 1 + 0.6 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for index, (size, colour) in enumerate(SIZE_COLOURS.items()):
        there = [(row, value) for row, of_run in enumerate(bars.values()) if (value := of_run[size]) is not None]
        drawn = axes.barh(
            [row + 0.27 * (index - 1) for row, _ in there],
            [value for _, value in there],
            height=0.25,
            color=colour,
            label=size,
        )
        axes.bar_label(drawn, fmt="%.1f", padding=2, fontsize=7)
    axes.set_yticks(range(len(bars)), [short(name) for name in bars])
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("box mIoU, %")
    legend(figure)
    return svg(figure)


@rc_context(STYLE)
def reliability_chart(curves: Mapping[str, Reliability], *, title: str) -> str:
    """True against predicted IoU of one run, and how many objects each bin holds; `curves` by prompt."""
    figure = Figure(figsize=(PANEL[0], 1.3 * PANEL[1]), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 100], [0, 100], color="#888", linestyle="--", linewidth=1)
    centres = (np.arange(BINS) + 0.5) * 100 / BINS
    for prompt, curve in curves.items():
        look = {"color": COLOURS[prompt], "marker": MARKERS[prompt], "markersize": 4}
        upper.plot(curve.predicted, curve.true, label=prompt, **look)
        lower.plot(centres, curve.counts, **look)
    upper.set_title(short(title))
    upper.set_ylabel("true IoU, %")
    lower.set_ylabel("objects")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("predicted IoU, %")
    legend(figure)
    return svg(figure)


def _panel(x_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=PANEL, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel("mIoU, %")
    return figure, axes


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Write each label beside its markers; markers of one prompt that all but coincide share one."""
    width, height = np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())
    for prompt in PROMPTS:
        labels: dict[tuple[float, float], list[str]] = {}
        for point, y in zip(points, _miou(points, prompt), strict=True):
            near = (at for at in labels if abs(at[0] - point.x) < NEAR * width and abs(at[1] - y) < NEAR * height)
            labels.setdefault(next(near, (point.x, y)), []).append(point.label)
        for at, together in labels.items():
            axes.annotate(", ".join(together), at, xytext=(5, 3), textcoords="offset points", fontsize=7)


def _miou(points: Sequence[Point], prompt: str) -> NDArray[np.float64]:
    """mIoU of each of `points`; NaN, which is not drawn, where there is none."""
    return np.array([point.miou[prompt] for point in points], dtype=np.float64)
