"""How every chart of ours looks, and its way to SVG text.

Figures are made and written directly, without pyplot: it would keep every one of them and look for a screen.
"""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure

STYLE: Any = {  # keys typed as matplotlib's own list of them
    "svg.fonttype": "none",  # text stays text, in the reader's own font
    "svg.hashsalt": "sam_blvit",  # the same data give the same bytes
    "text.parse_math": False,  # a name may hold a $
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
}
PANEL = (4.6, 3.6)
"""Width and height of a panel, inches."""
LONGEST_NAME = 32


def legend(figure: Figure) -> None:
    """Explain what `figure` shows, above it."""
    figure.legend(loc="outside upper center", ncols=3, frameon=False)


def short(name: str) -> str:
    """`name`, of a long one its end."""
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]


def svg(figure: Figure) -> str:
    """`figure` as SVG, the same text each time."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
