"""Style of all charts, and their conversion to SVG.

Figures are created without pyplot, which would keep each of them in memory and look for a display.
"""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure

STYLE: Any = {  # matplotlib types the keys as a list of its own
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
    """Add a legend above `figure`."""
    figure.legend(loc="outside upper center", ncols=3, frameon=False)


def short(name: str) -> str:
    """`name`, or the end of a long one."""
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]


def svg(figure: Figure) -> str:
    """`figure` as SVG, reproducible byte for byte."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
