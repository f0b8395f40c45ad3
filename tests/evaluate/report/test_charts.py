"""Charts: what is on them, read back from the SVG."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from sam_blvit.evaluate.metrics.statistics import reliability
from sam_blvit.evaluate.metrics.summary import PROMPTS
from sam_blvit.evaluate.report.charts import COLOURS, Point, cost_chart, keep_chart, reliability_chart, size_chart

SVG = "{http://www.w3.org/2000/svg}"


def words(svg: str) -> list[str]:
    """All text of a chart, in order."""
    return ["".join(text.itertext()).strip() for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def lines(svg: str, prompt: str) -> list[str]:
    """The lines of a prompt, as SVG's commands."""
    paths = [path for path in ElementTree.fromstring(svg).iter(f"{SVG}path") if path.get("clip-path")]
    return [path.get("d", "") for path in paths if f"stroke: {COLOURS[prompt]}" in path.get("style", "")]


def corners(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", line)]


def point(label: str, x: float, box: float | None = 50.0) -> Point:
    return Point(label, x, {"box": box, "1pt": 20.0, "3pt": 30.0})


def cost(*points: Point) -> str:
    return cost_chart(points, x_label="G")


def keep(*points: Point) -> str:
    return keep_chart(points)


def sizes(name: str = "run", large: float | None = 30.0) -> str:
    return size_chart({name: {"small": 10.0, "medium": 20.0, "large": large}})


def calibration(title: str = "run") -> str:
    curve = reliability(np.array([5.0, 95.0]), np.array([10.0, 80.0]))
    return reliability_chart(dict.fromkeys(PROMPTS, curve), title=title)


CHARTS = [lambda: cost(point("1", 5.0)), lambda: keep(point("1", 0.5)), sizes, calibration]


@pytest.mark.parametrize("draw", CHARTS)
def test_a_chart_is_svg_the_same_each_time_and_leaves_matplotlib_as_it_was(draw: Callable[[], str]) -> None:
    before = dict(matplotlib.rcParams)
    assert ElementTree.fromstring(draw()).tag == f"{SVG}svg"
    assert draw() == draw()
    assert dict(matplotlib.rcParams) == before


def test_every_prompt_of_a_point_is_labelled() -> None:
    drawn = words(cost(point("17", 5.0), point("18", 9.0)))
    assert drawn.count("17") == drawn.count("18") == 3
    assert {"G", "mIoU, %", *PROMPTS} <= set(drawn)


def test_points_that_all_but_coincide_share_a_label() -> None:
    drawn = words(cost(point("17", 5.0), point("18", 5.01), point("19", 9.0)))
    assert drawn.count("17, 18") == drawn.count("19") == 3
    assert "18" not in drawn


def test_a_prompt_without_a_value_has_no_marker() -> None:
    assert words(cost(point("17", 5.0, box=None), point("18", 9.0))).count("17") == 2


def test_a_curve_runs_along_the_keep_ratio_and_breaks_where_a_value_is_missing() -> None:
    points = [point("1", 1.0), point("2", 0.25), point("3", 0.5, box=None), point("4", 0.75)]
    ((box,), (one,)) = (lines(keep(*points), prompt) for prompt in ("box", "1pt"))
    assert (box.count("M"), one.count("M")) == (2, 1)
    along = [x for x, _ in corners(one)]
    assert len(along) == 4
    assert along == sorted(along)


def test_calibration_draws_truth_over_prediction_and_the_objects_of_each_bin() -> None:
    curve = reliability(np.array([15.0, 95.0, 95.0]), np.array([40.0, 40.0, 40.0]))
    upper, lower = map(corners, lines(reliability_chart({"box": curve}, title="run"), "box"))
    assert upper[0][1] == upper[1][1]
    assert upper[0][0] < upper[1][0]
    none, one, *_, two = [-y for _, y in lower]  # SVG counts y downwards
    assert two - none == pytest.approx(2 * (one - none))
    assert one > none


def test_the_first_run_is_on_top() -> None:
    bars = {"small": 1.0, "medium": 2.0, "large": 3.0}
    texts = ElementTree.fromstring(size_chart({"first": bars, "second": bars})).iter(f"{SVG}text")
    height = {"".join(text.itertext()): float(text.get("y", "")) for text in texts}
    assert height["first"] < height["second"]


def test_bars_say_their_values_and_a_missing_one_is_left_out() -> None:
    assert {"10.0", "20.0", "30.0", "small", "medium", "large", "run"} <= set(words(sizes()))
    assert "30.0" not in words(sizes(large=None))


@pytest.mark.parametrize("name", ["$x^$", "<b>&"])
@pytest.mark.parametrize("draw", [sizes, calibration])
def test_names_are_taken_literally(draw: Callable[[str], str], name: str) -> None:
    assert name in words(draw(name))


def test_a_long_name_keeps_its_end() -> None:
    (name,) = [word for word in words(sizes("a" * 50 + "/end")) if word.endswith("/end")]
    assert re.fullmatch("…a{27}/end", name)
