"""The segment command: text in, files and numbers out, one line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from torch._dynamo.testing import CompileCounter

from sam_blvit.checkpoint.load import load_sam, save_sam
from sam_blvit.commands.segment import parse_numbers, routing_picture
from sam_blvit.commands.segment import segment as segment_all
from sam_blvit.config import MODELS, SegmentConfig, override
from sam_blvit.model.build import build_sam
from sam_blvit.model.encoder import Encoding, ImageEncoder
from sam_blvit.predictor import SamPredictor

HEIGHT, WIDTH = 60, 80


def segment(image: Path, config: SegmentConfig) -> dict[str, Any]:
    """What the command makes of one photograph."""
    (result,) = segment_all([image], config)
    return result


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    sam = build_sam(override(MODELS["blvit_tiny"], image_size=128, window=2))
    sam.mask_decoder.iou_prediction_head.layers[-1].bias.data[-1] += 1  # the last of three masks is the best
    save_sam(sam, path)
    return path


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def image(tmp_path: Path, photograph: np.ndarray) -> Path:
    path = tmp_path / "my.photo.png"
    Image.fromarray(photograph).save(path)
    return path


@pytest.fixture
def config(checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    return {"model": "blvit_tiny", "checkpoint": checkpoint, "device": "cpu", "output": tmp_path / "made" / "here"}


def test_what_is_written_agrees(image: Path, config: dict[str, Any]) -> None:
    result = segment(image, SegmentConfig(point=("30,20",), **config))
    files = {name: Path(path) for name, path in result.pop("files").items()}
    assert (
        {path.name for path in files.values()}
        == {
            "my.photo_mask.png",
            "my.photo_overlay.png",
            "my.photo.json",
        }
        == {path.name for path in config["output"].iterdir()}
    )
    assert json.loads(files["json"].read_text()) == result
    mask = np.asarray(Image.open(files["mask"]))
    assert mask.shape == (HEIGHT, WIDTH)
    assert set(np.unique(mask)) <= {0, 255}
    np.testing.assert_array_equal(coco.decode(result["rle"]) * 255, mask)
    assert isinstance(result["rle"]["counts"], str)
    assert result["area"] == np.count_nonzero(mask) > 0
    rows, cols = mask.nonzero()
    assert result["box"] == [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
    assert np.asarray(Image.open(files["overlay"])).shape == (HEIGHT, WIDTH, 3)


def test_the_record_says_what_ran(image: Path, config: dict[str, Any], checkpoint: Path) -> None:
    result = segment(
        image, SegmentConfig(point=("30,20.5",), negative=("5,6",), box="1,2,70,50", keep_ratio=0.5, **config)
    )
    assert result["model"] == "blvit_tiny"
    assert result["checkpoint"] == str(checkpoint)
    assert result["keep_ratio"] == 0.5
    assert result["device"] == "cpu"
    assert result["image_size"] == {"height": HEIGHT, "width": WIDTH}
    assert result["prompt"] == {"points": [[30, 20.5], [5, 6]], "labels": [1, 0], "box": [1, 2, 70, 50]}
    assert result["milliseconds"].keys() == {"encoder", "decoder"}
    assert all(time > 0 for time in result["milliseconds"].values())


@pytest.mark.parametrize(
    ("prompt", "multimask"),
    [
        ({"point": ("30,20",)}, True),
        ({"point": ("30,20", "40,30")}, False),
        ({"point": ("30,20",), "negative": ("5,6",)}, False),
        ({"point": ("30,20",), "box": "1,2,70,50"}, False),
        ({"box": "1,2,70,50"}, False),
    ],
)
def test_the_best_of_three_masks_answers_a_point_alone(
    image: Path,
    config: dict[str, Any],
    checkpoint: Path,
    photograph: np.ndarray,
    prompt: dict[str, Any],
    multimask: bool,
) -> None:
    result = segment(image, SegmentConfig(**prompt, **config))
    predictor = SamPredictor(load_sam(checkpoint))
    predictor.set_image(photograph)
    given = result["prompt"]
    masks, iou, _ = predictor.predict(given["points"], given["labels"], given["box"], multimask_output=multimask)
    assert result["predicted_iou"] == pytest.approx(float(iou.max()))
    np.testing.assert_array_equal(coco.decode(result["rle"]).astype(bool), masks[iou.argmax()])


def test_points_are_pixels_of_the_upright_photograph(image: Path, config: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(image).save(image, exif=exif)
    result = segment(image, SegmentConfig(point=("30,70",), **config))  # outside the photograph as stored
    assert result["image_size"] == {"height": WIDTH, "width": HEIGHT}


def test_the_routing_picture_has_a_panel_for_each_router(image: Path, config: dict[str, Any]) -> None:
    result = segment(image, SegmentConfig(point=("30,20",), show_routing=True, **config))
    picture = np.asarray(Image.open(result["files"]["routing"]))
    assert picture.shape[1] > 4 * 640


def test_mask_and_routing_picture_come_of_one_pass_of_the_encoder(
    image: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, encode = [], ImageEncoder.encode

    def counted(self: ImageEncoder, images: torch.Tensor, **asked: Any) -> Encoding:
        passes.append(images.shape)
        return encode(self, images, **asked)

    monkeypatch.setattr(ImageEncoder, "encode", counted)
    segment(image, SegmentConfig(point=("30,20",), show_routing=True, **config))
    assert len(passes) == 1


def test_a_compiled_encoder_has_the_same_routing_picture(
    checkpoint: Path, photograph: np.ndarray, graphs: CompileCounter
) -> None:
    predictor = SamPredictor(load_sam(checkpoint))
    predictor.set_image(photograph)
    eager = routing_picture(predictor, photograph)
    predictor.compile()
    predictor.set_image(photograph)
    assert graphs.frame_count == 1
    np.testing.assert_array_equal(routing_picture(predictor, photograph), eager)


@pytest.mark.parametrize("keep_ratio", [0.0, 1.0])
def test_where_nothing_is_routed_there_is_no_routing_picture(
    image: Path, config: dict[str, Any], keep_ratio: float
) -> None:
    with pytest.raises(ValueError, match=f"keep_ratio={keep_ratio:g} routes no tokens"):
        segment(image, SegmentConfig(point=("30,20",), show_routing=True, keep_ratio=keep_ratio, **config))
    assert not list(config["output"].iterdir())


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ({}, "nothing to segment"),
        ({"negative": ("5,6",)}, "nothing to segment"),
        ({"point": ("abc",)}, "'abc' is not X,Y"),
        ({"point": ("1;2",)}, "'1;2' is not X,Y"),
        ({"point": ("1,2,3",)}, "'1,2,3' is not X,Y"),
        ({"point": ("1,nan",)}, "'1,nan' is not X,Y"),
        ({"point": ("",)}, "'' is not X,Y"),
        ({"point": ("80,20",)}, "point 80,20 is outside the image of 80 x 60"),
        ({"point": ("5,6",), "negative": ("20,-1",)}, "point 20,-1 is outside"),
        ({"box": "1,2,3"}, "'1,2,3' is not X0,Y0,X1,Y1"),
        ({"box": "30,2,3,50"}, "box 30,2,3,50 has swapped corners"),
        ({"box": "100,2,300,50"}, "box 100,2,300,50 is outside"),
        ({"box": "1,2,81,50"}, "box 1,2,81,50 reaches outside the image of 80 x 60"),
        ({"box": "-1,2,30,50"}, "box -1,2,30,50 reaches outside"),
        ({"box": "7,2,7,50"}, "box 7,2,7,50 is empty"),
    ],
)
def test_a_wrong_prompt_is_named_and_writes_nothing(
    image: Path, config: dict[str, Any], prompt: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named) as error:
        segment(image, SegmentConfig(**prompt, **config))
    assert "\n" not in str(error.value)
    assert not config["output"].exists()


def test_a_box_may_touch_the_edges(image: Path, config: dict[str, Any]) -> None:
    assert segment(image, SegmentConfig(box=f"0,0,{WIDTH},{HEIGHT}", **config))["prompt"]["box"] == [0, 0, 80, 60]


@pytest.mark.parametrize("inside", [False, True])
def test_an_output_that_is_a_file_is_named(image: Path, config: dict[str, Any], tmp_path: Path, inside: bool) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    config["output"] = taken / "deeper" if inside else taken
    with pytest.raises(ValueError, match=r"taken.*cannot be a directory"):
        segment(image, SegmentConfig(point=("30,20",), **config))


def test_a_missing_photograph_is_named(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no_such\.jpg does not exist"):
        segment(Path("no_such.jpg"), SegmentConfig(point=("1,2",), **config))


def test_numbers_may_have_spaces_between() -> None:
    assert parse_numbers("1.5, 2", "X,Y") == [1.5, 2]
