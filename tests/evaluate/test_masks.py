"""Measured numbers are those of segment-anything's own predictor, and depend on neither order nor batch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from segment_anything import SamPredictor

from datasets import EMPTY, annotation, polygon, squares, write_annotations, write_odd_dataset
from sam_blvit.config import ModelConfig
from sam_blvit.data.instances import ImageFile, Instance, find_images, read_instances
from sam_blvit.data.prompts import corners, uniform_points
from sam_blvit.evaluate.masks import LowestSoFar, MaskMeasure, Measurement, measure_masks
from sam_blvit.evaluate.metrics.overlap import boundary_iou
from sam_blvit.evaluate.protocol.perturb import perturbation_named
from sam_blvit.evaluate.protocol.protocols import PROTOCOLS
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam

REAL = Path(__file__).parents[3] / "shared" / "data" / "real_eval"
PAPER = MaskMeasure(protocol=PROTOCOLS["blvit"])


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_odd_dataset(tmp_path)


@pytest.fixture
def sam(tiny: Callable[..., ModelConfig], randomize: Callable[[Sam], Sam]) -> Sam:
    return randomize(build_sam(tiny())).eval()


def measured(sam: Sam, root: Path, *, backwards: bool = False, **how: Any) -> Measurement:
    data = read_instances(root / "annotations.json")
    images = find_images(list(data.records.values()), root)
    step = -1 if backwards else 1
    return measure_masks(sam, images[::step], data.instances[::step], dataclasses.replace(PAPER, **how))


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
        ious = [100 * int((mask & truth).sum()) / int((mask | truth).sum()) for mask in masks]
        numbers[f"iou_{name}"] = ious[int(predicted.argmax())]
        numbers[f"piou_{name}"] = 100 * float(predicted.max())
        numbers[f"biou_{name}"] = boundary_iou(mask, truth)
        numbers[f"iou_{name}_oracle"] = max(ious)
    return numbers


def test_every_number_is_that_of_segment_anythings_predictor(sam: Sam, dataset: Path) -> None:
    data = read_instances(dataset / "annotations.json")
    images = {image.image_id: image for image in find_images(list(data.records.values()), dataset)}
    rows = {row.ann_id: row for row in measured(sam, dataset, prompts_per_batch=1, oracle=True).rows}
    assert set(rows) == {a.ann_id for a in data.instances} - {EMPTY["id"]}
    for instance in data.instances:
        if instance.ann_id == EMPTY["id"]:
            continue
        image, row = images[instance.image_id], dataclasses.asdict(rows[instance.ann_id])
        expected = by_the_predictor(sam, image, instance)
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-4)
        assert row["npix"] == instance.mask(image.height, image.width).sum()
    assert len({round(row.iou_1pt, 3) for row in rows.values()}) > 3  # a model whose masks say something


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("change", [{"prompts_per_batch": 2}, {"prompts_per_batch": 1}, {"backwards": True}])
def test_neither_batch_nor_order_changes_a_number(
    sam: Sam, dataset: Path, change: dict[str, Any], protocol: str
) -> None:
    usual, other = (
        {row.ann_id: dataclasses.astuple(row)[:-3] for row in measured(sam, dataset, **how).rows}
        for how in ({"protocol": PROTOCOLS[protocol]}, {"protocol": PROTOCOLS[protocol], **change})
    )
    assert set(other) == set(usual)
    for ann_id, values in usual.items():
        assert other[ann_id] == pytest.approx(values, abs=0.05)


def test_every_seed_has_a_row_and_boxes_are_the_same_in_all(sam: Sam, dataset: Path) -> None:
    rows = measured(sam, dataset, seeds=(3, 4)).rows
    alone = measured(sam, dataset, seeds=(4,)).rows
    assert [row for row in rows if row.seed == 4] == alone
    by_seed = {seed: [row for row in rows if row.seed == seed] for seed in (3, 4)}
    assert [row.iou_box for row in by_seed[3]] == [row.iou_box for row in by_seed[4]]
    assert [row.iou_1pt for row in by_seed[3]] != [row.iou_1pt for row in by_seed[4]]


def test_the_oracle_is_scored_on_request_alone(sam: Sam, dataset: Path) -> None:
    assert {row.iou_box_oracle for row in measured(sam, dataset).rows} == {None}
    for row in measured(sam, dataset, oracle=True, protocol=PROTOCOLS["ritm"]).rows:
        assert row.iou_3pt_oracle is not None
        assert row.iou_3pt_oracle >= row.iou_3pt


def test_boundary_iou_can_be_left_out_and_nothing_else_changes(sam: Sam, dataset: Path) -> None:
    usual, without = measured(sam, dataset).rows, measured(sam, dataset, boundary=False).rows
    assert len(usual) == len(without) > 0
    for row, other in zip(usual, without, strict=True):
        assert all(math.isnan(getattr(other, f"biou_{prompt}")) for prompt in ("box", "1pt", "3pt"))
        names = {f"biou_{prompt}": getattr(row, f"biou_{prompt}") for prompt in ("box", "1pt", "3pt")}
        assert dataclasses.replace(other, **names) == row


def test_an_object_without_pixels_is_named_not_measured(sam: Sam, dataset: Path) -> None:
    result = measured(sam, dataset)
    assert result.skipped_empty == [EMPTY["id"]]
    assert EMPTY["id"] not in {row.ann_id for row in result.rows}


def test_a_photograph_without_objects_is_not_read(sam: Sam, dataset: Path) -> None:
    (dataset / "val2017" / "2.png").write_bytes(b"no picture")
    write_annotations(dataset, squares((1,)), (1, 2))
    assert {row.image_id for row in measured(sam, dataset).rows} == {1}


def test_objects_of_photographs_that_were_not_given_are_refused(sam: Sam, dataset: Path, refused: Any) -> None:
    data = read_instances(dataset / "annotations.json")
    with refused(ValueError, "instances of 1 images that are not among `images`, first 2"):
        measure_masks(sam, find_images([data.records[1]], dataset), data.instances, PAPER)


def test_the_lowest_of_all_were_among_the_lowest_when_they_came() -> None:
    values = [(float(value), number) for number, value in enumerate(np.random.default_rng(0).permutation(200) // 3)]
    lowest = LowestSoFar(20)
    admitted = [value for value in values if lowest.admits(value)]
    assert sorted(admitted)[:20] == sorted(values)[:20]
    assert len(admitted) < 120


def test_the_worst_answers_to_boxes_are_kept_as_they_were(sam: Sam, dataset: Path) -> None:
    result = measured(sam, dataset)
    assert {(a.ann_id, a.iou_box, a.piou_box) for a in result.worst} == {
        (row.ann_id, row.iou_box, row.piou_box) for row in result.rows
    }


def test_primary_tokens_are_compared_where_the_photograph_is_perturbed(sam: Sam, dataset: Path) -> None:
    assert measured(sam, dataset).primary == {}
    sam.image_encoder.keep_ratio = 0.25
    dark = measured(sam, dataset, perturbation=perturbation_named("dark")).primary
    assert set(dark) == {"1", "3"}
    assert all(0 < kept < of for kept, of in dark.values())
    sam.image_encoder.keep_ratio = 1.0
    assert measured(sam, dataset, perturbation=perturbation_named("dark")).primary == {}


def test_a_shifted_photograph_is_asked_about_objects_where_they_went(sam: Sam, dataset: Path) -> None:
    write_annotations(dataset, [annotation(1, 1, 5, 5, 20), annotation(2, 1, 100, 60, 15)], (1, 2))
    rows = {row.ann_id: row for row in measured(sam, dataset, perturbation=perturbation_named("shift12")).rows}
    assert rows[1].npix == 400
    assert rows[2].npix == 15 * 8  # of 120 pixels 108 to 119 remain in view: columns 112 to 119


def test_a_measurement_comes_back_from_json_exactly(sam: Sam, dataset: Path) -> None:
    result = measured(sam, dataset, perturbation=perturbation_named("jpeg30"), oracle=True)
    assert Measurement.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_joining_measurements_keeps_order_and_adds_tokens() -> None:
    parts = [
        Measurement(skipped_empty=[3], primary={"1": (2, 4)}),
        Measurement(skipped_empty=[1], primary={"1": (1, 4), "3": (5, 5)}),
    ]
    whole = Measurement.joined(parts)
    assert (whole.skipped_empty, whole.primary) == ([3, 1], {"1": (3, 8), "3": (5, 5)})


def test_a_polygon_of_a_pixel_is_measured(sam: Sam, dataset: Path) -> None:
    write_annotations(dataset, [annotation(1, 1, 5, 5, 1, segmentation=polygon(5, 5, 1))], (1, 2))
    assert [row.npix for row in measured(sam, dataset).rows] == [1]


@pytest.mark.data
def test_real_lvis_photographs_are_measured(sam: Sam) -> None:
    data = read_instances(REAL / "lvis_val_9.json")
    wanted = list(dict.fromkeys(a.image_id for a in data.instances))[:3]
    images = find_images([data.records[image_id] for image_id in wanted], REAL / "images")
    result = measure_masks(sam, images, [a for a in data.instances if a.image_id in wanted], PAPER)
    assert len(result.rows) + len(result.skipped_empty) == sum(a.image_id in wanted for a in data.instances)
    for row in result.rows:
        assert row.npix == pytest.approx(row.area, rel=0.5, abs=40)  # the right mask for the right object
        assert all(0 <= value <= 100 for value in (row.iou_box, row.iou_1pt, row.iou_3pt))
