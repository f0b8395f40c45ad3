"""Whole evaluations: what is written, by how many processes, after what mishaps."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fakes
from datasets import CROWD, EMPTY, SIZES, squares, write_annotations, write_images, write_odd_dataset
from processes import finish, start_python
from sam_blvit.checkpoint.load import save_sam
from sam_blvit.cli import run
from sam_blvit.config import EvaluationConfig, ModelConfig
from sam_blvit.data.instances import read_instances
from sam_blvit.evaluate.masks import MaskMeasure
from sam_blvit.evaluate.metrics.summary import Row, mean_ious
from sam_blvit.evaluate.protocol.protocols import PROTOCOLS
from sam_blvit.evaluate.run import evaluate_coco, evaluate_lvis
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam

REAL = Path(__file__).parents[3] / "shared" / "data" / "real_eval"
EVAL = Path(__file__).parents[2] / "eval"
Configured = Callable[..., EvaluationConfig]

pytestmark = pytest.mark.usefixtures("counted_once")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_odd_dataset(tmp_path)


@pytest.fixture
def config(
    dataset: Path, tiny: Callable[..., ModelConfig], randomize: Callable[[Sam], Sam], monkeypatch: pytest.MonkeyPatch
) -> Configured:
    """A configured evaluation of a tiny random model, or of a fake one that knows the truth."""
    save_sam(randomize(build_sam(tiny())), dataset / "tiny.safetensors")
    monkeypatch.setenv(fakes.ANNOTATIONS, str(dataset / "annotations.json"))
    monkeypatch.setenv(fakes.IMAGES, str(dataset))

    def configured(**fields: Any) -> EvaluationConfig:
        usual = {
            "model": str(dataset / "tiny.safetensors"),
            "annotations": dataset / "annotations.json",
            "images": dataset,
            "output": dataset / "out",
            "device": "cpu",
        }
        return EvaluationConfig(**{**usual, **fields})

    return configured


def evaluated(config: EvaluationConfig) -> dict[str, Any]:
    (summary,) = evaluate_lvis(config)
    return summary


def test_the_summary_says_what_was_measured_with_what(
    config: Configured, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = evaluated(config(keep_ratio=0.5))
    assert json.loads((dataset / "out" / "summary.json").read_text()) == summary
    assert next(iter(summary)) == "miou"
    assert next(iter(summary["miou"])) == "instance"
    assert summary["counts"] == {
        "images": 2,
        "instances": 4,
        "skipped_empty": 1,
        "crowd_used": 0,
        "crowd_excluded": 1,
    }
    assert summary["skipped_empty_ids"] == [EMPTY["id"]]
    assert (summary["task"], summary["model"], summary["keep_ratio"]) == ("miou", "blvit_tiny", 0.5)
    assert (summary["protocol_label"], summary["subset"], summary["perturbation"]) == ("blvit", "full", "clean")
    assert summary["prompt_seeds"] == [0]
    assert summary["protocol"]["select"] == "argmax"
    for key, name in (("checkpoint", "tiny.safetensors"), ("annotations", "annotations.json")):
        digest = hashlib.sha256((dataset / name).read_bytes()).hexdigest()
        assert summary[key] == {"file": name, "sha256": digest}
    assert (summary["device"], summary["torch"]) == ("cpu", torch.__version__)
    assert summary["macs"]["full"] > summary["macs"]["encoder_full"] > 0
    assert summary["milliseconds"]["encoder"] > 0
    assert summary["wall_seconds"] > 0
    shown = capsys.readouterr().out
    assert f"{summary['miou']['instance']['3pt']:.1f} |" in shown
    assert "1 crowd annotations left out, 1 without a pixel skipped" in shown


def test_the_means_can_be_made_anew_from_the_rows(config: Configured, dataset: Path) -> None:
    summary = evaluated(config(seeds=(0, 5)))
    with open(dataset / "out" / "instances.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [Row(**{name: float(value) for name, value in line.items()}) for line in lines]  # type: ignore[arg-type]
    assert [(int(row.seed), int(row.ann_id)) for row in rows] == [
        (seed, ann_id) for image in ([10, 11], [20, 21]) for seed in (0, 5) for ann_id in image
    ]
    assert mean_ious(rows) == summary["miou"]
    assert summary["seeds"]["std"]["1pt"] > 0 == summary["seeds"]["std"]["box"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("select", ["argmax", "single", "oracle", "sam"])
def test_a_perfect_model_scores_100(config: Configured, protocol: str, select: str) -> None:
    summary = evaluated(config(model="fakes:perfect", protocol=protocol, select=select, oracle=True))
    hundred = {"box": 100.0, "1pt": 100.0, "3pt": 100.0}
    assert summary["miou"]["instance"] == hundred
    assert summary["boundary"]["instance"] == hundred
    assert summary["oracle"]["instance"] == hundred
    assert (summary["model"], summary["keep_ratio"]) == ("fakes:perfect", None)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_empty_model_scores_0(config: Configured, protocol: str) -> None:
    means = evaluated(config(model="fakes:empty", protocol=protocol))["miou"]
    assert means["instance"] == means["image"] == means["category"] == {"box": 0.0, "1pt": 0.0, "3pt": 0.0}


@pytest.mark.parametrize(("evaluate", "judge"), [(evaluate_coco, "coco"), (evaluate_lvis, "lvis")])
def test_perfect_masks_of_the_annotated_boxes_have_an_ap_of_100(
    config: Configured, dataset: Path, evaluate: Callable[..., Any], judge: str
) -> None:
    write_annotations(dataset, squares((1, 2)), (1, 2))
    (summary,) = evaluate(config(model="fakes:perfect", boxes="gt"))
    assert summary["ap"]["AP"] == pytest.approx(100)
    assert (summary["task"], summary["judge"], summary["boxes"]) == ("ap", judge, "gt")
    (summary,) = evaluate(config(model="fakes:empty", boxes="gt"))
    assert summary["ap"]["AP"] == 0


@pytest.mark.parametrize(
    ("evaluate", "asked"),
    [(evaluate_lvis, {}), (evaluate_lvis, {"boxes": "gt"}), (evaluate_coco, {"boxes": "gt"})],
    ids=["mIoU", "LVIS AP", "COCO AP"],
)
def test_annotations_are_read_once(
    config: Configured,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    evaluate: Callable[..., Any],
    asked: dict[str, Any],
) -> None:
    given, opened, plain = config(**asked), [], open

    def noting(file: Any, *others: Any, **named: Any) -> Any:
        opened.append(file)
        return plain(file, *others, **named)

    monkeypatch.setattr("builtins.open", noting)
    monkeypatch.setattr("io.open", noting)  # which pathlib calls
    evaluate(given)
    assert opened.count(dataset / "annotations.json") == 1


@pytest.mark.data
def test_a_box_filler_scores_what_a_direct_computation_says(tmp_path: Path) -> None:
    dataset = read_instances(REAL / "instances.json")
    ious = []
    for instance in (a for a in dataset.instances if not a.crowd):
        truth = instance.mask(dataset.records[instance.image_id].height, dataset.records[instance.image_id].width)
        x, y, width, height = instance.box
        filled = np.zeros_like(truth)
        filled[round(y) : round(y + height), round(x) : round(x + width)] = True
        if truth.any():
            ious.append(100 * (truth & filled).sum() / (truth | filled).sum())
    config = EvaluationConfig(
        model="fakes:box_filler",
        annotations=REAL / "instances.json",
        images=REAL / "images",
        output=tmp_path,
        device="cpu",
        prompts_per_batch=1000,
    )
    summary = evaluated(config)
    assert summary["counts"]["instances"] == len(ious)
    assert summary["miou"]["instance"]["box"] == pytest.approx(float(np.mean(ious)), abs=0.02)
    assert 50 < summary["miou"]["instance"]["box"] < 65


def test_each_keep_ratio_has_a_directory_of_its_own(config: Configured, dataset: Path) -> None:
    summaries = evaluate_lvis(config(keep_ratios=(0.0, 0.25, 1.0)))
    assert [summary["keep_ratio"] for summary in summaries] == [0.0, 0.25, 1.0]
    assert len({summary["miou"]["instance"]["box"] for summary in summaries}) == 3
    for summary in summaries:
        path = dataset / "out" / f"keep-{summary['keep_ratio']:g}" / "summary.json"
        assert json.loads(path.read_text()) == summary
        alone = evaluated(config(keep_ratio=summary["keep_ratio"], output=dataset / "alone"))
        assert alone["miou"] == summary["miou"]
    assert summaries[0]["macs"]["full"] < summaries[1]["macs"]["full"]


def test_each_perturbation_has_a_directory_and_a_line(
    config: Configured, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summaries = evaluate_lvis(config(perturb=("jpeg30,dark",), keep_ratios=(0.25,)))
    assert [summary["perturbation"] for summary in summaries] == ["clean", "jpeg30", "dark"]
    for summary in summaries:
        assert (dataset / "out" / "keep-0.25" / summary["perturbation"] / "instances.csv").is_file()
    clean, jpeg, _ = summaries
    assert clean["primary_kept"] is None
    assert 0 < jpeg["primary_kept"]["mean"] < 100
    assert clean["miou"] != jpeg["miou"]
    assert f"{jpeg['primary_kept']['mean']:.1f} |" in capsys.readouterr().out


def test_crowds_are_measured_on_request(config: Configured) -> None:
    counts = evaluated(config(include_crowd=True))["counts"]
    assert (counts["instances"], counts["crowd_used"], counts["crowd_excluded"]) == (5, 1, 0)


def test_minival_is_the_photographs_of_val2017(config: Configured, dataset: Path, refused: Any) -> None:
    content = json.loads((dataset / "annotations.json").read_text())
    content["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/1.png"
    (dataset / "annotations.json").write_text(json.dumps(content))
    summary = evaluated(config(subset="minival"))  # train2017 need not be there
    assert (summary["subset"], summary["counts"]["images"]) == ("minival", 1)
    with refused(ValueError, r"1 of 2 photographs are missing \(train2017: 1\)"):
        evaluate_lvis(config(output=dataset / "full"))
    content["images"][1]["coco_url"] = "http://images.cocodataset.org/train2017/2.png"
    (dataset / "annotations.json").write_text(json.dumps(content))
    with refused(ValueError, "subset=minival: .* has no photograph of val2017"):
        evaluate_lvis(config(subset="minival"))


def test_another_seed_moves_points_and_leaves_boxes(config: Configured) -> None:
    first, second = (evaluated(config(seeds=(seed,)))["miou"]["instance"] for seed in (0, 1))
    assert first["box"] == second["box"]
    assert first["1pt"] != second["1pt"]


def test_only_photographs_with_objects_to_measure_are_needed(config: Configured, dataset: Path) -> None:
    write_annotations(dataset, [*squares((1,)), CROWD], (1, 2))
    (dataset / "val2017" / "2.png").unlink()
    assert evaluated(config())["counts"]["images"] == 1


BAD_INPUT: list[tuple[str, dict[str, Any], str]] = [
    ("", {"protocol": "none"}, "no protocol named 'none'"),
    ("", {"annotations": "none.json"}, "none.json is not a file"),
    ("", {"images": "nowhere"}, r"images nowhere: 2 of 2 photographs are missing \(val2017: 2\)"),
    ("", {"model": "none"}, "no model named 'none'"),
    ("", {"model": "fakes:none"}, "fakes:none cannot be imported"),
    ("", {"perturb": "blur"}, "no perturbation named 'blur'"),
    ("", {"keep_ratios": "0.25,2"}, "keep_ratio=2.0 is not a number in"),
    ("", {"model": "vit_tiny", "keep_ratios": "0.5"}, "keep_ratio=0.5: vit_tiny is dense"),
    ("", {"model": "fakes:empty", "keep_ratios": "0.5"}, "keep_ratio=0.5: only a big.LITTLE model"),
    ("", {"detections": "none.json"}, "detections none.json"),
    ("corrupt image", {}, "image .*2.png"),
    ("broken polygon", {"model": "none"}, "annotation 21: segmentation is malformed"),
    ("broken polygon", {"model": "none", "boxes": "gt"}, "annotation 21: segmentation is malformed"),
    ("box inside out", {}, r"annotation 21 is malformed .*bbox"),
    ("run lengths of another size", {}, r"annotation 21: segmentation is malformed \(size"),
    ("duplicate ids", {}, "annotation id 20 is given 2 times"),
    ("not COCO", {}, "has no list 'images'"),
    ("nothing but crowds", {}, "all 1 are crowds; add --include-crowd"),
    ("nothing but empty masks", {}, "none of 1 masks has a pixel"),
    ("another size", {}, "is 90 x 120 pixels, its annotations are for 120 x 90; use the dataset's original"),
]


def break_(dataset: Path, how: str) -> None:
    found = squares((1, 2))
    if how == "corrupt image":
        content = (dataset / "val2017" / "2.png").read_bytes()
        (dataset / "val2017" / "2.png").write_bytes(content[: len(content) // 2])
    elif how == "another size":
        Image.new("RGB", (90, 120)).save(dataset / "val2017" / "1.png")
    elif how == "not COCO":
        (dataset / "annotations.json").write_text("{}")
    elif how:
        changed = {
            "broken polygon": [*found[:3], {**found[3], "segmentation": [[1, 2, 3]]}],
            "run lengths of another size": [*found[:3], {**found[3], "segmentation": {"size": [9, 9], "counts": [81]}}],
            "box inside out": [*found[:3], {**found[3], "bbox": [9, 9, -3, 4]}],
            "duplicate ids": [*found[:3], {**found[3], "id": 20}],
            "nothing but crowds": [CROWD],
            "nothing but empty masks": [EMPTY],
        }
        write_annotations(dataset, changed[how], (1, 2))


@pytest.mark.parametrize(("how", "flags", "line"), BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2_with_nothing_half_written(
    config: Configured,
    dataset: Path,
    how: str,
    flags: dict[str, Any],
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    break_(dataset, how)
    usual = config()
    named = {"model": usual.model, "annotations": usual.annotations, "images": usual.images, "output": usual.output}
    words = [word for name, value in {**named, **flags}.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with pytest.raises(SystemExit) as stop:
        run(evaluate_lvis, [*words, "--device", "cpu"])
    assert stop.value.code == 2
    lines = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert len(lines) == 1
    assert re.search(line, lines[0])
    assert not (dataset / "out" / "summary.json").exists()
    assert not (dataset / "out" / "instances.csv").exists()


def test_everything_is_checked_before_the_model_loads(config: Configured, refused: Any) -> None:
    with refused(ValueError, "photographs are missing"):
        evaluate_lvis(config(images=Path("nowhere"), model="none"))


class Killed(BaseException):
    """Stands for the signal that ends a process."""


def killed_after(images: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on the measuring ends after so many images; the list says which were measured."""
    whole, seen = MaskMeasure.by_image, []

    def cut(self: MaskMeasure, *args: Any) -> Iterator[Any]:
        for image_id, measured in whole(self, *args):
            if len(seen) == images:
                raise Killed
            seen.append(image_id)
            yield image_id, measured

    monkeypatch.setattr(MaskMeasure, "by_image", cut)
    return seen


