"""Statistics of given times, and every column and header of the Markdown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_cells import CELL

from sam_blvit.benchmark.cells import Cell, Group, Row
from sam_blvit.benchmark.memory import GIB
from sam_blvit.benchmark.table import COLUMNS, PAGE_FAULTS, markdown, ratio_of, results, statistics_of

ABOUT = {"date": "2020-02-02", "sam_blvit": "1.0, git abc", "rounds": 3}


def row(cell: Cell = CELL, **fields: Any) -> Row:
    measured: dict[str, Any] = {
        "input_size": [1024, 1024],
        "macs": 10**11,
        "weights": "random",
        "first_seconds": 12.5,
        "peak_bytes": GIB // 2,
        "encoder_ms": [100.0, 200.0, 300.0],
        "decoder_ms": [10.0, 10.0, 40.0],
    }
    return Row(cell=cell, **{**measured, **fields})


def group(*rows: Row) -> Group:
    return Group(rows=list(rows), machine={"processor": "A chip", "threads": 2}, rates={"bfloat16": [1e12, 2e12, 3e12]})


def table(*rows: Row) -> list[dict[str, str]]:
    """The rows of the Markdown table, by column; the later of two columns of one name counts."""
    lines = [line for line in markdown(ABOUT, [group(*rows)]).splitlines() if line.startswith("|")]
    head, _, *body = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    return [dict(zip(head, cells, strict=True)) for cells in body]


def test_median_and_percentiles() -> None:
    times = [float(time) for time in range(11)]
    assert statistics_of(times[::-1]) == {"median": 5, "p10": 1, "p90": 9}


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratio_of([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == 2


def test_rows_are_compared_with_the_first_and_with_the_floor() -> None:
    first, second = results(group(row(), row(replace(CELL, batch=4), encoder_ms=[300.0, 400.0, 900.0])))
    assert (first["ratio"], second["ratio"]) == (1, 3)
    assert (first["floor_ms"], second["floor_ms"]) == (50, 200)  # 1e11 at 2e12 a second; four of them
    assert second["encoder"]["median"] == 400
    assert second["decoder"] == {"median": 10, "p10": 10, "p90": pytest.approx(34)}


def test_without_a_first_there_is_no_ratio_and_without_a_count_no_floor() -> None:
    first, second = results(group(row(problem="does not fit", encoder_ms=[]), row(macs=None)))
    assert first["encoder"] is first["decoder"] is first["ratio"] is second["ratio"] is second["floor_ms"] is None
    assert second["encoder"]["median"] == 200


def test_every_column_has_its_figure() -> None:
    (cells,) = table(row(replace(CELL, keep_ratio=0.25)))
    assert tuple(cells) == tuple(dict.fromkeys(COLUMNS))
    assert cells == {
        "model": "vit_b", "keep": "0.25", "dtype": "bfloat16", "way": "eager", "input": "1024 x 1024", "GMACs": "100",
        "encoder ms": "200", "ratio": "1.00", "floor ms": "50.0", "time / floor": "4.00", "decoder ms": "10.0",
        "p10": "10.0", "p90": "34.0", "first call s": "12.5", "peak GiB": "0.500",
    }  # fmt: skip


def test_on_a_gpu_the_share_of_its_rate_is_given() -> None:
    (cells,) = table(row(replace(CELL, device="cuda", allocator=None)))
    assert "time / floor" not in cells
    assert cells["share of rate"] == "25 %"


def test_what_was_not_measured_says_why() -> None:
    unfit, unbuilt = table(
        row(problem="does not compile: E: a | b", encoder_ms=[1.0]),
        Row(cell=replace(CELL, model="a:b"), problem="does not fit: more than 1.0 GiB"),
    )
    assert unfit["encoder ms"] == "does not compile: E: a \\| b"
    assert unfit["decoder ms"] == unfit["ratio"] == "-"
    assert unfit["GMACs"] == "100"
    assert unbuilt["encoder ms"] == "does not fit: more than 1.0 GiB"
    assert (unbuilt["dtype"], unbuilt["input"], unbuilt["GMACs"]) == ("bfloat16 autocast", "-", "-")


def test_a_square_given_for_a_photograph_of_another_aspect_is_named() -> None:
    wide = replace(CELL, aspect="4:3")
    square, padded = table(row(wide), row(wide, input_size=[768, 1024]))
    assert (square["input"], padded["input"]) == ("1024 x 1024 (its square)", "768 x 1024")


def test_the_header_names_code_machine_and_weights() -> None:
    foreign = row(replace(CELL, model="a:b"), weights="function")
    text = markdown(
        ABOUT, [group(row(), foreign, row(replace(CELL, model="blvit_tiny"), weights="file")), group(row())]
    )
    assert "- date: 2020-02-02; sam_blvit: 1.0, git abc; rounds: 3" in text
    assert text.count("- processor: A chip; threads: 2") == 1
    assert "vit_b random, as no checkpoint is named; a:b as the function makes them" in text
    assert "blvit_tiny from its file" in text
    assert text.count(f"## {CELL.shape}\n") == 2
    assert "bfloat16 matrix product: 2.00 T MAC/s" in text


@pytest.mark.parametrize(
    ("allocator", "own", "said"), [("default", True, True), ("tuned", True, False), ("default", False, False)]
)
def test_page_faults_are_named_beside_a_ratio_to_segment_anythings_own(allocator: str, own: bool, said: bool) -> None:
    cell = replace(CELL, allocator=allocator)
    assert (PAGE_FAULTS in markdown(ABOUT, [group(row(cell), row(cell, segment_anything=own))])) == said


def test_page_faults_are_not_named_where_there_is_no_ratio() -> None:
    cell = replace(CELL, allocator="default")
    unfit = row(cell, segment_anything=True, encoder_ms=[], problem="does not fit")
    assert PAGE_FAULTS not in markdown(ABOUT, [group(row(cell), row(cell), unfit)])
