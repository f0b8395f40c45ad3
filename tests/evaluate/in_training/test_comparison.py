"""Before and after side by side: the numbers are those of the parts, and the table says what they are of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datasets import write_dataset
from sam_blvit.config import FinetuneConfig, ModelConfig, compose
from sam_blvit.evaluate.in_training import comparison
from sam_blvit.evaluate.in_training.comparison import compare, comparison_table
from sam_blvit.evaluate.in_training.validation import Validation
from sam_blvit.evaluate.provenance import gmacs
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.system.distributed import Processes
from sam_blvit.system.machine import processor

pytestmark = pytest.mark.usefixtures("counted_once")


@pytest.fixture
def before(tiny_dense: Callable[..., ModelConfig], randomize: Callable[[Sam], Sam]) -> Sam:
    return randomize(build_sam(tiny_dense()))


@pytest.fixture
def after(tiny: Callable[..., ModelConfig], randomize: Callable[[Sam], Sam]) -> Sam:
    return randomize(build_sam(tiny())).train()


@pytest.fixture
def validation(tmp_path: Path) -> Validation:
    coco = write_dataset(tmp_path)
    config = compose(
        FinetuneConfig,
        data=tmp_path,
        output=tmp_path / "run",
        val_annotations=coco / "annotations.json",
        val_images=coco,
    )
    made = Validation.of(config, None, processes=Processes())
    assert made is not None
    return made


def row(**changes: Any) -> dict[str, Any]:
    """A row of round numbers."""
    return {
        "is": "before",
        "model": "vit_b",
        "keep_ratio": 1.0,
        "miou": {"annotations": {"box": 77.77, "1pt": 50.0, "3pt": 65.25}},
        "protocol": "blvit",
        "measured": {"annotations": {"photographs": 2, "objects": 4}},
        "milliseconds": {"encoder": 123.45, "decoder": 9.0, "how": "batch 1, 1024 x 1024 pixels"},
        "macs": {"paper": 371.98, "full": 486.0},
        "parameters": 93_735_472,
        "machine": {"device": "cpu", "processor": "EPYC", "threads": 2},
        **changes,
    }


def test_a_row_holds_what_its_parts_measure(before: Sam, after: Sam, validation: Validation, tmp_path: Path) -> None:
    rows = compare(before, after, validation, keep_ratios=(0.0, 0.5, 0.5), output=tmp_path / "out")
    assert [(r["is"], r["model"], r["keep_ratio"]) for r in rows] == [
        ("before", "vit_tiny", 1.0),
        ("after", "blvit_tiny", 0.0),
        ("after", "blvit_tiny", 0.5),
    ]
    assert after.training  # as it came
    assert [r["miou"] for r in rows[1:]] == [validation.mious(after, keep_ratio=ratio) for ratio in (0.0, 0.5)]
    assert len({r["miou"]["annotations"]["box"] for r in rows}) == 3
    after.image_encoder.keep_ratio = 0.5
    assert (rows[0]["macs"], rows[2]["macs"]) == (gmacs(before), gmacs(after))
    assert rows[1]["macs"]["paper"] < rows[2]["macs"]["paper"]
    assert [r["parameters"] for r in rows[:2]] == [sum(p.numel() for p in sam.parameters()) for sam in (before, after)]
    assert all(r["milliseconds"]["encoder"] > 0 for r in rows)


def test_rows_and_table_are_written(before: Sam, after: Sam, validation: Validation, tmp_path: Path) -> None:
    rows = compare(before, after, validation, keep_ratios=(0.25,), output=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == rows
    assert (tmp_path / "out" / "comparison.md").read_text() == comparison_table(rows) + "\n"


def test_only_the_first_process_measures_costs_and_writes(
    before: Sam, validation: Validation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [{"encoder": 1.0, "how": "by the first"}] * 2

    class Second(Processes):
        def gathered(self, item: Any) -> list[Any]:
            return [times, item] if item == [] else [item]

    monkeypatch.setattr(comparison, "milliseconds", lambda sam: pytest.fail("both measure times at once"))
    second = Validation(validation.shares, Second(rank=1, count=2))
    rows = compare(before, before, second, keep_ratios=(1.0,), output=tmp_path / "out")
    assert [r["milliseconds"]["how"] for r in rows] == ["by the first"] * 2
    assert not (tmp_path / "out").exists()


def test_the_table_shows_masks_time_and_size() -> None:
    after = row(**{"is": "after", "model": "blvit_b_t", "keep_ratio": 0.25, "macs": None})
    table = comparison_table([row(), after]).splitlines()
    assert table[0] == "|  | model | keep ratio | box | 1pt | 3pt | encoder ms | MACs (G) | parameters (M) |"
    assert table[2] == "| before | vit_b | 1 | 77.8 | 50.0 | 65.2 | 123.5 | 372.0 | 93.7 |"
    assert table[3] == "| after | blvit_b_t | 0.25 | 77.8 | 50.0 | 65.2 | 123.5 | - | 93.7 |"


def test_the_table_says_what_was_measured_and_on_which_machine(
    before: Sam, validation: Validation, tmp_path: Path
) -> None:
    rows = compare(before, before, validation, keep_ratios=(), output=tmp_path)
    note = comparison_table(rows).splitlines()[-1]
    assert "protocol blvit (annotations: 4 objects on 2 photographs)" in note
    assert "batch 1, 128 x 128 pixels" in note
    assert f"on {processor()}, " in note
    on_gpu = row(machine={"device": "H200", "processor": "EPYC", "threads": 2})
    assert comparison_table([on_gpu]).endswith("on H200, EPYC, 2 threads.")


def test_kinds_of_photographs_have_columns_of_their_own() -> None:
    numbers = {"box": 1.0, "1pt": 2.0, "3pt": 3.0}
    counts = {"photographs": 1, "objects": 1}
    both = row(miou={"held": numbers, "annotations": numbers}, measured={"held": counts, "annotations": counts})
    head = comparison_table([both]).splitlines()[0]
    assert "| held box | held 1pt | held 3pt | annotations box | annotations 1pt | annotations 3pt |" in head