def files_of(root: Path) -> dict[str, Any]:
    """Every file below `root`, without what the clock says."""
    contents: dict[str, Any] = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    summary = json.loads(contents["summary.json"])
    for clock in ("wall_seconds", "milliseconds"):
        del summary[clock]
    return {**contents, "summary.json": summary}


def test_a_killed_run_goes_on_where_it_stopped(
    config: Configured, dataset: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    evaluate_lvis(config(output=dataset / "whole"))
    with monkeypatch.context() as patch:
        assert killed_after(1, patch) == []
        with pytest.raises(Killed):
            evaluate_lvis(config())
    assert not (dataset / "out" / "summary.json").exists()
    with refused(ValueError, "out/shards is an unfinished run; go on with --resume, or delete it"):
        evaluate_lvis(config())
    with refused(ValueError, r"of another run \(prompt_seeds was \[0\], is \[1\]\)"):
        evaluate_lvis(config(resume=True, seeds=(1,)))
    with monkeypatch.context() as patch:
        seen = killed_after(9, patch)
        evaluate_lvis(config(resume=True))
    assert seen == [2]
    assert files_of(dataset / "out") == files_of(dataset / "whole")


def test_a_finished_part_is_not_measured_again(
    config: Configured, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = {"keep_ratios": (0.25, 1.0)}
    with monkeypatch.context() as patch:
        killed_after(3, patch)
        with pytest.raises(Killed):
            evaluate_lvis(config(**several))
    first = (dataset / "out" / "keep-0.25" / "summary.json").read_bytes()
    seen = killed_after(9, monkeypatch)
    summaries = evaluate_lvis(config(**several, resume=True))
    assert seen == [2]
    assert (dataset / "out" / "keep-0.25" / "summary.json").read_bytes() == first
    assert [summary["keep_ratio"] for summary in summaries] == [0.25, 1.0]


@pytest.mark.parametrize("full_at", ["instances.csv", "summary.json", "worst.json"])
def test_a_full_disk_is_one_line_and_loses_nothing(
    config: Configured, dataset: Path, full_at: str, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    replace = os.replace

    def full(source: str, target: Any) -> None:
        if Path(target).name == full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with refused(ValueError, "cannot be written .No space left on device.; .* go on with --resume"):
            evaluate_lvis(config())
    assert not (dataset / "out" / "summary.json").exists()
    seen = killed_after(0, monkeypatch)
    assert evaluated(config(resume=True))["counts"]["instances"] == 4
    assert seen == []


SEVEN = tuple(SIZES)


@pytest.fixture
def seven(dataset: Path) -> Path:
    write_images(dataset, SEVEN)
    write_annotations(dataset, squares(SEVEN), SEVEN)
    return dataset


def command_line(config: EvaluationConfig, *more: str) -> list[str]:
    flags = {"model": config.model, "annotations": config.annotations, "images": config.images, "output": config.output}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [str(EVAL / "run_lvis.py"), *words, "--device", "cpu", *more]


def torchrun(processes: int, config: EvaluationConfig, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
    return subprocess.run(
        [*command, "--standalone", *command_line(config, *more)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EVAL.parent)},
    )


def test_one_two_and_three_processes_write_identical_files(config: Configured, seven: Path) -> None:
    outputs = []
    for processes in (1, 2, 3):
        outputs.append(seven / f"by-{processes}")
        asked = config(output=outputs[-1])
        if processes == 2:
            done = torchrun(processes, asked, "--seeds", "0,1")
            assert done.returncode == 0, done.stderr
            said = done.stdout
        else:  # the same without torchrun, which takes its time
            words = command_line(asked, "--seeds", "0,1")
            said = finish(start_python(words, seven / f"said-{processes}", ranks=processes))
        assert said.count("| blvit_tiny |") == 1
    one, two, three = map(files_of, outputs)
    assert one == two == three
    assert one["summary.json"]["counts"]["images"] == 7
    assert one["instances.csv"].count(b"\n") == 1 + 2 * 14


def test_a_process_that_fails_ends_the_run_with_its_message(config: Configured, seven: Path) -> None:
    (seven / "val2017" / "2.png").write_bytes(b"no picture")
    done = torchrun(2, config())
    assert done.returncode != 0
    assert "2.png is in no format that Pillow reads" in done.stderr
    assert not (seven / "out" / "summary.json").exists()
    Image.fromarray(np.zeros((*SIZES[2], 3), np.uint8)).save(seven / "val2017" / "2.png")
    finish(start_python(command_line(config(), "--resume"), seven / "said", ranks=3))
    assert files_of(seven / "out")["summary.json"]["counts"]["images"] == 7


def test_a_rerun_that_fails_at_the_end_leaves_no_summary_beside_other_rows(
    config: Configured, dataset: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    evaluate_lvis(config())
    first = (dataset / "out" / "summary.json").read_bytes()
    (dataset / "val2017" / "2.png").rename(dataset / "val2017" / "away.png")
    with refused(ValueError, "photographs are missing"):
        evaluate_lvis(config(protocol="ritm"))
    assert (dataset / "out" / "summary.json").read_bytes() == first  # nothing was lost to a mistake
    (dataset / "val2017" / "away.png").rename(dataset / "val2017" / "2.png")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sam_blvit.evaluate.miou.write_worst", full)
        with refused(ValueError, "No space left on device"):
            evaluate_lvis(config(protocol="ritm"))
    assert not (dataset / "out" / "summary.json").exists()


def test_what_another_task_left_in_the_directory_goes(config: Configured, dataset: Path) -> None:
    evaluate_lvis(config())
    write_annotations(dataset, squares((1, 2)), (1, 2))
    evaluate_lvis(config(boxes="gt"))
    assert {path.name for path in (dataset / "out").iterdir() if path.is_file()} == {"summary.json", "results.json"}
    assert not (dataset / "out" / "worst" / "worst.json").exists()
    evaluate_lvis(config(table="parquet"))
    assert {path.name for path in (dataset / "out").iterdir() if path.is_file()} == {
        "summary.json",
        "instances.parquet",
    }


def test_a_damaged_summary_is_no_finished_run(config: Configured, dataset: Path) -> None:
    evaluate_lvis(config())
    for content in ("[1]", "{"):
        (dataset / "out" / "summary.json").write_text(content)
        assert evaluated(config(resume=True))["counts"]["instances"] == 4


@pytest.mark.parametrize("answer", [(1, 2), None])
def test_a_foreign_model_of_another_shape_is_refused_by_name(
    config: Configured, answer: Any, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    monkeypatch.setattr(fakes.Encoder, "forward", lambda self, x: answer)
    with refused(ValueError, "model=fakes:empty cannot be run as a segment_anything Sam .TypeError"):
        evaluate_lvis(config(model="fakes:empty"))
