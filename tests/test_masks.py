"""Measured numbers are those of segment-anything's own predictor, and depend on neither order nor batch."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamPredictor

from sam_blvit.checkpoint import SHIPPED_WEIGHTS, file_sha256, save_sam
from sam_blvit.config import LvisConfig, ModelConfig
from sam_blvit.data.instances import ImageFile, Instance, find_images, read_instances
from sam_blvit.data.prompts import corners, uniform_points
from sam_blvit.evaluate.masks import Measurement, evaluate_lvis, iou_percent, measure_masks
from sam_blvit.evaluate.protocols import PROTOCOLS
from sam_blvit.evaluate.summary import Row, mean_ious
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam

REAL = Path(__file__).parents[2] / "shared" / "data" / "real_eval"
SIZES = {1: (90, 120), 2: (150, 70)}
"""Height and width of the photographs, by image id."""


def polygon(x: int, y: int, side: int) -> list[list[int]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotation(ann_id: int, image_id: int, x: int, y: int, side: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": ann_id % 3,
        "bbox": [x, y, side, side],
        "area": side**2,
        "segmentation": polygon(x, y, side),
        **fields,
    }


ANNOTATIONS = [
    annotation(11, 1, 5, 8, 40),
    annotation(12, 2, 10, 20, 45),
    annotation(13, 1, 60, 30, 50),
    annotation(14, 1, 30, 10, 70),
    annotation(15, 2, 3, 90, 55),
    annotation(16, 1, 100, 70, 1, segmentation=[]),
    annotation(17, 2, 20, 20, 30, iscrowd=1),
]
CROWD, EMPTY = 17, 16


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A directory with annotations.json, two photographs in val2017/, and a checkpoint of a tiny random model."""
    (tmp_path / "val2017").mkdir()
    rng = np.random.default_rng(0)
    for image_id, (height, width) in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / f"val2017/{image_id}.png")
    write_annotations(tmp_path, ANNOTATIONS)
    return tmp_path


def write_annotations(root: Path, annotations: list[dict[str, Any]]) -> None:
    images = [
        {"id": i, "height": h, "width": w, "coco_url": f"http://images.cocodataset.org/val2017/{i}.png"}
        for i, (h, w) in SIZES.items()
    ]
    (root / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))


@pytest.fixture
def sam(tiny: Callable[..., ModelConfig], randomize: Callable[[Sam], Sam]) -> Sam:
    return randomize(build_sam(tiny()))


@pytest.fixture
def config(dataset: Path, sam: Sam) -> Callable[..., LvisConfig]:
    save_sam(sam, dataset / "tiny.safetensors")

    def configured(**fields: Any) -> LvisConfig:
        usual = {
            "annotations": dataset / "annotations.json",
            "images": dataset,
            "output": dataset / "out",
            "checkpoint": dataset / "tiny.safetensors",
            "device": "cpu",
        }
        return LvisConfig(**{**usual, **fields})

    return configured


def measured(sam: Sam, root: Path, *, backwards: bool = False, prompts_per_batch: int = 64) -> Measurement:
    records, instances = read_instances(root / "annotations.json")
    images = find_images(list(records.values()), root)
    return measure_masks(
        sam,
        images[::-1] if backwards else images,
        instances[::-1] if backwards else instances,
        protocol=PROTOCOLS["blvit"],
        seed=0,
        prompts_per_batch=prompts_per_batch,
    )


def by_the_predictor(sam: Sam, image: ImageFile, instance: Instance) -> dict[str, float]:
    """One object's numbers by way of segment-anything's own class, in plain NumPy."""
    truth = instance.mask(image.height, image.width)
    points = uniform_points(truth, seed=0, ann_id=instance.ann_id)
    predictor = SamPredictor(sam)
    predictor.set_image(np.array(Image.open(image.path)))
    prompts: dict[str, dict[str, Any]] = {
        "box": {"box": np.array(corners(instance.box))},
        "1pt": {"point_coords": points[:1], "point_labels": np.ones(1)},
        "3pt": {"point_coords": points, "point_labels": np.ones(3)},
    }
    numbers = {}
    for name, prompt in prompts.items():
        masks, predicted, _ = predictor.predict(**prompt, multimask_output=True)
        mask = masks[predicted.argmax()]
        numbers[f"iou_{name}"] = 100 * int((mask & truth).sum()) / int((mask | truth).sum())
        numbers[f"piou_{name}"] = 100 * float(predicted.max())
    return numbers


