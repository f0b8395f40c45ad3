"""What every chart of ours shares."""

from __future__ import annotations

from matplotlib.figure import Figure

from sam_blvit.draw.charts import LONGEST_NAME, legend, short, svg


def drawn() -> str:
    figure = Figure()
    figure.subplots().plot([1, 2], label="a line")
    legend(figure)
    return svg(figure)


def test_a_figure_is_svg_with_its_legend_and_without_a_date() -> None:
    text = drawn()
    assert "<svg" in text
    assert "a line" in text
    assert "<dc:date>" not in text


def test_a_short_name_stays_and_a_long_one_keeps_its_end() -> None:
    assert short("vit_b") == "vit_b"
    long = short("x" * LONGEST_NAME + ":function")
    assert len(long) == LONGEST_NAME
    assert long.startswith("…x")
    assert long.endswith(":function")
