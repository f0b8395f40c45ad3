"""studies/cascade_seeds.py: its numbers are those of eval/run_cascade.py, split by split."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from sam_blvit.cascade.command import measure_cascade
from sam_blvit.cascade.saved import perturbed_file
from sam_blvit.config.cascade import CascadeConfig
from studies.cascade_seeds import SeedsConfig, read, shifted, show, splits


@pytest.fixture
def config(tmp_path: Path) -> SeedsConfig:
    """Scores of two models on 120 samples, and on copies that both are less sure of."""
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=120)
    names = np.array([f"{number:03}.jpg" for number in range(120)])
    paths = tuple(tmp_path / f"m_{name}.npz" for name in ("little", "big"))
    for stage, path in enumerate(paths):
        logits = rng.normal(size=(120, 4)) + (1 + 2 * stage) * np.eye(4)[labels]
        costs = {"macs": (1 + 4 * stage) * 1e9, "milliseconds": 2.0 + stage, "load_milliseconds": 120.0}
        np.savez(path, scores=logits, names=names, **costs)
        np.savez(perturbed_file(path, "fog"), scores=0.3 * logits, names=names, **costs)
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("name", "label"), *zip(names.tolist(), labels.tolist(), strict=True)])
    return SeedsConfig(scores=paths, labels=tmp_path / "labels.csv", seeds=3, fit_shares=(0.25,), perturb=("fog",))


def test_each_split_is_the_commands(config: SeedsConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = list(splits(read(config.scores, config), config, share=0.25, tolerance=0.02))[2]
    with pytest.warns(UserWarning, match="thresholds are chosen on"):
        measure_cascade(
            CascadeConfig(
                scores=config.scores,
                labels=config.labels,
                output=tmp_path / "out",
                fit_share=0.25,
                tolerance=0.02,
                seed=2,
                perturb=("fog",),
                resamples=5,
            )
        )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    test = summary["test"]
    measured = split.measured()
    assert split.thresholds == test["thresholds"]
    assert 0 < measured["passed"] < 100
    assert measured["accuracy"] == pytest.approx(100 * test["accuracy"])
    assert measured["gate"] == pytest.approx(100 * test["random_gate"]["accuracy"])
    assert measured["macs"] == pytest.approx(test["macs"] / 1e9)
    assert measured["saved"] == pytest.approx(100 * (1 - test["macs"] / 5e9))
    assert measured["loaded"] == pytest.approx(test["milliseconds_loaded_per_pass"])
    paths = [perturbed_file(path, "fog") for path in config.scores]
    fog = shifted(split, read(paths, config))
    assert fog["accuracy"] == pytest.approx(100 * summary["shift"]["fog"]["accuracy"])
    assert fog["z"] == pytest.approx(summary["shift"]["fog"]["z"])
    assert fog["rise"] == pytest.approx(100 * summary["shift"]["fog"]["rise"] / summary["fit"]["macs"])
    assert fog["rise"] > 0
    show(config)
    tables = capsys.readouterr().out
    assert "| little + big | fog |" in tables
    assert "(ms)" not in tables
