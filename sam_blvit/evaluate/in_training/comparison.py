"""Before and after: what an accelerated SAM keeps of the masks, and what it saves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam_blvit.cost.latency import milliseconds
from sam_blvit.evaluate.in_training.validation import HOW, Validation, usual_keep_ratio
from sam_blvit.evaluate.metrics.summary import PROMPTS, markdown
from sam_blvit.evaluate.provenance import gmacs, parameter_count
from sam_blvit.exported.sam import ExportedSam
from sam_blvit.model.measuring import measuring
from sam_blvit.model.sam import Sam
from sam_blvit.system.files import output_directory, write_atomically, write_json
from sam_blvit.system.machine import machine

JSON_FILE, TABLE_FILE = "comparison.json", "comparison.md"
NOTHING = "-"
"""A cell without a value."""
M = 1e6
TURNS = 7
"""In which all models are timed one after the other."""


def compare(
    before: Sam | ExportedSam, after: Sam, validation: Validation, *, keep_ratios: Sequence[float], output: Path
) -> list[dict[str, Any]]:
    """Measure `before`, the SAM as it was brought, and `after` at each of `keep_ratios`; one row each, the same in all
    of the validation's processes, which call this at once.

    The first of them writes `comparison.json`, the rows, and `comparison.md`, their `comparison_table`, to `output`.
    """
    measured = [("before", before, usual_keep_ratio(before))]
    measured += [("after", after, ratio) for ratio in dict.fromkeys(keep_ratios)]
    rows = [_row(which, sam, validation, ratio) for which, sam, ratio in measured]
    # one process alone: two that measure times at once slow each other down
    times = _times([(sam, ratio) for _, sam, ratio in measured]) if validation.processes.first else []
    for row, spent in zip(rows, validation.processes.gathered(times)[0], strict=True):
        row["milliseconds"] = spent
    if validation.processes.first:
        directory = output_directory(output)
        write_json(directory / JSON_FILE, rows)
        write_atomically(directory / TABLE_FILE, lambda to: Path(to).write_text(comparison_table(rows) + "\n"))
    return rows


def _times(models: Sequence[tuple[Sam | ExportedSam, float]]) -> list[dict[str, Any]]:
    """Milliseconds of each model at its keep ratio: medians over turns, as a machine is not always equally busy."""
    turns: list[list[dict[str, Any]]] = [[] for _ in models]
    for _ in range(TURNS):
        for (sam, keep_ratio), spent in zip(models, turns, strict=True):
            with measuring(sam, keep_ratio):
                spent.append(milliseconds(sam))
    return [
        {
            **{part: round(statistics.median(turn[part] for turn in spent), 3) for part in ("encoder", "decoder")},
            "how": f"{spent[0]['how']}, median of {TURNS} turns",
        }
        for spent in turns
    ]


def comparison_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `compare` as a Markdown table, and below it what was measured, how and on what machine."""
    several = len(rows[0]["miou"]) > 1
    columns = [(kind, prompt) for kind in rows[0]["miou"] for prompt in PROMPTS]
    head = ["", "model", "keep ratio", *(f"{kind} {prompt}" if several else prompt for kind, prompt in columns)]
    lines = []
    for row in rows:
        mious = [f"{row['miou'][kind][prompt]:.1f}" for kind, prompt in columns]
        macs = NOTHING if row["macs"] is None else f"{row['macs']['paper']:.1f}"
        costs = [f"{row['milliseconds']['encoder']:.1f}", macs, f"{row['parameters'] / M:.1f}"]
        lines.append([row["is"], row["model"], f"{row['keep_ratio']:g}", *mious, *costs])
    table = markdown([*head, "encoder ms", "MACs (G)", "parameters (M)"], lines)
    return f"{table}\n\n{_note(rows[0])}"


def _note(row: dict[str, Any]) -> str:
    """What the numbers of the table are."""
    measured = "; ".join(
        f"{kind}: {counts['objects']} objects on {counts['photographs']} photographs"
        for kind, counts in row["measured"].items()
    )
    of = row["machine"]
    place = of["processor"] if of["device"] == "cpu" else f"{of['device']}, {of['processor']}"
    return (
        f"mIoU in percent, protocol {row['protocol']} ({measured}). MACs of a whole SAM with one point, in the paper's "
        f"convention. Encoder: {row['milliseconds']['how']}, on {place}, {of['threads']} threads."
    )


def _row(which: str, sam: Sam | ExportedSam, validation: Validation, keep_ratio: float) -> dict[str, Any]:
    """`sam` at `keep_ratio`; plain JSON values."""
    mious = validation.mious(sam, keep_ratio=keep_ratio)
    with measuring(sam, keep_ratio):
        macs = gmacs(sam)
    return {
        "is": which,
        "model": sam.name,
        "image_size": sam.image_encoder.img_size,
        "keep_ratio": keep_ratio,
        "miou": mious,
        "protocol": HOW.protocol.label,
        "measured": {
            kind: {"photographs": share.photographs, "objects": share.objects}
            for kind, share in validation.shares.items()
        },
        "macs": macs,
        "parameters": parameter_count(sam),
        "machine": machine(sam.device),
    }
