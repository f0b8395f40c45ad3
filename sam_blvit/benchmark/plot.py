"""Charts of a benchmark, as SVG text: time against arithmetic, time and memory against size. Every row is on them."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from sam_blvit.benchmark.cells import Group, Row
from sam_blvit.benchmark.memory import GIB
from sam_blvit.benchmark.table import MS, name_of, statistics_of
from sam_blvit.cost.macs import G
from sam_blvit.draw.charts import PANEL, STYLE, legend, short, svg

VARIED = ("dtype", "way", "device", "allocator", "threads", "batch", "side", "aspect")
"""What a label names beside the model, where rows differ in it."""
CHARACTERS = 26
"""Of a caption, in an inch."""
ROOM = 1.4
"""Width of a panel over that of what is in it: labels stand to the right."""


@rc_context(STYLE)
def macs_chart(groups: Sequence[Group], caption: Sequence[str]) -> str:
    """The encoder's milliseconds against its multiply-adds, all images of the batch, and the floor at each dtype's
    rate: one panel a group. Under them the lines of `caption`, and what is missing."""
    figure = Figure(figsize=(1.6 * PANEL[0], (len(groups) + 0.5) * PANEL[1]), layout="constrained")
    missing = []
    for group, axes in zip(groups, figure.subplots(len(groups), squeeze=False)[:, 0], strict=True):
        axes.set(title=group.shape, xlabel="encoder, GMACs", ylabel="encoder, ms")
        most = ROOM * max((row.macs * row.cell.batch for row in group.rows if row.macs is not None), default=G)
        for dtype, rates in group.rates.items():
            floor = most / float(np.median(rates)) * MS
            axes.plot([0, most / G], [0, floor], color="#888", linestyle="--", linewidth=1)
            axes.annotate(f"{dtype} floor", (most / G, floor), fontsize=6, color="#888", horizontalalignment="right")
        for row, label in zip(group.rows, labels(group.rows), strict=True):
            milliseconds = _milliseconds(row)
            if milliseconds is None or row.macs is None:
                missing.append(f"{group.shape}: {label} {row.problem or 'has no count of multiply-adds'}")
                continue
            at = (row.macs * row.cell.batch / G, milliseconds)
            axes.scatter(*at)
            axes.annotate(label, at, xytext=(5, 3), textcoords="offset points", fontsize=7)
        axes.set(xlim=(0, most / G), ylim=(0, None))
    return _captioned(figure, [*caption, *missing])


@rc_context(STYLE)
def scale_chart(groups: Sequence[Group], axis: str, caption: Sequence[str]) -> str:
    """Milliseconds and peak memory of the encoder along the `axis` (side, batch, threads or aspect) of all cells: a
    line for each model and set of the other circumstances. What was not measured is a cross at the top, and the caption
    says why."""
    rows = [row for group in groups for row in group.rows if getattr(row.cell, axis) is not None]
    lines: dict[str, list[Row]] = {}
    for row, label in zip(rows, labels(rows, but=axis), strict=True):
        lines.setdefault(label, []).append(row)
    figure = Figure(figsize=(2.2 * PANEL[0], 1.8 * PANEL[1]), layout="constrained")
    times, memory = figure.subplots(1, 2)
    missing = []
    crosses: Counter[int | str] = Counter()
    for place, (label, along) in enumerate(lines.items()):
        look = {"color": f"C{place}", "marker": "o"}
        x = [getattr(row.cell, axis) for row in along]
        times.plot(x, _drawn([_milliseconds(row) for row in along]), label=label, **look)
        memory.plot(x, _drawn([row.peak_bytes and row.peak_bytes / GIB for row in along]), **look)
        for at, row in zip(x, along, strict=True):
            if row.problem is not None:
                missing.append(f"x {label}, {axis} {at}: {row.problem}")
                height = 0.98 - 0.04 * crosses[at]
                crosses[at] += 1
                for axes in (times, memory):
                    axes.plot([at], [height], color=f"C{place}", marker="x", transform=axes.get_xaxis_transform())
    times.set(xlabel=axis, ylabel="encoder, ms", yscale="log")
    times.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter())
    memory.set(xlabel=axis, ylabel="peak memory of the encoder, GiB", ylim=(0, None))
    legend(figure)
    return _captioned(figure, [*caption, *missing])


def labels(rows: Sequence[Row], but: str | None = None) -> list[str]:
    """Each row's model and keep ratio, and in what else rows differ from each other, `but` for one thing."""
    varied = [name for name in VARIED if name != but and len({getattr(row.cell, name) for row in rows}) > 1]
    return [", ".join([short(name_of(row)), *(_word(row, name) for name in varied)]) for row in rows]


def _captioned(figure: Figure, lines: Sequence[str]) -> str:
    characters = int(figure.get_figwidth() * CHARACTERS)
    wrapped = [part for line in lines for part in textwrap.wrap(line, characters)]
    figure.supxlabel("\n".join(wrapped), fontsize=5, x=0.01, horizontalalignment="left")
    return svg(figure)


def _word(row: Row, name: str) -> str:
    value = getattr(row.cell, name)
    return value if isinstance(value, str) else f"{name} {value}"


def _milliseconds(row: Row) -> float | None:
    return statistics_of(row.encoder_ms)["median"] if row.encoder_ms and row.problem is None else None


def _drawn(values: Sequence[float | None]) -> list[float]:
    """`values`, NaN where there is none: it is not drawn."""
    return [float("nan") if value is None else value for value in values]
