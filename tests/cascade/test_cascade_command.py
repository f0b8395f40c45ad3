"""eval/run_cascade.py: from saved scores to thresholds, tables and a picture; files that cannot be used."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam_blvit.cascade.command import measure_cascade
from sam_blvit.cascade.saved import read_labels, read_scores
from sam_blvit.cascade.sweep import GRID
from sam_blvit.config.cascade import CascadeConfig

CLASSES = 5


def save(path: Path, **changes: Any) -> Path:
    rng = np.random.default_rng(len(path.stem))
    content = {"scores": rng.normal(size=(3, CLASSES)), "names": np.array(["a", "b", "c"]), "macs": 2.0}
    content |= changes
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Scores of three models, the better the dearer, on 400 samples, each in its own order; labels in another."""
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=400)
    names = np.array([f"{number}.jpg" for number in range(400)])
    paths = []
    for stage, macs in enumerate((1.0, 5.0, 20.0)):
        logits = rng.normal(size=(400, CLASSES)) + (1 + stage) * np.eye(CLASSES)[labels]
        order = rng.permutation(400)
        paths.append(
            save(
                tmp_path / f"model{stage}.npz",
                scores=logits[order].astype(np.float32),
                names=names[order],
                macs=macs,
                milliseconds=2 * macs,
            )
        )
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "label"])
        table.writerows(sorted(zip(names.tolist(), labels.tolist(), strict=True)))
    return paths


def measure(files: list[Path], output: Path, **settings: Any) -> dict[str, Any]:
    config = CascadeConfig(
        scores=tuple(files), labels=files[0].with_name("labels.csv"), output=output, resamples=50, **settings
    )
    with pytest.warns(UserWarning, match=r"chosen on \d+ samples, fewer than 1000"):
        measure_cascade(config)
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return summary


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("stages", [2, 3])
def test_summary_tables_and_samples_agree(
    files: list[Path], tmp_path: Path, stages: int, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = measure(files[:stages], tmp_path / "out", fit_share=0.25, seed=4)
    samples = rows(tmp_path / "out" / "samples.csv")
    truth = {row["name"]: row["label"] for row in rows(tmp_path / "labels.csv")}
    assert [row["name"] for row in samples] == np.load(files[0])["names"].tolist()
    assert all(truth[row["name"]] == row["label"] for row in samples)
    scores = [read_scores(path) for path in files[:stages]]
    for split, count in (("fit", 100), ("test", 300)):
        part = [row for row in samples if row["split"] == split]
        described = summary[split]
        assert described["samples"] == len(part) == count
        assert described["accuracy"] == pytest.approx(np.mean([row["prediction"] == row["label"] for row in part]))
        reached = [np.mean([int(row["stage"]) >= stage for row in part]) for stage in range(stages)]
        assert described["passed_on"] == pytest.approx(reached[1:])
        assert described["macs"] == pytest.approx(np.dot(reached, (1.0, 5.0, 20.0)[:stages]))
        assert described["milliseconds"] == pytest.approx(2 * described["macs"])
        for model, described_model in zip(scores, described["models"], strict=True):
            own = dict(zip(model.names, model.probabilities.argmax(axis=1), strict=True))
            right = np.mean([own[row["name"]] == int(row["label"]) for row in part])
            assert described_model["accuracy"] == pytest.approx(right)
        assert set(described["intervals"]) == {"accuracy", "macs", "milliseconds", "thresholds"}
        (at_point,) = [
            row
            for row in rows(tmp_path / "out" / "curve.csv")
            if row["split"] == split
            and [float(row[f"threshold_{gate}"]) for gate in range(stages - 1)] == described["thresholds"]
        ]
        assert float(at_point["accuracy"]) == pytest.approx(described["accuracy"])
        assert float(at_point["macs"]) == pytest.approx(described["macs"])
    assert summary["fit"]["accuracy"] >= summary["fit"]["models"][-1]["accuracy"]
    assert summary["fit"]["macs"] < summary["fit"]["models"][-1]["macs"]
    by_name = {row["name"]: row for row in samples}
    for model in scores[: stages - 1]:
        for name, probabilities in zip(model.names, model.probabilities, strict=True):
            stage = scores.index(model)
            if int(by_name[name]["stage"]) == stage:
                assert probabilities.max() >= summary["fit"]["thresholds"][stage]
                assert int(by_name[name]["prediction"]) == probabilities.argmax()
    assert (tmp_path / "out" / "cascade.svg").read_text().startswith("<?xml")
    assert len(rows(tmp_path / "out" / "curve.csv")) == 2 * len(GRID) ** (stages - 1)
    assert "random gate" in capsys.readouterr().out


def test_the_split_follows_names_and_seed_not_the_files_order(files: list[Path], tmp_path: Path) -> None:
    def fitted(models: list[Path], name: str, seed: int) -> set[str]:
        measure(models, tmp_path / name, seed=seed)
        return {row["name"] for row in rows(tmp_path / name / "samples.csv") if row["split"] == "fit"}

    first = fitted(files[:2], "first", 0)
    assert fitted([files[1], files[2]], "second", 0) == first
    assert fitted(files[:2], "third", 1) != first


@pytest.mark.parametrize(
    "settings",
    [
        {"confidence": "margin"},
        {"confidence": "entropy"},
        {"minimise": "milliseconds"},
        {"weight": 0.5},
        {"tolerance": 0.1},
        {"budget": 8.0},
    ],
    ids=str,
)
def test_settings_reach_the_cascade(files: list[Path], tmp_path: Path, settings: dict[str, Any]) -> None:
    plain = measure(files, tmp_path / "plain")
    changed = measure(files, tmp_path / "changed", **settings)
    assert changed["settings"] | settings == changed["settings"]
    if settings == {"minimise": "milliseconds"}:
        assert changed["fit"] == plain["fit"]  # milliseconds are twice the MACs here
    else:
        assert changed["fit"] != plain["fit"]
    if "budget" in settings:
        assert changed["fit"]["macs"] <= 8
    if "tolerance" in settings:
        assert changed["fit"]["macs"] < plain["fit"]["macs"]


def test_saved_confidence_and_probabilities(tmp_path: Path) -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float16)
    path = save(
        tmp_path / "a.npz", scores=probabilities, names=np.array([b"x", b"y"]), macs=3, confidence=np.array([0.1, 0.2])
    )
    saved = read_scores(path)
    np.testing.assert_array_equal(saved.probabilities, probabilities.astype(np.float64))
    assert (saved.names, saved.macs, saved.milliseconds) == (["x", "y"], 3.0, None)
    assert saved.confidence is not None
    assert saved.confidence.tolist() == [0.1, 0.2]
    assert read_scores(path, scores_are="logits").probabilities[0, 0] == pytest.approx(1 / (1 + np.exp(-0.8)), abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "no array 'scores'; it has macs, names"),
        ({"names": None}, "no array 'names'"),
        ({"macs": None}, "no array 'macs'"),
        ({"names": np.array(["a", "b", "a"])}, "'a' is named 2 times"),
        ({"names": np.array([1, 2, 3])}, "names must be a list"),
        ({"names": np.array(["a", "b"])}, r"scores of shape \(3, 5\): \(2, classes\)"),
        ({"scores": np.full((3, CLASSES), np.nan)}, "scores of 'a' are not finite"),
        ({"scores": np.zeros((3, 2, 2))}, "scores of shape"),
        ({"scores": np.zeros((3, 2), dtype=complex)}, "not real numbers"),
        ({"macs": -1.0}, "macs=-1.0 is not a cost"),
        ({"macs": np.array([1.0, 2.0])}, "macs must be one number"),
        ({"milliseconds": np.inf}, "milliseconds=inf is not a cost"),
        ({"confidence": np.zeros(2)}, "confidence of shape"),
        ({"names": np.array(["a", "b", None], dtype=object)}, "names as an array of str"),
    ],
)
def test_scores_that_cannot_be_used_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_scores(save(tmp_path / "a.npz", **changes))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_a_file_that_is_no_archive_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(ValueError, match="does not exist"):
        read_scores(path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not an \.npz file"):
        read_scores(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a row of column names"),
        ("a,0\nb,1\n", "a row of column names"),
        ("name,label\na,0\n", "no label for 'b'"),
        ("name,label\na,0\nb,9\n", "label '9' of 'b' is not a class, a whole number from 0 to 4"),
        ("name,label\na,0\nb\n", "label None of 'b'"),
        ("name,label\na,0\nb,1\nb,2\n", "'b' has more than one label"),
    ],
)
def test_labels_that_cannot_be_used_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_labels(path, ["a", "b"], classes=CLASSES)


