"""eval/run_cascade.py on models: scores, costs and labels of a folder, corrupted copies, and what cannot be used."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sam_blvit.cascade.classifiers import classify, input_transform, load_classifier
from sam_blvit.cascade.command import measure_cascade
from sam_blvit.cascade.saved import read_scores
from sam_blvit.config.cascade import CascadeConfig
from sam_blvit.cost.macs import module_macs

CPU = torch.device("cpu")
COLOURS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]])
SIDE = 8


class Colours(nn.Module):
    """Names the strongest channel of the first `seen` rows and columns, after a convolution that only costs."""

    def __init__(self, seen: int, width: int) -> None:
        super().__init__()
        self.idle = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 3) of `x` (n, 3, H, W)."""
        return 8 * x[:, :, : self.seen, : self.seen].mean(dim=(2, 3)) + 0 * self.idle(x).sum()


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module `colours` of two models and of things that are none."""
    transform = input_transform(SIDE, mean=(0, 0, 0), std=(1, 1, 1), crop=1)
    module = ModuleType("colours")
    module.__dict__.update(
        little=lambda: (Colours(1, 2), transform),
        big=lambda: (Colours(SIDE, 6), transform),
        wide=lambda: (nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 7)), transform),
        alone=lambda: Colours(1, 1),
        broken=lambda: 1 / 0,
        flat=lambda: (Colours(1, 1), lambda photograph: torch.zeros(3)),
        ragged=lambda: (Colours(1, 1), lambda photograph: torch.zeros(3, *photograph.size)),
        grey=lambda: (nn.Conv2d(1, 1, 1), transform),
        image=lambda: (nn.Conv2d(3, 1, 1), transform),
        number=3,
    )
    monkeypatch.setitem(sys.modules, "colours", module)
    return module


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three class folders of eight noisy photographs, 12 x 10 pixels."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("n01", "n02", "n10")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(8):
            noise = rng.normal(scale=10 + 40 * number, size=(10, 12, 3))
            pixels = np.clip(COLOURS[label] + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def run(photographs: Path, **settings: Any) -> dict[str, Any]:
    """The summary of a run on the two models."""
    output = photographs.with_name("out")
    usual = {"models": ("colours:little", "colours:big"), "timed": 2, "batch_size": 5, "resamples": 20, "device": "cpu"}
    with pytest.warns(UserWarning, match="thresholds are chosen on"):
        measure_cascade(CascadeConfig(images=photographs, output=output, **{**usual, **settings}))
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return summary


def refuse(photographs: Path, message: str, **settings: Any) -> None:
    usual: dict[str, Any] = {"models": ("colours:little", "colours:big"), "timed": 0, "device": "cpu"}
    config = CascadeConfig(images=photographs, output=photographs.with_name("out"), **{**usual, **settings})
    with pytest.raises(ValueError, match=message) as error:
        measure_cascade(config)
    assert "\n" not in str(error.value)


def test_models_of_class_folders_become_files_of_scores(photographs: Path) -> None:
    summary = run(photographs)
    scores = photographs.with_name("out") / "scores"
    little, big = (read_scores(scores / f"colours_{name}.npz") for name in ("little", "big"))
    assert len(little.names) == 24
    assert little.names[0] == "n01/0.png"
    assert (little.macs, big.macs) == (2 * 27 * SIDE**2, 6 * 27 * SIDE**2)
    for model in (little, big):
        assert model.milliseconds is not None
        assert model.milliseconds > 0
        assert model.load_milliseconds is not None
        assert model.load_milliseconds > 0
    with (photographs.with_name("out") / "labels.csv").open(newline="") as file:
        labels = {row["name"]: int(row["label"]) for row in csv.DictReader(file)}
    assert [labels[f"{name}/3.png"] for name in ("n01", "n02", "n10")] == [0, 1, 2]
    with Image.open(photographs / "n02" / "0.png") as image:
        alone = classify(load_classifier("colours:little", CPU), [np.asarray(image)], CPU)
    saved = np.load(scores / "colours_little.npz")
    np.testing.assert_allclose(saved["scores"][little.names.index("n02/0.png")], alone[0], rtol=1e-5)
    test = summary["test"]
    assert [model["name"] for model in test["models"]] == ["colours_little", "colours_big"]
    assert test["macs"] == pytest.approx(little.macs + test["passed_on"][0] * big.macs)
    loads = little.load_milliseconds + (big.load_milliseconds if test["passed_on"][0] else 0)
    assert test["milliseconds_loaded_per_pass"] == pytest.approx(test["milliseconds"] + loads / test["samples"])
    of_big = test["models"][1]
    assert of_big["milliseconds_loaded_per_pass"] == pytest.approx(
        big.milliseconds + big.load_milliseconds / test["samples"]
    )


def test_saved_scores_of_models_give_the_same_cascade(photographs: Path) -> None:
    first = run(photographs, perturb=("dark,jpeg10",))
    out = photographs.with_name("out")
    paths = tuple(out / "scores" / f"colours_{name}.npz" for name in ("little", "big"))
    again = photographs.with_name("again")
    with pytest.warns(UserWarning, match="thresholds are chosen on"):
        measure_cascade(
            CascadeConfig(
                scores=paths, labels=out / "labels.csv", perturb=("dark", "jpeg10"), output=again, resamples=20
            )
        )
    assert json.loads((again / "summary.json").read_text()) == first


def test_a_shift_that_lowers_confidence_raises_the_cost(photographs: Path) -> None:
    summary = run(photographs, perturb=("dark", "shift1"))
    shift = summary["shift"]
    assert list(shift) == ["clean", "dark", "shift1"]
    clean, dark = shift["clean"], shift["dark"]
    assert clean["accuracy"] == summary["test"]["accuracy"]
    assert clean["macs"] == pytest.approx(summary["test"]["macs"])
    assert clean["rise"] == pytest.approx(summary["test"]["macs"] - summary["fit"]["macs"])
    assert dark["macs"] > clean["macs"]
    assert dark["rise"] == pytest.approx(dark["macs"] - summary["fit"]["macs"])
    assert dark["passed_on"][0] > clean["passed_on"][0]


def test_labels_beside_flat_photographs_and_untimed(photographs: Path) -> None:
    flat = photographs.with_name("flat")
    flat.mkdir()
    rows = [("name", "label")]
    for label, name in enumerate(("n01", "n02", "n10")):
        for path in (photographs / name).iterdir():
            path.rename(flat / f"{name}_{path.name}")
            rows.append((f"{name}_{path.name}", str(label)))
    with (flat / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    summary = run(flat, timed=0)
    assert "milliseconds" not in summary["test"]
    assert "milliseconds_loaded_per_pass" not in summary["test"]
    assert not (photographs.with_name("out") / "labels.csv").exists()
    (flat / "labels.csv").write_text("name,label\nn01_0.png,0\n")
    refuse(flat, r"no label for 'n01_1\.png' \(23 of 24 have none\)")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("little", "neither timm:NAME nor module:function"),
        ("nowhere:little", "cannot be imported"),
        ("colours:nobody", "cannot be imported"),
        ("colours:number", "cannot be called"),
        ("colours:broken", "ZeroDivisionError: division by zero"),
        ("colours:alone", r"a pair \(torch module, input transform\) is expected"),
        ("colours:wide", r"7 classes, .* has 3 class folders"),
        ("colours:flat", "colours:flat cannot answer a photograph"),
        ("colours:grey", "colours:grey cannot answer a photograph .*to have 1 channels"),
        ("colours:image", r"colours:image returned shape \(1, 1, 8, 8\)"),
    ],
)
def test_models_that_cannot_be_used_are_named(photographs: Path, model: str, message: str) -> None:
    refuse(photographs, message, models=(model, "colours:big"))
    assert not list(photographs.parent.rglob("*.npz"))


def test_inputs_of_different_shapes_are_refused(photographs: Path) -> None:
    Image.new("RGB", (5, 9)).save(photographs / "n01" / "0.png")
    refuse(
        photographs, r"colours:ragged cannot answer .* one shape \(3, H, W\)", models=("colours:ragged", "colours:big")
    )


def test_folders_that_cannot_be_used_are_named(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "holds no photograph")
    refuse(tmp_path / "absent", "is not a directory")
    refuse(photographs, "two would have one file", models=("colours:big", "colours:big"))
    refuse(photographs, "no perturbation named 'fog'", perturb=("fog",))
    (photographs / "n01" / "0.png").write_bytes(b"no image")
    refuse(photographs, r"0\.png")
    Image.new("RGB", (5, 9)).save(photographs / "loose.png")
    refuse(photographs, r"loose\.png is in no class folder")


def test_copies_without_scores_are_named(photographs: Path) -> None:
    run(photographs, timed=0)
    out, again = photographs.with_name("out"), photographs.with_name("again")
    paths = tuple(out / "scores" / f"colours_{name}.npz" for name in ("little", "big"))
    config = CascadeConfig(scores=paths, labels=out / "labels.csv", perturb=("dark",), output=again, resamples=5)
    with (
        pytest.warns(UserWarning, match="thresholds are chosen on"),
        pytest.raises(ValueError, match=r"colours_little\.dark\.npz does not exist"),
    ):
        measure_cascade(config)
    assert not again.exists()


def test_timm_models_bring_their_own_transform(monkeypatch: pytest.MonkeyPatch, colours: ModuleType) -> None:
    asked = []

    def create_model(name: str, *, pretrained: bool) -> nn.Module:
        asked.append((name, pretrained))
        return Colours(1, 1)

    data = SimpleNamespace(
        resolve_model_data_config=lambda model: {"size": SIDE},
        create_transform=lambda *, size, is_training: (size, is_training).__repr__,
    )
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model, data=data))
    classifier = load_classifier("timm:tiny.a1_in1k", CPU)
    assert asked == [("tiny.a1_in1k", True)]
    assert not classifier.model.training
    assert classifier.transform() == f"({SIDE}, False)"  # type: ignore[call-arg]
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'sam_blvit\[timm\]'"):
        load_classifier("timm:tiny", CPU)


def test_the_transform_takes_the_middle_square() -> None:
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[5:15, 15:25] = 255
    whole = input_transform(10, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="nearest", crop=0.5)
    torch.testing.assert_close(whole(Image.fromarray(pixels)), torch.ones(3, 10, 10))
    wider = input_transform(20, mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest", crop=1)
    assert wider(Image.fromarray(pixels)).mean().item() == pytest.approx(0.25)


@pytest.mark.parametrize("settings", [{"interpolation": "cubic"}, {"crop": 0}, {"crop": 1.5}, {"size": 0}], ids=str)
def test_transforms_that_cannot_be_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        input_transform(**{"size": SIDE, **settings})


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), 8 * 9 * 64),
        (nn.Sequential(nn.Flatten(2), nn.Linear(64, 5)), 4 * 64 * 5),
    ],
)
def test_macs_of_any_module(module: nn.Module, expected: int) -> None:
    assert module_macs(module, torch.randn(1, 4, 8, 8)) == expected


def test_macs_of_attention_are_counted_where_pytorch_would_fuse_it() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    tokens, channels = 10, 16
    expected = 4 * tokens * channels**2 + 2 * tokens**2 * channels
    assert module_macs(Attention().eval(), torch.randn(1, tokens, channels)) == expected
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ("a:b",)}, "1 models: a cascade needs at least 2"),
        ({"scores": (Path("a"), Path("b")), "labels": Path("l")}, "choose one of the two"),
        ({"images": None}, "one needs the other"),
        ({"models": (), "scores": (Path("a"), Path("b"))}, "one needs the other"),
        ({"models": (), "images": None, "scores": (Path("a"), Path("b"))}, "need a table of labels"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"timed": -1}, "timed=-1"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"models": ("a:b", "a:c"), "images": Path("i"), "output": Path("o")}
    with pytest.raises(ValueError, match=message):
        CascadeConfig(**{**usual, **settings})
