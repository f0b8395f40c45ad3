"""Evaluation runs joined into one table on screen and one page, report.html, for a person to judge them by.

Numbers compare only where the same was measured; where it was not, the page says so instead of refusing.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from sam_blvit.config import ReportConfig
from sam_blvit.evaluate.ap import SHOWN
from sam_blvit.evaluate.metrics.statistics import RESAMPLES, Comparison, Rows, compare, reliability
from sam_blvit.evaluate.metrics.summary import PROMPTS, SUMMARY, TABLES, markdown
from sam_blvit.evaluate.report.charts import SIZE_COLOURS, Point, cost_chart, keep_chart, reliability_chart, size_chart
from sam_blvit.evaluate.report.read_runs import NOTHING, Run, instances_of, read_json, read_runs, text
from sam_blvit.system.files import check_inputs_stay, write_atomically

TEMPLATE = Path(__file__).with_name("report.html.j2")
ON_SCREEN = ("#", "run", "model", "keep ratio", "protocol", "perturbation", "objects", *PROMPTS, "AP", "MACs", "ms")
RESULTS = ("#", "run", *PROMPTS, *SIZE_COLOURS, *(f"boundary {prompt}" for prompt in PROMPTS), *SHOWN)
SETTINGS: tuple[str, ...] = ("#", "run", "model", "keep ratio", "image size", "checkpoint", "protocol", "mean over")
SETTINGS += ("subset", "perturbation", "annotations", "crowds", "seeds", "objects", "code")
COSTS = ("#", "run", "MACs", "all MACs", "ms", "wall s")
"""Columns of the tables, by the names that `_cells` gives them; one without a value is left out."""
COST_AXES = {
    "macs.paper": "MACs in the paper's convention, G",
    "macs.full": "MACs, every product counted, G",
    "milliseconds.encoder": "encoder, milliseconds",
}
"""What mIoU is drawn against."""
Cells = Mapping[str, str]
"""What a line of a table says, by column."""
Table = tuple[list[str], list[list[str]]]
"""The columns and the lines."""
Picture = tuple[str, str]
"""A data URI, and the words for it."""


def report(config: ReportConfig) -> Path:
    """Write report.html about `config.runs`, print its table, and return the page's path. ValueError, one line."""
    runs = read_runs(config.runs)
    path = config.output / "report.html"
    check_inputs_stay([path], (run.directory / name for run in runs for name in (SUMMARY, *TABLES)))
    page = page_about(runs)
    write_atomically(path, lambda to: Path(to).write_text(page, encoding="utf-8"))
    print(markdown(*_table(map(_cells, runs), ON_SCREEN)))
    print(*(f"not comparable: {difference}" for difference in _differences(runs)), path, sep="\n")
    return path


def page_about(runs: Sequence[Run]) -> str:
    """The page about `runs`, HTML."""
    measured = [run for run in runs if run.task == "miou"]
    cells = [[_cells(run) for run in of_task] for of_task in (measured, [run for run in runs if run.task == "ap"])]
    jinja = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return jinja.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        runs=runs,
        baseline=measured[0].name if measured else NOTHING,
        resamples=RESAMPLES,
        differences=_differences(runs),
        results=[_table(lines, RESULTS) for lines in cells if lines],
        settings=[_table(lines, SETTINGS) for lines in cells if lines],
        costs=_table(map(_cells, runs), COSTS),
        machines=_told((_machine(run), run) for run in runs),
        ways=_told((run.text("milliseconds.how"), run) for run in runs if run.value("milliseconds")),
        cost_charts=_cost_charts([run for run in measured if run.value("perturbation") == "clean"]),
        size_chart=_size_chart(measured),
        keep_charts=_keep_charts(measured),
        robustness=[_table(lines) for lines in _robustness(measured)],
        worst=[(run.name, pictures) for run in measured if (pictures := _worst(run.directory))],
        **_of_instances(measured),
    )