def test_every_number_is_that_of_segment_anythings_predictor(sam: Sam, dataset: Path) -> None:
    records, instances = read_instances(dataset / "annotations.json")
    images = {image.image_id: image for image in find_images(list(records.values()), dataset)}
    rows = {row.ann_id: row for row in measured(sam, dataset, prompts_per_batch=1).rows}
    assert set(rows) == {a.ann_id for a in instances} - {EMPTY}
    for instance in instances:
        if instance.ann_id == EMPTY:
            continue
        row = dataclasses.asdict(rows[instance.ann_id])
        expected = by_the_predictor(sam, images[instance.image_id], instance)
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-4)
        assert row["npix"] == instance.mask(*SIZES[instance.image_id]).sum()
    assert len({round(row.iou_1pt, 3) for row in rows.values()}) > 3  # a model whose masks say something


@pytest.mark.parametrize("change", [{"prompts_per_batch": 2}, {"prompts_per_batch": 1}, {"backwards": True}])
def test_neither_batch_nor_order_changes_a_number(sam: Sam, dataset: Path, change: dict[str, Any]) -> None:
    usual = {row.ann_id: dataclasses.astuple(row) for row in measured(sam, dataset).rows}
    other = {row.ann_id: dataclasses.astuple(row) for row in measured(sam, dataset, **change).rows}
    assert set(other) == set(usual)
    for ann_id, values in usual.items():
        assert other[ann_id] == pytest.approx(values, abs=0.05)


def test_iou_counts_pixels_exactly() -> None:
    truth = torch.ones(1, 4100, 4100, dtype=torch.bool)  # 16,810,000: beyond what float32 counts
    mask = truth.clone()
    mask[0, 7, 9] = False
    assert iou_percent(mask, truth) == [100 * 16_809_999 / 16_810_000]


def test_iou_pairs_each_mask_with_its_own_object() -> None:
    truth = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 1, 1]], [[1, 0, 0, 0]]], dtype=torch.bool)
    masks = torch.tensor([[[1, 1, 0, 0]], [[0, 1, 1, 0]], [[0, 0, 0, 0]]], dtype=torch.bool)
    assert iou_percent(masks, truth) == [100.0, 100 / 3, 0.0]


def test_an_object_without_pixels_is_named_not_measured(sam: Sam, dataset: Path) -> None:
    result = measured(sam, dataset)
    assert result.skipped_empty == [EMPTY]
    assert EMPTY not in {row.ann_id for row in result.rows}


def test_a_batch_of_nothing_but_empty_masks_is_no_obstacle(sam: Sam, dataset: Path) -> None:
    write_annotations(dataset, [annotation(1, 1, 0, 0, 1, segmentation=[]), ANNOTATIONS[0]])
    result = measured(sam, dataset, prompts_per_batch=1)
    assert (result.skipped_empty, [row.ann_id for row in result.rows]) == ([1], [11])


def test_a_photograph_without_objects_is_not_read(sam: Sam, dataset: Path) -> None:
    (dataset / "val2017" / "2.png").write_bytes(b"no picture")
    write_annotations(dataset, ANNOTATIONS[:1])
    assert [row.ann_id for row in measured(sam, dataset).rows] == [11]


def test_objects_of_photographs_that_were_not_given_are_refused(sam: Sam, dataset: Path, refused: Any) -> None:
    records, instances = read_instances(dataset / "annotations.json")
    with refused(ValueError, "instances of 1 images that are not among `images`, first 2"):
        measure_masks(
            sam,
            find_images([records[1]], dataset),
            instances,
            protocol=PROTOCOLS["blvit"],
            seed=0,
            prompts_per_batch=8,
        )


def test_a_photograph_of_another_size_is_refused(sam: Sam, dataset: Path, refused: Any) -> None:
    Image.new("RGB", (90, 120)).save(dataset / "val2017" / "1.png")
    with refused(ValueError, "1.png is 90 x 120 pixels, its annotations are for 120 x 90; use the dataset's original"):
        measured(sam, dataset)


