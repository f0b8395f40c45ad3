"""A report of runs that this file writes: what the page says, and one line for each mistake."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from runs import COMMON, PROTOCOL, ap_run, by_prompt, miou_run, rows_of, with_worst, write_json
from sam_blvit import cli
from sam_blvit.config import ReportConfig
from sam_blvit.evaluate.metrics.summary import PROMPTS
from sam_blvit.evaluate.report.page import report

Refused = Callable[[type[Exception], str], AbstractContextManager[object]]


class Page(HTMLParser):
    """What a page holds; fails on tags that do not nest."""

    EMPTY = ("meta", "img")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.tables: list[tuple[str, list[list[str]]]] = []
        """Each under its heading."""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "table":
            self.tables.append((self.headings[-1], []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        within = self.open[-1] if self.open else ""
        if within in ("th", "td"):
            self.tables[-1][1][-1][-1] += data
        elif within in ("h1", "h2"):
            self.headings.append(data)
        if within != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def pictures(self) -> list[str]:
        """What is said of each."""
        return [attributes["alt"] or "" for tag, attributes in self.tags if tag == "img"]

    def table(self, column: str, heading: str = "") -> list[dict[str, str]]:
        """The lines, by column, of the first table with `column` under `heading`."""
        head, *lines = next(table for above, table in self.tables if column in table[0] and heading in above)
        return [dict(zip(head, line, strict=True)) for line in lines]


def page_of(tmp_path: Path, *directories: Path) -> Page:
    return Page(report(ReportConfig(runs=directories, output=tmp_path / "out")))


def test_the_page_is_one_file_without_scripts_or_network(tmp_path: Path) -> None:
    page = page_of(tmp_path, miou_run(tmp_path / "runs" / "a"), miou_run(tmp_path / "runs" / "b", keep_ratio=1.0))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html"}
    assert not {"script", "link", "iframe", "object", "a"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert all("//" not in (value or "") for name, value in attributes.items() if name != "src")
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
    style = (tmp_path / "out" / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    run = miou_run(tmp_path / "a")
    page = report(ReportConfig(runs=(run,), output=tmp_path / "out")).read_bytes()
    assert report(ReportConfig(runs=(run,), output=tmp_path / "again")).read_bytes() == page


def test_names_are_escaped(tmp_path: Path) -> None:
    page = page_of(tmp_path, miou_run(tmp_path / "<b>&amp;", model="<script>alert(1)</script>"))
    (line,) = page.table("checkpoint")
    assert (line["run"], line["model"]) == ("<b>&amp;", "<script>alert(1)</script>")


def test_the_tables_hold_a_run(tmp_path: Path) -> None:
    page = page_of(tmp_path, miou_run(tmp_path / "a"))
    assert page.table("small") == [
        {"#": "1", "run": "a", "box": "47.8", "1pt": "17.5", "3pt": "31.8", "small": "11.1", "medium": "22.2"}
        | {"boundary box": "33.4", "boundary 1pt": "5.0", "boundary 3pt": "6.0"}
    ]
    assert page.table("checkpoint") == [
        {"#": "1", "run": "a", "model": "blvit_tiny", "keep ratio": "0.25", "image size": "512"}
        | {"checkpoint": "tiny.safetensors c0ffee00", "protocol": "blvit", "mean over": "instance", "subset": "full"}
        | {"perturbation": "clean", "annotations": "instances.json abcdef01", "crowds": "left out", "seeds": "0"}
        | {"objects": "6", "code": "ba40707"}
    ]
    assert page.table("wall s") == [
        {"#": "1", "run": "a", "MACs": "5.1", "all MACs": "5.9", "ms": "61.2", "wall s": "103"}
    ]
    assert "Measured on cpu, EPYC, 2 threads, torch 2.15.0 (#1)" in page.text
    assert "ms: batch 1, median of 5 (#1)" in page.text


def test_the_screen_has_the_table_and_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = (miou_run(tmp_path / "a"), ap_run(tmp_path / "b"))
    report(ReportConfig(runs=runs, output=tmp_path / "out"))
    assert capsys.readouterr().out.splitlines() == [
        "| # | run | model | keep ratio | protocol | perturbation | objects | box | 1pt | 3pt | AP | MACs | ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| 1 | a | blvit_tiny | 0.25 | blvit | clean | 6 | 47.8 | 17.5 | 31.8 | - | 5.1 | 61.2 |",
        "| 2 | b | blvit_tiny | 0.25 | AP of lvis, boxes gt, select single, refine 0 | clean | - | - | - | - | 12.3 "
        "| 5.1 | 61.2 |",
        str(tmp_path / "out" / "report.html"),
    ]


def test_several_seeds_show_their_spread(tmp_path: Path) -> None:
    seeds = {"seeds": [0, 1], "instance": {}, "std": by_prompt(0.0, 0.34, 0.2)}
    (line,) = page_of(tmp_path, miou_run(tmp_path / "a", seeds=seeds)).table("small")
    assert [line[prompt] for prompt in PROMPTS] == [
        "47.8 ± 0.0",
        "17.5 ± 0.3",
        "31.8 ± 0.2",
    ]


def test_the_headline_is_the_mean_that_the_protocol_asks_for(tmp_path: Path) -> None:
    (line,) = page_of(tmp_path, miou_run(tmp_path / "a", protocol=PROTOCOL | {"average": "category"})).table("small")
    assert [line[prompt] for prompt in PROMPTS] == ["51.0", "21.0", "32.0"]


def test_a_run_of_ap_alone_has_tables_and_no_sections_of_miou(tmp_path: Path) -> None:
    page = page_of(tmp_path, ap_run(tmp_path / "a", boxes={"file": "vitdet.json", "sha256": "5" * 64}))
    assert page.table("AP50") == [{"#": "1", "run": "a", "AP": "12.3", "AP50": "23.4"}]
    assert page.table("checkpoint")[0]["protocol"] == "AP of lvis, boxes vitdet.json 55555555, select single, refine 0"
    assert page.headings == ["Evaluation of 1 run", "Results", "What accuracy costs"]
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_what_could_not_be_counted_is_left_out(tmp_path: Path) -> None:
    page = page_of(tmp_path, miou_run(tmp_path / "a", macs=None, milliseconds=None, git=None, keep_ratio=None))
    assert page.table("wall s") == [{"#": "1", "run": "a", "wall s": "103"}]
    assert not [words for words in page.pictures if words.startswith("mIoU")]
    assert "ms:" not in page.text
    assert "marker" not in page.text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"annotations": {"file": "other.json", "sha256": "9" * 64}}, "annotations: abcdef01 (#1); 99999999 (#2)"),
        (
            {"protocol": PROTOCOL | {"first": "centre", "subset": "minival"}},
            "protocol first: uniform (#1); centre (#2)",
        ),
        ({"subset": "minival"}, "subset: full (#1); minival (#2)"),
        ({"seeds": {"seeds": [0, 1], "std": None}}, "seeds: 0 (#1); 0, 1 (#2)"),
        ({"include_crowd": True}, "crowds measured: False (#1); True (#2)"),
    ],
)
def test_what_does_not_compare_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], told: str
) -> None:
    page = page_of(tmp_path, miou_run(tmp_path / "a"), miou_run(tmp_path / "b", **changes))
    assert (
        f"Not all numbers on this page compare. The runs were measured on different things: {told} Results" in page.text
    )
    assert f"not comparable: {told}" in capsys.readouterr().out.splitlines()


def test_runs_of_one_condition_and_of_another_task_need_no_warning(tmp_path: Path) -> None:
    page = page_of(
        tmp_path, miou_run(tmp_path / "a"), miou_run(tmp_path / "b", model="vit_tiny"), ap_run(tmp_path / "c")
    )
    assert "compare" not in page.text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"boxes": {"file": "d.json", "sha256": "5" * 64}}, "boxes: gt (#1); d.json 55555555 (#2)"),
        ({"judge": "coco"}, "judge: lvis (#1); coco (#2)"),
        ({"select": "argmax"}, "select: single (#1); argmax (#2)"),
        ({"refine": 2}, "refine: 0 (#1); 2 (#2)"),
    ],
)
def test_runs_of_ap_that_do_not_compare_are_told(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    assert told in page_of(tmp_path, ap_run(tmp_path / "a"), ap_run(tmp_path / "b", **changes)).text


def test_times_of_two_machines_do_not_compare(tmp_path: Path) -> None:
    page = page_of(tmp_path, ap_run(tmp_path / "a"), ap_run(tmp_path / "b", threads=16), ap_run(tmp_path / "c"))
    assert "Measured on cpu, EPYC, 2 threads, torch 2.15.0 (#1, #3)" in page.text
    assert "Measured on cpu, EPYC, 16 threads, torch 2.15.0 (#2)" in page.text
    assert "Times of different machines do not compare." in page.text


def test_miou_is_drawn_against_each_cost_of_clean_runs(tmp_path: Path) -> None:
    page = page_of(tmp_path, miou_run(tmp_path / "a"), miou_run(tmp_path / "b", macs=None, perturbation="dark"))
    assert [words.split(";")[0] for words in page.pictures if words.startswith("mIoU")] == [
        "mIoU by prompt against MACs in the paper's convention, G",
        "mIoU by prompt against MACs, every product counted, G",
        "mIoU by prompt against encoder, milliseconds",
    ]


def test_perturbed_runs_are_not_drawn_against_costs(tmp_path: Path) -> None:
    page = page_of(tmp_path, miou_run(tmp_path / "a"), miou_run(tmp_path / "b", perturbation="dark"))
    source = next(attributes["src"] for tag, attributes in page.tags if tag == "img") or ""
    svg = base64.b64decode(source.partition(",")[2]).decode()
    assert svg.count(">1</text>") == 3
    assert ">2</text>" not in svg


def test_keep_ratios_are_joined(tmp_path: Path) -> None:
    runs = [miou_run(tmp_path / f"keep-{ratio:g}", keep_ratio=ratio) for ratio in (0.25, 0.5, 1.0)]
    page = page_of(tmp_path, *runs, miou_run(tmp_path / "dense", keep_ratio=None))
    assert [words for words in page.pictures if "keep ratio" in words] == [
        "mIoU by prompt along the keep ratio: #1, #2, #3",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "blvit_b_t"},
        {"checkpoint": {"file": "tiny.safetensors", "sha256": "7" * 64}},
        {"image_size": 1024},
        {"perturbation": "dark"},
        {"annotations": {"file": "instances.json", "sha256": "9" * 64}},
        {"protocol": PROTOCOL | {"first": "centre"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_keep_ratios_are_joined_only_where_nothing_else_differs(tmp_path: Path, changes: dict[str, Any]) -> None:
    page = page_of(tmp_path, miou_run(tmp_path / "a"), miou_run(tmp_path / "b", keep_ratio=0.5, **changes))
    assert "Keep ratio" not in page.headings


def test_one_keep_ratio_measured_twice_is_no_curve(tmp_path: Path) -> None:
    assert "Keep ratio" not in page_of(tmp_path, miou_run(tmp_path / "a"), miou_run(tmp_path / "b")).headings


def test_calibration_errors_are_those_of_the_instances(tmp_path: Path) -> None:
    rows = rows_of()
    for row in rows:
        row["piou_1pt"] = 140.0
        row["iou_3pt"] = 40.0 + 60 * (row["ann_id"] % 2)  # 70 on the mean, as predicted
    page = page_of(tmp_path, miou_run(tmp_path / "a", rows=rows))
    assert page.table("box", "Can predicted IoU be trusted?") == [
        {"#": "1", "run": "a", "box": "30.0", "1pt": "100.0", "3pt": "0.0"}
    ]


def test_differences_are_to_the_first_run_named(tmp_path: Path) -> None:
    later = miou_run(tmp_path / "a", rows=rows_of(shift=1.5))
    page = page_of(tmp_path, ap_run(tmp_path / "c"), miou_run(tmp_path / "b"), later)
    same = dict.fromkeys(PROMPTS, "+1.50 (+1.50 to +1.50)")
    assert page.table("in both") == [{"#": "3", "run": "a", "in both": "6", "photographs": "3", **same}]
    assert "of each run minus that of b," in page.text


def test_a_run_of_other_objects_has_no_difference(tmp_path: Path) -> None:
    rows = rows_of(objects=2)
    others = [row | {"ann_id": 100 + row["ann_id"]} for row in rows]
    recut = [row | {"npix": 39} for row in rows[:1]] + rows[1:]
    page = page_of(
        tmp_path,
        miou_run(tmp_path / "a", rows=rows),
        miou_run(tmp_path / "b", rows=others),
        miou_run(tmp_path / "c", rows=recut),
    )
    none, one = page.table("in both")
    assert (none["in both"], none["box"]) == ("none", "-")
    assert (one["in both"], one["left out"], one["box"]) == ("1", "1", "+0.00 (+0.00 to +0.00)")


def test_one_run_has_no_sections_that_need_several(tmp_path: Path) -> None:
    assert page_of(tmp_path, miou_run(tmp_path / "a")).headings == [
        "Evaluation of 1 run",
        "Results",
        "What accuracy costs",
        "Size of objects",
        "Can predicted IoU be trusted?",
    ]


def test_perturbed_runs_are_held_against_the_clean_one(tmp_path: Path) -> None:
    dark = {"instance": by_prompt(40.0, None, 31.93), **dict.fromkeys(("small", "medium", "large"), by_prompt(1, 1, 1))}
    runs = [
        miou_run(tmp_path / "other", perturbation="dark", keep_ratio=0.5),
        miou_run(tmp_path / "dark", perturbation="dark", miou=dark, primary_kept={"1": 97.24, "4": 95.0, "mean": 96.1}),
        miou_run(tmp_path / "clean"),
    ]
    assert page_of(tmp_path, *runs).table("against") == [
        {"#": "2", "run": "dark", "perturbation": "dark", "against": "#3", "box": "-7.8", "3pt": "+0.1"}
        | {"kept, layer 1": "97.2", "kept, layer 4": "95.0", "kept, mean": "96.1"}
    ]


def test_the_worst_objects_are_shown_under_their_run(tmp_path: Path) -> None:
    run = with_worst(miou_run(tmp_path / "a"))
    page = page_of(tmp_path, run, miou_run(tmp_path / "b"))
    words = "IoU 3.2, predicted 80.1: object 123 of photograph 7, category 5"
    (source,) = [attributes["src"] for _, attributes in page.tags if attributes.get("alt") == words]
    kind, _, content = (source or "").partition(";base64,")
    assert kind == "data:image/jpeg"
    assert base64.b64decode(content) == (run / "worst" / "01_123.jpg").read_bytes()
    assert f"a: 1 object {words}" in page.text
    assert "b: " not in page.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "fps"}, "summary.json: task='fps' is not one of miou, ap"),
        ({"wall_seconds": "long"}, "summary.json: wall_seconds='long' is no number"),
        ({"protocol": "blvit"}, "summary.json lacks protocol.average"),
        ({"miou": {"instance": by_prompt(1, 1, 1)}}, "summary.json lacks miou.small.box"),
        ({"checkpoint": {"file": "a.pth"}}, "summary.json lacks checkpoint.sha256"),
    ],
)
def test_a_summary_that_cannot_be_used_is_refused(
    tmp_path: Path, refused: Refused, changes: dict[str, Any], said: str
) -> None:
    with refused(ValueError, re.escape(said)):
        page_of(tmp_path, miou_run(tmp_path / "a"), miou_run(tmp_path / "b", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["task", *COMMON])
def test_a_missing_name_is_told_with_its_file(tmp_path: Path, refused: Refused, key: str) -> None:
    for run in (miou_run(tmp_path / "a"), ap_run(tmp_path / "b")):
        summary = json.loads((run / "summary.json").read_text())
        del summary[key]
        write_json(run, summary)
        with refused(ValueError, f"{run.name}/summary.json lacks {key}"):
            page_of(tmp_path, run)


def test_a_summary_that_is_a_list_is_refused(tmp_path: Path, refused: Refused) -> None:
    write_json(tmp_path / "a", [1])
    with refused(ValueError, "summary.json lacks task"):
        page_of(tmp_path, tmp_path / "a")


def test_an_object_that_is_there_twice_is_refused(tmp_path: Path, refused: Refused) -> None:
    with refused(ValueError, "b: object 2 is there twice for seed 0; measure it again"):
        page_of(tmp_path, miou_run(tmp_path / "a"), miou_run(tmp_path / "b", rows=[*rows_of(), rows_of()[2]]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([{"file": "01_123.jpg"}], "KeyError: 'iou_box'"),
        ([{"file": "gone.jpg"}], "FileNotFoundError: .*gone.jpg"),
        ([{"file": "01_123.jpg", "iou_box": "low"}], "ValueError: "),
        ([3], "TypeError"),
        (None, "TypeError"),
    ],
)
def test_pictures_that_cannot_be_shown_are_refused(tmp_path: Path, refused: Refused, entries: Any, said: str) -> None:
    run = with_worst(miou_run(tmp_path / "a"))
    (run / "worst" / "worst.json").write_text(json.dumps(entries))
    with refused(ValueError, rf"worst.json cannot be shown \({said}"):
        page_of(tmp_path, run)


def test_no_file_outside_the_run_gets_into_the_page(tmp_path: Path, refused: Refused) -> None:
    run = with_worst(miou_run(tmp_path / "a"))
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    entry = json.loads((run / "worst" / "worst.json").read_text())[0]
    (run / "worst" / "worst.json").write_text(json.dumps([entry | {"file": "../../secret.jpg"}]))
    with refused(ValueError, "worst.json cannot be shown"):
        page_of(tmp_path, run)


def test_a_page_that_is_there_stays_if_a_new_one_fails(tmp_path: Path, refused: Refused) -> None:
    path = report(ReportConfig(runs=(miou_run(tmp_path / "a"),), output=tmp_path / "out"))
    before = path.read_bytes()
    with refused(ValueError, "lacks"):
        report(ReportConfig(runs=(ap_run(tmp_path / "b", boxes={}),), output=tmp_path / "out"))
    assert path.read_bytes() == before


def test_the_command_takes_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    miou_run(tmp_path / "a")
    miou_run(tmp_path / "b")
    cli.run(report, [str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "out")])
    assert [line["run"] for line in Page(tmp_path / "out" / "report.html").table("wall s")] == ["a", "b"]