def test_labels_of_a_table_that_calls_its_classes_names(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("file,label,name\nb.jpg,3,tench\na.jpg,1,goldfish\nc.jpg,2,shark\n")
    assert read_labels(path, ["a.jpg", "b.jpg"], classes=CLASSES).tolist() == [1, 3]


def test_models_of_other_samples_or_classes_are_refused(tmp_path: Path, files: list[Path]) -> None:
    other = save(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="no scores for"):
        measure_cascade(
            CascadeConfig(scores=(files[0], other), labels=tmp_path / "labels.csv", output=tmp_path / "out")
        )
    with pytest.raises(ValueError, match="which another model has no scores for"):
        measure_cascade(
            CascadeConfig(
                scores=(save(tmp_path / "few.npz", names=np.array(["0.jpg", "1.jpg", "2.jpg"])), files[0]),
                labels=tmp_path / "labels.csv",
                output=tmp_path / "out",
            )
        )
    names = np.load(files[0])["names"]
    wide = save(tmp_path / "wide.npz", scores=np.zeros((400, 7)), names=names)
    with pytest.raises(ValueError, match=r"\[5, 7\] classes"):
        measure_cascade(CascadeConfig(scores=(files[0], wide), labels=tmp_path / "labels.csv", output=tmp_path / "out"))
    slow = save(tmp_path / "slow.npz", scores=np.zeros((400, CLASSES)), names=names)
    config = CascadeConfig(
        scores=(files[0], slow), labels=tmp_path / "labels.csv", output=tmp_path / "out", minimise="milliseconds"
    )
    with pytest.raises(ValueError, match="not every file of scores has milliseconds"):
        measure_cascade(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scores": (Path("a"),)}, "at least 2"),
        ({"fit_share": 1.0}, "fit_share=1"),
        ({"confidence": "loud"}, "not one of max, margin"),
        ({"weight": 2.0}, "weight=2"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"budget": 0.0}, "budget=0"),
        ({"resamples": 0}, "resamples=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], message: str) -> None:
    usual = {"scores": (Path("a"), Path("b")), "labels": Path("l"), "output": Path("o")}
    with pytest.raises(ValueError, match=message):
        CascadeConfig(**{**usual, **settings})