def test_the_summary_says_what_was_measured_with_what(
    config: Callable[..., LvisConfig], dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = evaluate_lvis(config(keep_ratio=0.5))
    assert json.loads((dataset / "out" / "summary.json").read_text()) == summary
    assert summary["counts"] == {
        "images": 2,
        "instances": 5,
        "skipped_empty": 1,
        "crowd_used": 0,
        "crowd_excluded": 1,
    }
    assert summary["skipped_empty_ids"] == [EMPTY]
    assert (summary["model"], summary["keep_ratio"], summary["seed"]) == ("blvit_tiny", 0.5, 0)
    assert summary["protocol"] == {"name": "blvit", "points": "uniform", "select": "argmax"}
    for key, name in (("checkpoint", "tiny.safetensors"), ("annotations", "annotations.json")):
        digest = hashlib.sha256((dataset / name).read_bytes()).hexdigest()
        assert summary[key] == {"file": name, "sha256": digest}
    assert (summary["device"], summary["torch"]) == ("cpu", torch.__version__)
    assert summary["wall_seconds"] > 0
    assert f"{summary['miou']['instance']['3pt']:.1f} |" in capsys.readouterr().out


def test_the_means_can_be_made_anew_from_the_rows(config: Callable[..., LvisConfig], dataset: Path) -> None:
    summary = evaluate_lvis(config())
    with open(dataset / "out" / "instances.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [Row(**{name: float(value) for name, value in line.items()}) for line in lines]  # type: ignore[arg-type]
    assert [int(row.ann_id) for row in rows] == [11, 13, 14, 12, 15]
    assert mean_ious(rows) == summary["miou"]


def test_the_keep_ratio_reaches_the_model(config: Callable[..., LvisConfig]) -> None:
    few, all_ = (evaluate_lvis(config(keep_ratio=ratio))["miou"]["instance"] for ratio in (0.1, 1.0))
    assert few != all_


def test_another_seed_moves_points_and_leaves_boxes(config: Callable[..., LvisConfig]) -> None:
    first, second = (evaluate_lvis(config(seed=seed))["miou"]["instance"] for seed in (0, 1))
    assert first["box"] == second["box"]
    assert first["1pt"] != second["1pt"]
    assert first["3pt"] != second["3pt"]


def test_crowds_are_measured_on_request(config: Callable[..., LvisConfig]) -> None:
    counts = evaluate_lvis(config(include_crowd=True))["counts"]
    assert (counts["instances"], counts["crowd_used"], counts["crowd_excluded"]) == (6, 1, 0)


def test_shipped_weights_are_named_like_any_checkpoint(
    config: Callable[..., LvisConfig], sam: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam_blvit.evaluate.masks.load_model", lambda _: sam)
    checkpoint = evaluate_lvis(config(checkpoint=None))["checkpoint"]
    assert checkpoint == {"file": "blvit_tiny.safetensors", "sha256": file_sha256(SHIPPED_WEIGHTS)}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"protocol": "ritm"}, "no protocol named 'ritm'"),
        ({"seed": -1}, "seed=-1 is negative"),
        ({"annotations": Path("none.json")}, "none.json is not a file"),
        ({"images": Path("nowhere")}, "images nowhere: 2 of 2 photographs are missing .val2017: 2."),
        ({"checkpoint": Path("none.pth")}, "checkpoint none.pth is not a file"),
    ],
)
def test_what_cannot_be_measured_stops_with_one_line(
    config: Callable[..., LvisConfig], fields: dict[str, Any], problem: str, refused: Any
) -> None:
    with refused(ValueError, problem):
        evaluate_lvis(config(**fields))


def test_photographs_are_looked_for_before_the_model_loads(config: Callable[..., LvisConfig], refused: Any) -> None:
    with refused(ValueError, "photographs are missing"):
        evaluate_lvis(config(images=Path("nowhere"), checkpoint=Path("none.pth")))


def test_only_photographs_with_objects_to_measure_are_needed(config: Callable[..., LvisConfig], dataset: Path) -> None:
    write_annotations(dataset, [ANNOTATIONS[0], annotation(CROWD, 2, 3, 3, 9, iscrowd=1)])
    (dataset / "val2017" / "2.png").unlink()
    assert evaluate_lvis(config())["counts"]["images"] == 1


def test_nothing_but_crowds_is_refused(config: Callable[..., LvisConfig], dataset: Path, refused: Any) -> None:
    write_annotations(dataset, [ANNOTATIONS[-1]])
    with refused(ValueError, "all 1 are crowds; add --include-crowd"):
        evaluate_lvis(config())


def test_nothing_but_empty_masks_is_refused(config: Callable[..., LvisConfig], dataset: Path, refused: Any) -> None:
    write_annotations(dataset, [annotation(EMPTY, 1, 0, 0, 1, segmentation=[])])
    with refused(ValueError, "none of 1 masks has a pixel"):
        evaluate_lvis(config())


@pytest.mark.data
def test_real_lvis_photographs_are_measured(sam: Sam) -> None:
    records, instances = read_instances(REAL / "lvis_val_9.json")
    wanted = list(dict.fromkeys(a.image_id for a in instances))[:3]
    images = find_images([records[image_id] for image_id in wanted], REAL / "images")
    result = measure_masks(
        sam,
        images,
        [a for a in instances if a.image_id in wanted],
        protocol=PROTOCOLS["blvit"],
        seed=0,
        prompts_per_batch=8,
    )
    assert len(result.rows) + len(result.skipped_empty) == sum(a.image_id in wanted for a in instances)
    for row in result.rows:
        assert row.npix == pytest.approx(row.area, rel=0.5, abs=40)  # the right mask for the right object
        assert all(0 <= value <= 100 for value in (row.iou_box, row.iou_1pt, row.iou_3pt))