def _cells(run: Run) -> Cells:
    """What the tables say of `run`."""
    cells = {
        "#": f"{run.number}",
        "run": run.name,
        "model": run.text("model"),
        "keep ratio": run.text("keep_ratio", "g"),
        "image size": run.text("image_size", "g"),
        "checkpoint": run.file("checkpoint"),
        "subset": run.text("subset"),
        "perturbation": run.text("perturbation"),
        "annotations": run.file("annotations"),
        "MACs": run.text("macs.paper", ".1f"),
        "all MACs": run.text("macs.full", ".1f"),
        "ms": run.text("milliseconds.encoder", ".1f"),
        "wall s": run.text("wall_seconds", ".0f"),
        "code": run.text("git"),
    }
    if run.task == "ap":
        how = f"AP of {run.text('judge')}, boxes {run.file('boxes')}"
        how += f", select {run.text('select')}, refine {run.text('refine')}"
        return cells | {"protocol": how} | {name: run.text(f"ap.{name}", ".1f") for name in run.value("ap") or ()}
    return cells | {
        "protocol": run.text("protocol_label"),
        "mean over": run.text("protocol.average"),
        "crowds": "measured" if run.value("include_crowd") else "left out",
        "seeds": run.text("seeds.seeds"),
        "objects": run.text("counts.instances", "g"),
        **{prompt: _with_spread(run, prompt) for prompt in PROMPTS},
        **{size: run.text(f"miou.{size}.box", ".1f") for size in SIZE_COLOURS},
        **{f"boundary {prompt}": run.text(f"boundary.instance.{prompt}", ".1f") for prompt in PROMPTS},
    }


def _with_spread(run: Run, prompt: str) -> str:
    mean, spread = text(run.miou[prompt], ".1f"), run.text(f"seeds.std.{prompt}", ".1f")
    return mean if spread == NOTHING else f"{mean} ± {spread}"


def _table(lines: Iterable[Cells], names: Iterable[str] = ()) -> Table:
    """`lines` under `names`, or all that they have; a column where no line has anything is left out."""
    lines = list(lines)
    names = names or dict.fromkeys(name for line in lines for name in line)
    head = [name for name in names if any(line.get(name, NOTHING) != NOTHING for line in lines)]
    return head, [[line.get(name, NOTHING) for name in head] for line in lines]


def _differences(runs: Sequence[Run]) -> list[str]:
    """What was not the same for all runs of a task, and for which it was what."""
    found = []
    for task in ("miou", "ap"):
        conditions = [(run.conditions, run) for run in runs if run.task == task]
        for name in dict.fromkeys(name for condition, _ in conditions for name in condition):
            told = _told((condition.get(name, NOTHING), run) for condition, run in conditions)
            found += [f"{name}: {'; '.join(told)}"] if len(told) > 1 else []
    return found


def _told(values: Iterable[tuple[str, Run]]) -> list[str]:
    """Each value once, with the numbers of its runs."""
    numbers = defaultdict(list)
    for value, run in values:
        numbers[value].append(f"#{run.number}")
    return [f"{value} ({', '.join(of)})" for value, of in numbers.items()]


def _machine(run: Run) -> str:
    """What `run`'s times were measured on."""
    return f"{run.text('device')}, {run.text('processor')}, {run.text('threads')} threads, torch {run.text('torch')}"


def _cost_charts(runs: Sequence[Run]) -> list[Picture]:
    charts = []
    for path, axis in COST_AXES.items():
        points = [Point(f"{run.number}", x, run.miou) for run in runs if (x := run.quantity(path)) is not None]
        if points:
            words = f"mIoU by prompt against {axis}; the numbers are in the tables of results and of cost"
            charts.append((_svg(cost_chart(points, x_label=axis)), words))
    return charts


def _size_chart(runs: Sequence[Run]) -> list[Picture]:
    bars = {f"{run.number} {run.name}": {s: run.quantity(f"miou.{s}.box") for s in SIZE_COLOURS} for run in runs}
    words = "Box mIoU of each run on small, medium and large objects; the numbers are in the table of results"
    return [(_svg(size_chart(bars)), words)] if bars else []


