"""Charts of a benchmark, as SVG text: time against arithmetic, time and memory against size. Every row is on them."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sam_blvit.benchmark.cells import Group, Row
from sam_blvit.benchmark.memory import GIB
from sam_blvit.benchmark.table import name_of, statistics_of
from sam_blvit.figures import PANEL, STYLE, legend, svg
from sam_blvit.measure.flops import G

VARIED = ("dtype", "way", "device", "allocator", "threads", "batch", "side", "aspect")
"""What a label names beside the model, where rows differ in it."""
TOP = 0.96
"""Height of the marks of what was not measured, as a share of the panel's."""


@rc_context(STYLE)
def macs_chart(groups: Sequence[Group]) -> str:
    """The encoder's milliseconds against its multiply-adds, all images of the batch: one panel a group."""
    figure = Figure(figsize=(1.6 * PANEL[0], len(groups) * PANEL[1]), layout="constrained")
    for group, axes in zip(groups, figure.subplots(len(groups), squeeze=False)[:, 0], strict=True):
        axes.set(title=group.shape, xlabel="encoder, GMACs", ylabel="encoder, ms", xscale="log", yscale="log")
        axes.margins(0.2)
        missing = []
        for row, label in zip(group.rows, labels(group.rows), strict=True):
            milliseconds = _milliseconds(row)
            if milliseconds is None or row.macs is None:
                missing.append(f"{label}: {row.problem or 'multiply-adds not counted'}")
                continue
            at = (row.macs * row.cell.batch / G, milliseconds)
            axes.scatter(*at)
            axes.annotate(label, at, xytext=(5, 3), textcoords="offset points", fontsize=7)
        axes.text(0.02, TOP, "\n".join(missing), transform=axes.transAxes, fontsize=7, verticalalignment="top")
    return svg(figure)


@rc_context(STYLE)
def scale_chart(groups: Sequence[Group], axis: str) -> str:
    """Milliseconds and peak memory of the encoder along the `axis` (side, batch or threads) of all cells: a line for
    each model and set of the other circumstances. What was not measured is a cross at the top, which says why."""
    rows = [row for group in groups for row in group.rows]
    lines: dict[str, list[Row]] = {}
    for row, label in zip(rows, labels(rows, but=axis), strict=True):
        lines.setdefault(label, []).append(row)
    figure = Figure(figsize=(2.4 * PANEL[0], 1.4 * PANEL[1]), layout="constrained")
    times, memory = figure.subplots(1, 2)
    times.set(xlabel=axis, ylabel="encoder, ms", yscale="log")
    memory.set(xlabel=axis, ylabel="peak memory of the encoder, GiB")
    for place, (label, along) in enumerate(lines.items()):
        colour = f"C{place}"
        x = [float(getattr(row.cell, axis)) for row in along]
        spent = [_milliseconds(row) for row in along]
        peaks = [None if row.peak_bytes is None else row.peak_bytes / GIB for row in along]
        times.plot(x, _drawn(spent), marker="o", color=colour, label=label)
        memory.plot(x, _drawn(peaks), marker="o", color=colour)
        for at, row in zip(x, along, strict=True):
            if row.problem is not None:
                for axes in (times, memory):
                    _cross(axes, at, TOP - 0.05 * place, colour, row.problem)
    legend(figure)
    return svg(figure)


def labels(rows: Sequence[Row], but: str | None = None) -> list[str]:
    """Each row's model and keep ratio, and in what else rows differ from each other, `but` for one thing."""
    varied = [name for name in VARIED if name != but and len({getattr(row.cell, name) for row in rows}) > 1]
    return [", ".join([name_of(row), *(f"{_word(row, name)}" for name in varied)]) for row in rows]


def _word(row: Row, name: str) -> str:
    value = getattr(row.cell, name)
    return value if isinstance(value, str) else f"{name} {value}"


def _milliseconds(row: Row) -> float | None:
    return statistics_of(row.encoder_ms)["median"] if row.encoder_ms and row.problem is None else None


def _drawn(values: Sequence[float | None]) -> list[float]:
    """`values`, NaN where there is none: it is not drawn."""
    return [float("nan") if value is None else value for value in values]


def _cross(axes: Axes, x: float, height: float, colour: str, why: str) -> None:
    """A mark at `x`, at a share of the panel's `height`, that says `why` nothing was measured there."""
    across = axes.get_xaxis_transform()
    axes.plot([x], [height], marker="x", linestyle="none", color=colour, transform=across)
    axes.annotate(why, (x, height), xycoords=across, xytext=(5, -3), textcoords="offset points", fontsize=6)
