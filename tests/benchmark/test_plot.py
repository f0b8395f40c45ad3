"""Charts of a benchmark: every row is on them, and what could not be measured is said."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

from test_cells import CELL
from test_table import group, row

from sam_blvit.benchmark.plot import labels, macs_chart, scale_chart

WIDE = {"side": 512}
SVG = "{http://www.w3.org/2000/svg}"


def words(svg: str) -> str:
    """All text of a chart."""
    return "\n".join("".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text"))


def test_time_against_arithmetic_shows_every_row_of_every_group() -> None:
    small, large = replace(CELL, side=512), replace(CELL, side=1024)
    groups = [
        group(row(small), row(replace(small, way="compiled"))),
        group(row(large), row(replace(large, model="a:b"), problem="does not fit", encoder_ms=[])),
    ]
    text = words(macs_chart(groups, ["measured on a chip"]))
    for label in ("vit_b, eager", "vit_b, compiled", "vit_b", "a:b does not fit", "bfloat16 floor", "on a chip"):
        assert label in text
    assert all(group.shape in text for group in groups)


def test_a_row_without_a_count_is_named_all_the_same() -> None:
    assert "has no count of multiply-adds" in words(macs_chart([group(row(macs=None))], []))


def test_scale_has_a_line_for_each_model_and_a_cross_for_what_is_missing() -> None:
    groups = [
        group(
            row(replace(CELL, side=side)),
            row(
                replace(CELL, side=side, model="a:b"),
                **({"problem": "does not fit", "encoder_ms": [], "peak_bytes": None} if side == 2048 else {}),
            ),
        )
        for side in (512, 1024, 2048)
    ]
    text = words(scale_chart(groups, "side", ["measured on a chip"]))
    assert text.count("vit_b") == 1  # its line
    assert "x a:b, side 2048: does not fit" in text
    assert {"side", "encoder, ms", "peak memory of the encoder, GiB"} <= set(text.splitlines())
    assert "on a chip" in text


def test_an_axis_of_words_has_a_place_for_each() -> None:
    missing = {"problem": "does not fit", "encoder_ms": [], "peak_bytes": None}
    groups = [group(row(replace(CELL, aspect="square"), **missing)), group(row(replace(CELL, aspect="4:3")))]
    text = words(scale_chart(groups, "aspect", []))
    assert {"square", "4:3", "aspect"} <= set(text.splitlines())
    assert "aspect square: does not fit" in text


def test_rows_without_a_place_on_the_axis_are_left_out() -> None:
    on_gpu = group(row(replace(CELL, device="cuda", allocator=None)))
    groups = [*(group(row(replace(CELL, threads=threads))) for threads in (1, 2)), on_gpu]
    assert "cuda" not in words(scale_chart(groups, "threads", []))


def test_labels_name_what_rows_differ_in() -> None:
    rows = [row(replace(CELL, keep_ratio=0.5)), row(replace(CELL, batch=8, dtype="float32"))]
    assert labels(rows) == ["vit_b 0.5, bfloat16, batch 1", "vit_b, float32, batch 8"]
    assert labels(rows, but="batch") == ["vit_b 0.5, bfloat16", "vit_b, float32"]
