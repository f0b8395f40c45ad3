"""Pictures of a cascade: accuracy against cost, what is passed on, and where mistakes lie by confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sam_blvit.cascade.sweep import Outcomes, Sweep
from sam_blvit.draw.charts import PANEL, STYLE, legend, svg

COLOURS = {"fit": "#9ecae1", "test": "#084594", "model": "#d55e00"}
BINS = 20
UNITS = {"macs": "mean multiply-accumulates of a sample", "milliseconds": "mean milliseconds of a sample"}


@rc_context(STYLE)
def cascade_chart(
    sweeps: Mapping[str, Sweep],
    outcomes: Outcomes,
    *,
    point: tuple[int, ...],
    costs: Sequence[float],
    names: Sequence[str],
    cost: str,
) -> str:
    """SVG: accuracy against cost with the chosen `point`; share passed on by threshold; mistakes of the first model by
    its confidence, those that the last model corrects apart. `outcomes` are of the tested samples."""
    figure = Figure(figsize=(3 * PANEL[0], PANEL[1]), layout="constrained")
    trade, shares, hardness = figure.subplots(1, 3)
    for split, swept in sweeps.items():
        spent = swept.cost(costs)
        frontier = _frontier(spent.reshape(-1), swept.accuracy.reshape(-1))
        trade.plot(*frontier, color=COLOURS[split], label=f"cascade, {split}")
        trade.plot(spent[point], swept.accuracy[point], "*", color=COLOURS[split], markersize=12)
    of_models = [float(right.mean()) for right in outcomes.correct]
    trade.plot(costs, of_models, "s:", color=COLOURS["model"], label="one model, or a random gate between two")
    for name, x, y in zip(names, costs, of_models, strict=True):
        trade.annotate(name, (x, y), textcoords="offset points", xytext=(4, -10), fontsize=7)
    trade.set_xlabel(UNITS[cost])
    trade.set_ylabel("accuracy")
    _draw_shares(shares, sweeps["test"])
    _draw_hardness(hardness, outcomes)
    legend(figure)
    return svg(figure)


def _frontier(cost: NDArray[np.float64], accuracy: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """The points that no cheaper point is as accurate as, by cost."""
    order = np.lexsort((-accuracy, cost))
    best = np.maximum.accumulate(accuracy[order])
    new = np.concatenate([[True], best[1:] > best[:-1]])
    return cost[order][new], accuracy[order][new]


def _draw_shares(axes: Axes, swept: Sweep) -> None:
    """Each stage's share by its own threshold, with every sample passed on to it."""
    for gate, passed_on in enumerate(swept.passed_on):
        other = tuple(slice(None) if axis == gate else -1 for axis in range(passed_on.ndim))
        axes.plot(swept.grid, passed_on[other], label=f"passed on by stage {gate}")
    axes.set_xlabel("threshold")
    axes.set_ylabel("share of samples")


def _draw_hardness(axes: Axes, outcomes: Outcomes) -> None:
    confidence = outcomes.confidence[0]
    edges = np.linspace(0, max(1.0, float(confidence.max())), BINS + 1)
    first, last = outcomes.correct[0], outcomes.correct[-1]
    corrected, wrong = (np.histogram(confidence[~first & right], edges)[0] for right in (last, ~last))
    axes.bar(edges[:-1], corrected, width=np.diff(edges), align="edge", color="#009e73", label="corrected mistakes")
    axes.bar(
        edges[:-1], wrong, width=np.diff(edges), align="edge", bottom=corrected, color="#bbbbbb", label="other mistakes"
    )
    axes.set_xlabel("confidence of the first model")
    axes.set_ylabel("mistakes of the first model")
