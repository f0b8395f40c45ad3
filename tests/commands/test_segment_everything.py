"""The everything command: a photograph in, a picture and SA-1B's annotations out, one line for each mistake."""

from __future__ import annotations

import inspect
import io
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segment_anything
import skimage.data
from PIL import Image
from pycocotools import mask as coco

from sam_blvit.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_blvit.checkpoint.load import load_sam, save_sam
from sam_blvit.checkpoint.load import sam_model_registry as registry
from sam_blvit.cli import main
from sam_blvit.commands.everything import SETTINGS
from sam_blvit.commands.everything import segment_everything as segment_all
from sam_blvit.config import THRESHOLDS, EverythingConfig
from sam_blvit.data.images import read_image

pytestmark = pytest.mark.filterwarnings("ignore:.*positions interpolated:UserWarning")

LOOSE: dict[str, Any] = {"points_per_side": 3, "pred_iou_thresh": 0.15, "stability_score_thresh": 0.2}


def segment_everything(image: Path, config: EverythingConfig) -> dict[str, Any]:
    """What the command makes of one photograph."""
    (result,) = segment_all([image], config)
    return result


def flags(settings: dict[str, Any]) -> list[str]:
    """`settings` as the command line takes them."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


class Terminal(io.StringIO):
    """What a person sees."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_sam(registry["blvit_s_t"](image_size=256), path)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "my.photo.png"
    Image.fromarray(skimage.data.coffee()[::4, ::4]).save(path)
    return path


@pytest.fixture
def config(checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    return {"checkpoint": checkpoint, "device": "cpu", "output": tmp_path / "made" / "here"}


def test_what_is_written_is_what_the_generator_finds(image: Path, config: dict[str, Any], checkpoint: Path) -> None:
    result = segment_everything(image, EverythingConfig(min_mask_region_area=20, **LOOSE, **config))
    files = {name: Path(path) for name, path in result.pop("files").items()}
    assert [path.name for path in files.values()] == ["my.photo_everything.png", "my.photo_everything.json"]
    assert set(files.values()) == set(config["output"].iterdir())
    assert json.loads(files["json"].read_text()) == result
    photograph = np.asarray(Image.open(image))
    found = SamAutomaticMaskGenerator(load_sam(checkpoint), **LOOSE, min_mask_region_area=20).generate(photograph)
    assert len(result["annotations"]) == len(found) > 1
    for annotation, record in zip(result["annotations"], found, strict=True):
        np.testing.assert_array_equal(coco.decode(annotation["segmentation"]), record["segmentation"])
        assert annotation["area"] == record["area"]
    picture = np.asarray(Image.open(files["everything"]))
    changed = (picture != photograph).any(axis=2)
    covered = np.any([record["segmentation"] for record in found], axis=0)
    assert changed[covered].mean() > 0.99
    assert changed.mean() < 1


def test_the_record_says_what_ran(image: Path, config: dict[str, Any], checkpoint: Path) -> None:
    result = segment_everything(image, EverythingConfig(keep_ratio=0.5, **LOOSE, **config))
    assert result["model"] == "blvit_s_t"
    assert result["checkpoint"] == str(checkpoint)
    assert result["keep_ratio"] == 0.5
    assert result["image_size"] == {"height": 100, "width": 150}
    assert result["settings"] == {**LOOSE, "min_mask_region_area": 0}
    assert result["milliseconds"].keys() == {"encoder", "decoder", "rest"}
    assert all(spent > 0 for spent in result["milliseconds"].values())


def test_defaults_are_the_generators() -> None:
    options = inspect.signature(segment_anything.SamAutomaticMaskGenerator).parameters
    config = EverythingConfig(output=Path("x"))
    for name in SETTINGS:
        assert getattr(config, name) == (None if name in THRESHOLDS else options[name].default)


def test_the_command_says_what_it_found_and_where_it_is(
    image: Path, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["everything", str(image), *flags({**LOOSE, **config})])
    first, *files = capsys.readouterr().out.splitlines()
    annotations = json.loads(Path(files[1]).read_text())["annotations"]
    assert f"{len(annotations)} masks, keep ratio 0.25, encoder " in first
    assert all(Path(file).is_file() for file in files)


def test_without_limits_masks_without_a_pixel_are_left_out(
    image: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_nothing(self: Any, photograph: np.ndarray) -> list[dict[str, Any]]:
        found = generate(self, photograph)
        return [*found, {**found[0], "area": 0, "stability_score": math.nan}]

    generate = SamAutomaticMaskGenerator.generate
    monkeypatch.setattr(SamAutomaticMaskGenerator, "generate", with_nothing)
    settings = {**LOOSE, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    result = segment_everything(image, EverythingConfig(**settings, **config))
    assert result["annotations"]
    assert all(annotation["area"] > 0 for annotation in result["annotations"])


def test_nothing_found_is_a_result_and_a_line_says_what_helps(
    image: Path, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    strict = ["--pred-iou-thresh", "1", "--stability-score-thresh", "0.9"]
    main(["everything", str(image), *flags(config), "--points-per-side", "2", *strict])
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert line == "note: no mask passes pred_iou_thresh=1 and stability_score_thresh=0.9; lower them (to 0: no limit)"
    (picture, record) = told.out.splitlines()[1:]
    assert json.loads(Path(record).read_text())["annotations"] == []
    assert np.array_equal(read_image(picture), read_image(image))


def test_a_bar_on_a_terminal_counts_the_points_of_all_photographs(
    image: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = image.with_name("other.png")
    shutil.copy(image, other)
    monkeypatch.setattr(sys, "stderr", Terminal())
    main(["everything", str(image), str(other), *flags(config), "--points-per-side", "2"])
    last = sys.stderr.getvalue().rstrip("\n").rsplit("\r", 1)[-1]
    assert re.fullmatch(r"everything: 100%\|.*\| 8/8 \[.*point.*\]", last)
    assert [line for line in capsys.readouterr().out.splitlines() if "masks, keep ratio" in line]


def test_thresholds_that_are_not_given_are_those_of_the_weights(
    image: Path, config: dict[str, Any], tmp_path: Path
) -> None:
    own = tmp_path / "own.safetensors"
    save_sam(load_sam(config["checkpoint"], pred_iou_thresh=0.15, stability_score_thresh=0.2), own)
    given = segment_everything(image, EverythingConfig(**LOOSE, **config))
    found = segment_everything(image, EverythingConfig(points_per_side=3, **(config | {"checkpoint": own})))
    assert found["settings"] == given["settings"]
    assert found["annotations"] == given["annotations"] != []


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"points_per_side": 0}, "points_per_side=0"),
        ({"pred_iou_thresh": 1.5}, "pred_iou_thresh=1.5 is outside"),
        ({"stability_score_thresh": float("nan")}, "stability_score_thresh=nan is outside"),
        ({"min_mask_region_area": -1}, "min_mask_region_area=-1 is negative"),
        ({"keep_ratio": 2}, "keep_ratio=2"),
    ],
)
def test_a_wrong_setting_is_named(refused: Any, setting: dict[str, Any], named: str) -> None:
    with refused(ValueError, named):
        EverythingConfig(output=Path("x"), **setting)


def test_a_missing_photograph_is_named(refused: Any, config: dict[str, Any]) -> None:
    with refused(ValueError, r"no_such\.jpg does not exist"):
        segment_everything(Path("no_such.jpg"), EverythingConfig(**config))


def test_an_output_that_is_a_file_is_named(refused: Any, image: Path, config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with refused(ValueError, r"taken.*cannot be a directory"):
        segment_everything(image, EverythingConfig(**{**config, "output": tmp_path / "taken"}))