def _keep_charts(runs: Sequence[Run]) -> list[Picture]:
    charts = []
    for group in _groups(runs, but="keep_ratio"):
        points = [Point(f"{run.number}", x, run.miou) for run in group if (x := run.quantity("keep_ratio")) is not None]
        if len({point.x for point in points}) > 1:
            words = f"mIoU by prompt along the keep ratio: {', '.join(f'#{point.label}' for point in points)}"
            charts.append((_svg(keep_chart(points)), words))
    return charts


def _groups(runs: Sequence[Run], *, but: str) -> list[list[Run]]:
    """`runs` that differ in the field `but` alone, together."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[tuple(sorted(item for item in run.identity.items() if item[0] != but))].append(run)
    return list(groups.values())


def _robustness(runs: Sequence[Run]) -> list[list[Cells]]:
    """For each clean run that was also measured under perturbations: what they change, in points of mIoU."""
    tables = []
    for group in _groups(runs, but="perturbation"):
        clean = next((run for run in group if run.value("perturbation") == "clean"), None)
        if clean is not None and len(group) > 1:
            tables.append([_change(run, clean) for run in group if run is not clean])
    return tables


def _change(run: Run, clean: Run) -> Cells:
    changes = {prompt: _minus(run.miou[prompt], clean.miou[prompt]) for prompt in PROMPTS}
    kept = run.value("primary_kept") or ()
    return {
        "#": f"{run.number}",
        "run": run.name,
        "perturbation": run.text("perturbation"),
        "against": f"#{clean.number}",
        **{prompt: text(change, "+.1f") for prompt, change in changes.items()},
        **{f"kept, {'mean' if of == 'mean' else f'layer {of}'}": run.text(f"primary_kept.{of}", ".1f") for of in kept},
    }


def _minus(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before


def _of_instances(runs: Sequence[Run]) -> dict[str, Any]:
    """Calibration of each of `runs` and its difference to the first. Only the first's instances stay in memory."""
    charts, errors, comparisons = [], [], []
    baseline: Rows = {}
    for run in runs:
        rows, named = instances_of(run.directory), {"#": f"{run.number}", "run": run.name}
        curves = {p: reliability(rows[f"piou_{p}"], rows[f"iou_{p}"]) for p in PROMPTS}
        words = f"True against predicted IoU of run {run.name}; the calibration errors are in the table"
        charts.append((_svg(reliability_chart(curves, title=f"{run.number} {run.name}")), words))
        errors.append({**named, **{p: f"{curve.error:.1f}" for p, curve in curves.items()}})
        if run is runs[0]:
            baseline = rows
        else:
            comparisons.append({**named, **_compared(compare(rows, baseline))})
    return {"reliability_charts": charts, "errors": _table(errors), "comparisons": _table(comparisons)}


def _compared(comparison: Comparison) -> Cells:
    return {
        "in both": str(comparison.instances or "none"),
        "photographs": str(comparison.photographs or NOTHING),
        "left out": str(comparison.strangers or NOTHING),
        **{p: f"{d.mean:+.2f} ({d.low:+.2f} to {d.high:+.2f})" for p, d in comparison.differences.items()},
    }


def _worst(directory: Path) -> list[Picture]:
    """The pictures of a run's worst objects; none if it has none."""
    path = directory / "worst" / "worst.json"
    entries = read_json(path) if path.is_file() else []
    try:
        return [_picture(path.parent, entry) for entry in entries]
    except (KeyError, TypeError, ValueError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} cannot be shown ({reason}); delete it to leave its pictures out") from error


def _picture(directory: Path, entry: Mapping[str, Any]) -> Picture:
    content = (directory / Path(entry["file"]).name).read_bytes()
    scores = f"IoU {entry['iou_box']:.1f}, predicted {entry['piou_box']:.1f}"
    ids = f"object {entry['ann_id']} of photograph {entry['image_id']}, category {entry['category_id']}"
    return _uri(content, "image/jpeg"), f"{scores}: {ids}"


def _svg(text: str) -> str:
    return _uri(text.encode(), "image/svg+xml")


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
