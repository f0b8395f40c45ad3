"""Times as statistics, and a benchmark as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sam_blvit.benchmark.cells import Group, Row
from sam_blvit.benchmark.memory import GIB
from sam_blvit.cost.macs import G

Statistics = dict[str, float]
MS, T = 1e3, 1e12
COLUMNS = (
    "model",
    "keep",
    "dtype",
    "way",
    "input",
    "GMACs",
    "encoder ms",
    "p10",
    "p90",
    "ratio",
    "floor ms",
    "time / floor",
    "decoder ms",
    "p10",
    "p90",
    "first call s",
    "peak GiB",
)
NOTHING = "-"
SHARE = "share of rate"
"""On a GPU, in place of time / floor: its inverse."""
READING = """\
- encoder: normalised pixels on the device to the embedding; decoder: one box to one mask of the photograph's size.
  Median, p10 and p90 of {rounds} rounds after warm-up; in a round each model is timed once, the device idle before and
  after.
- ratio: encoder time over the first row's, taken round by round; the median. Above 1 the first row is faster.
- GMACs: multiply-adds of the encoder for one image, every product counted. floor: those of the batch at the machine's
  own rate in a large matrix product of the same dtype, measured in the same run.
- first call: of the encoder, compilation included. peak: memory of the encoder's first calls beyond what is taken once
  the model is built; on a CPU resident memory of a process that does nothing else, on CUDA PyTorch's allocated memory.
- bfloat16: our models by compute_dtype, others by torch.autocast around the encoder. Decoders run in float32.\
"""
PAGE_FAULTS = (
    "Under the default allocator page faults, not arithmetic, may be much of the distance to segment_anything's own: "
    "compare `--allocators tuned`."
)


def statistics_of(times: Sequence[float]) -> Statistics:
    """Median, p10 and p90."""
    p10, median, p90 = np.percentile(times, [10, 50, 90])
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


def ratio_of(times: Sequence[float], base: Sequence[float]) -> float:
    """The median over rounds of a round's time over the same round's `base`."""
    return float(np.median([time / of for time, of in zip(times, base, strict=True)]))


def results(group: Group) -> list[dict[str, Any]]:
    """What the rows of `group` come to: statistics of `encoder` and `decoder`, `ratio` and `floor_ms`; None where a
    row, or for the ratio the first, has no times."""
    base = group.rows[0]
    found = []
    for row in group.rows:
        timed = row.problem is None and bool(row.encoder_ms)
        rates = group.rates.get(row.cell.dtype, [])
        work = None if row.macs is None else row.macs * row.cell.batch
        found.append(
            {
                "encoder": statistics_of(row.encoder_ms) if timed else None,
                "decoder": statistics_of(row.decoder_ms) if timed else None,
                "ratio": ratio_of(row.encoder_ms, base.encoder_ms) if timed and base.problem is None else None,
                "floor_ms": work / float(np.median(rates)) * MS if work and rates else None,
            }
        )
    return found


def header(about: dict[str, Any], groups: Sequence[Group]) -> list[str]:
    """What was measured, and on what, a line each."""
    lines = ["; ".join(f"{name}: {value}" for name, value in about.items()), f"weights: {_weights(groups)}"]
    for group in groups:
        machine = "; ".join(f"{name}: {_words(value)}" for name, value in group.machine.items())
        if machine and machine not in lines:
            lines.append(machine)
    return lines


def markdown(about: dict[str, Any], groups: Sequence[Group]) -> str:
    """The whole benchmark: what it was measured on, how to read it, and one table a group."""
    lines = ["# Benchmark", "", *(f"- {line}" for line in header(about, groups))]
    lines += READING.format(rounds=about["rounds"]).splitlines()
    for group in groups:
        lines += ["", f"## {group.shape}", "", *_table(group)]
    return "\n".join(lines) + "\n"


def name_of(row: Row) -> str:
    """`row`'s model with its keep ratio, if it has one to choose."""
    keep_ratio = row.cell.keep_ratio
    return row.cell.model if keep_ratio is None else f"{row.cell.model} {keep_ratio:g}"


def _table(group: Group) -> list[str]:
    on_cpu = group.rows[0].cell.device == "cpu"
    columns = [SHARE if name == "time / floor" and not on_cpu else name for name in COLUMNS]
    lines = [_line(columns), "|" + "---|" * 5 + "---:|" * (len(columns) - 5)]
    lines += [_line(_cells(row, result, on_cpu)) for row, result in zip(group.rows, results(group), strict=True)]
    notes = [
        f"{dtype} matrix product: {_digits(float(np.median(rates)) / T)} T MAC/s"
        for dtype, rates in group.rates.items()
    ]
    if notes:
        lines += ["", "; ".join(notes) + "."]
    timed = [row for row in group.rows if row.encoder_ms]
    if group.rows[0].cell.allocator == "default" and len(timed) > 1 and any(row.segment_anything for row in timed):
        lines += ["", PAGE_FAULTS]
    return lines


def _cells(row: Row, result: dict[str, Any], on_cpu: bool) -> list[str]:
    cell = row.cell
    keep_ratio = NOTHING if cell.keep_ratio is None else f"{cell.keep_ratio:g}"
    macs = None if row.macs is None else row.macs / G
    peak = None if row.peak_bytes is None else row.peak_bytes / GIB
    floor = result["floor_ms"]
    start = [cell.model, keep_ratio, cell.dtype_name, cell.way, _input(row), _digits(macs)]
    if row.problem is not None:
        times = [row.problem, *[NOTHING] * 3, _digits(floor), *[NOTHING] * 4]
    elif result["encoder"] is None:
        times = [NOTHING] * 9
    else:
        share = None if floor is None else result["encoder"]["median"] / floor
        against_floor = _digits(share) if on_cpu or share is None else f"{100 / share:.0f} %"
        times = [*_three(result["encoder"]), _digits(result["ratio"]), _digits(floor), against_floor]
        times += _three(result["decoder"])
    return [*start, *times, _digits(row.first_seconds), _digits(peak)]


def _input(row: Row) -> str:
    """Height and width of the encoder's input."""
    if row.input_size is None:
        return NOTHING
    height, width = row.input_size
    square = " (its square)" if row.cell.aspect != "square" and height == width else ""
    return f"{height} x {width}{square}"


def _weights(groups: Sequence[Group]) -> str:
    """Where the models' weights come from."""
    by_origin: dict[str, dict[str, None]] = {}
    for row in (row for group in groups for row in group.rows if row.weights is not None):
        by_origin.setdefault(str(row.weights), {})[row.cell.model] = None
    said = {
        "random": "random, as no checkpoint is named",
        "function": "as the function makes them, random unless it loads some",
        "file": "from its file",
    }
    parts = [f"{', '.join(models)} {said[origin]}" for origin, models in by_origin.items()]
    return "; ".join(parts) + ". Times do not depend on them." if parts else "none was built"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={setting}" for name, setting in value.items()) or "nothing set"
    return str(value)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _three(statistics: Statistics) -> list[str]:
    return [_digits(statistics[name]) for name in ("median", "p10", "p90")]


def _digits(value: float | None) -> str:
    """`value` to three digits."""
    if value is None:
        return NOTHING
    size = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(2 - size, 0)}f}"
