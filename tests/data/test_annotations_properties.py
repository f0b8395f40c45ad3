"""Whatever JSON holds where an annotation's fields should be: it is read to the right value, or refused with one line
that names it. Never another exception, never left out in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam_blvit.config import TrainingDataConfig
from sam_blvit.data.instances import Instance, read_instances
from sam_blvit.data.manifest import read_ids
from sam_blvit.data.sa1b import Sa1b
from sam_blvit.data.samples import Sample, TrainingSamples
from sam_blvit.data.sources import training_source
from sam_blvit.evaluate.metrics.judges import check_annotations
from sam_blvit.evaluate.metrics.truths import check_truths
from synthetic import write_flat

pytestmark = pytest.mark.property

HEIGHT, WIDTH = 10, 12
SQUARE = [[2, 3, 7, 3, 7, 8, 2, 8]]
REFUSED = object()

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 30)
    | st.integers()
    | st.sampled_from([2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**400, -(2**63)])
    | st.floats()
    | st.sampled_from(["", "0", "1", "false", "no", "NaN", "a\nb", "5"])
    | st.text(max_size=4)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
"""What JSON may hold, NaN and infinity too, as Python writes and reads them."""


def content_with(part: str, field: str, value: Any) -> dict[str, Any]:
    """A file of one image, one annotation and one category, one field of which is `value`."""
    content: dict[str, Any] = {
        "images": [
            {
                "id": 1,
                "height": HEIGHT,
                "width": WIDTH,
                "file_name": "one.png",
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
        ],
        "annotations": [
            {
                "id": 5,
                "image_id": 1,
                "category_id": 2,
                "bbox": [2, 3, 5, 5],
                "area": 25,
                "iscrowd": 0,
                "segmentation": SQUARE,
            }
        ],
        "categories": [{"id": 2, "frequency": "f"}],
    }
    content[part][0][field] = value
    return content


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("annotations") / "annotations.json"


def outcome(read: Callable[[], Any], *, names: tuple[str, ...]) -> Any:
    """What `read` gives; REFUSED where it raises ValueError with one short line that holds one of `names`."""
    try:
        return read()
    except ValueError as error:
        line = str(error)
        assert len(line.splitlines()) == 1
        assert len(line) < 600
        assert any(name in line for name in names), line
        return REFUSED


def instance_with(path: Path, field: str, value: Any, *, names: tuple[str, ...]) -> Any:
    """The annotation in a file whose annotation has this `value`, or REFUSED."""
    path.write_text(json.dumps(content_with("annotations", field, value)))
    found = outcome(lambda: read_instances(path).instances, names=names)
    if found is REFUSED:
        return REFUSED
    assert len(found) == 1
    return found[0]


def is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1.7976931348623157e308


@given(value=VALUES)
def test_a_crowd(path: Path, value: Any) -> None:
    found = instance_with(path, "iscrowd", value, names=("annotation 5",))
    if value is None or (type(value) in (bool, int) and value in (0, 1)):
        assert found.crowd is bool(value)
    else:
        assert found is REFUSED


@given(value=VALUES)
def test_an_area(path: Path, value: Any) -> None:
    found = instance_with(path, "area", value, names=("annotation 5",))
    if is_number(value):
        assert found.area == float(value)
    else:
        assert found is REFUSED


@given(value=VALUES | st.lists(SCALARS | st.integers(0, 9), min_size=4, max_size=4))
def test_a_box(path: Path, value: Any) -> None:
    found = instance_with(path, "bbox", value, names=("annotation 5",))
    if isinstance(value, list) and len(value) == 4 and all(map(is_number, value)) and min(value[2:]) >= 0:
        assert found.box == tuple(map(float, value))
    else:
        assert found is REFUSED


@given(field=st.sampled_from(["id", "image_id", "category_id"]), value=VALUES)
def test_an_annotations_ids(path: Path, field: str, value: Any) -> None:
    found = instance_with(path, field, value, names=(f"{value!r:.40}", "annotation 5"))
    if is_id(value) and (field != "image_id" or value == 1):
        assert (found.ann_id, found.image_id, found.category_id) == (
            value if field == "id" else 5, 1, value if field == "category_id" else 2
        )  # fmt: skip
    else:
        assert found is REFUSED


@given(field=st.sampled_from(["id", "height", "width", "file_name", "coco_url"]), value=VALUES)
def test_an_images_fields(path: Path, field: str, value: Any) -> None:
    path.write_text(json.dumps(content_with("images", field, value)))
    found = outcome(lambda: read_instances(path).records, names=("image 1", "image ", "annotation 5 is of image 1"))
    if field == "id":
        right = value == 1 and type(value) is int
    elif field in ("height", "width"):
        right = is_id(value) and 0 < value * (WIDTH if field == "height" else HEIGHT) < 2**32
    else:
        right = (value is None and field == "coco_url") or (
            isinstance(value, str) and (field != "file_name" or value not in ("", "."))
        )
    if not right:
        assert found is REFUSED
    else:
        (record,) = found.values()
        assert field != "file_name" or Path(record.name) == Path(value)
        assert (record.image_id, record.height, record.width) == (
            1, value if field == "height" else HEIGHT, value if field == "width" else WIDTH
        )  # fmt: skip


def rectangle(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + h, x : x + w] = True
    return mask


RECTANGLES = st.tuples(st.integers(0, WIDTH), st.integers(0, HEIGHT), st.integers(0, WIDTH), st.integers(0, HEIGHT))


@given(boxes=st.lists(RECTANGLES, max_size=3))
def test_polygons_are_all_drawn(boxes: list[tuple[int, int, int, int]]) -> None:
    boxes = [(x, y, min(w, WIDTH - x), min(h, HEIGHT - y)) for x, y, w, h in boxes]
    polygons = [[x, y, x + w, y, x + w, y + h, x, y + h] for x, y, w, h in boxes]
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for box in boxes:
        expected |= rectangle(*box)
    assert_drawn(polygons, expected)


@given(lengths=st.lists(st.integers(0, 60), max_size=6))
def test_run_lengths_are_drawn_or_refused(lengths: list[int]) -> None:
    values = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    right = sum(lengths) == HEIGHT * WIDTH
    assert_drawn({"size": [HEIGHT, WIDTH], "counts": lengths}, values.reshape(WIDTH, HEIGHT).T if right else None)
    whole = [*lengths, HEIGHT * WIDTH - sum(lengths)]
    if whole[-1] >= 0:
        values = np.repeat(np.arange(len(whole)) % 2 == 1, whole)
        assert_drawn({"size": [HEIGHT, WIDTH], "counts": whole}, values.reshape(WIDTH, HEIGHT).T)


def assert_drawn(segmentation: Any, expected: np.ndarray | None) -> None:
    """The segmentation gives the mask expected; None: it is refused."""
    one = Instance(5, 1, 2, area=1.0, box=(0.0, 0.0, 1.0, 1.0), crowd=False, segmentation=segmentation)
    mask = outcome(lambda: one.mask(HEIGHT, WIDTH), names=("annotation 5: segmentation is malformed",))
    if expected is None:
        assert mask is REFUSED
        return
    np.testing.assert_array_equal(mask, expected)
    assert one.pixels(HEIGHT, WIDTH) == expected.sum()


CORNERS = st.integers(-30, 30) | st.floats(-20, 30) | SCALARS
SEGMENTATIONS = (
    VALUES
    | st.lists(st.lists(CORNERS, max_size=8), max_size=3)
    | st.fixed_dictionaries(
        {
            "size": st.just([HEIGHT, WIDTH]) | VALUES,
            "counts": st.text(st.characters(min_codepoint=32, max_codepoint=127), max_size=12) | VALUES,
        }
    )
)


@given(value=SEGMENTATIONS)
def test_any_segmentation_is_drawn_or_refused(path: Path, value: Any) -> None:
    one = instance_with(path, "segmentation", value, names=())
    mask = outcome(lambda: one.mask(HEIGHT, WIDTH), names=("annotation 5: segmentation is malformed",))
    if mask is REFUSED:
        return
    assert (mask.shape, mask.dtype) == ((HEIGHT, WIDTH), bool)
    assert one.pixels(HEIGHT, WIDTH) == mask.sum()
    if isinstance(value, list):
        assert all(isinstance(polygon, list) and all(map(is_number, polygon)) for polygon in value)
        assert all(len(polygon) % 2 == 0 for polygon in value)
    else:
        assert list(value["size"]) == [HEIGHT, WIDTH]


@given(
    area=st.sampled_from([0, -1, 0.5, 25, 120, 121, 1e300]) | st.integers(-5, 130),
    box=st.tuples(*[st.integers(-15, 15)] * 2, *[st.integers(0, 15)] * 2) | st.just((2, 3, 5, 5)),
)
def test_what_is_measured_has_a_possible_area_and_a_box_on_its_image(
    path: Path, area: float, box: tuple[int, int, int, int]
) -> None:
    content = content_with("annotations", "area", area)
    content["annotations"][0]["bbox"] = list(box)
    path.write_text(json.dumps(content))
    dataset = read_instances(path)
    x, y, w, h = box
    pixels = rectangle(max(x, 0), max(y, 0), max(0, min(x, 0) + w), max(0, min(y, 0) + h))
    on_image = pixels.any() or (w * h == 0 and 0 <= x < WIDTH and 0 <= y < HEIGHT)
    if w * h == 0 and not on_image:
        return  # a line across the edge of the image is neither
    right = on_image and 0 < area <= min(HEIGHT * WIDTH, (w + 1) * (h + 1))
    assert (
        outcome(lambda: check_truths(dataset.instances, dataset.records), names=("annotation 5: ",)) is not REFUSED
    ) == right


@given(judge=st.sampled_from(["coco", "lvis"]), value=VALUES)
def test_a_category_is_listed_or_named(path: Path, judge: str, value: Any) -> None:
    path.write_text(json.dumps(content_with("categories", "id", value)))
    found = outcome(
        lambda: check_annotations(read_instances(path), [1], judge), names=("is of category 2", "whole number 'id'")
    )
    assert (found is not REFUSED) == (value == 2 and type(value) is int)


@given(
    place=st.sampled_from(
        [("images", "neg_category_ids"), ("images", "not_exhaustive_category_ids"), ("categories", "frequency")]
    ),
    value=VALUES | st.lists(st.integers(0, 9), max_size=3) | st.sampled_from("rcf"),
)
def test_fields_of_lvis(path: Path, place: tuple[str, str], value: Any) -> None:
    part, field = place
    path.write_text(json.dumps(content_with(part, field, value)))
    dataset = read_instances(path)
    found = outcome(lambda: check_annotations(dataset, [1], "lvis"), names=("image 1", "category 2"))
    if field == "frequency":
        right = isinstance(value, str) and value in ("r", "c", "f")
    else:
        right = isinstance(value, list) and all(map(is_id, value))
    assert (found is not REFUSED) == right
    check_annotations(dataset, [1], "coco")


@pytest.fixture(scope="module")
def sa1b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flat(tmp_path_factory.mktemp("sa1b"), range(1), masks=1)


@given(field=st.sampled_from(["id", "area", "bbox", "segmentation", "iscrowd"]), value=VALUES)
def test_annotations_of_sa1b(sa1b: Path, field: str, value: Any) -> None:
    whole = json.loads(write_flat(sa1b, range(1), masks=1).joinpath("sa_0.json").read_text())
    whole["annotations"][0][field] = value
    (sa1b / "sa_0.json").write_text(json.dumps(whole))
    found = outcome(lambda: Sa1b(sa1b).read(0).instances, names=("sa_0",))
    if field == "id":
        assert (found is not REFUSED) == is_id(value)
    if field == "area":
        assert (found is not REFUSED) == is_number(value)
    assert found is REFUSED or len(found) == 1


@given(area=st.integers(-5, 10**6) | st.floats(allow_nan=False, allow_infinity=False), seed=st.integers(0, 99))
def test_a_mask_is_trained_whatever_its_area(sa1b: Path, area: float, seed: int) -> None:
    whole = json.loads(write_flat(sa1b, range(1), masks=3).joinpath("sa_0.json").read_text())
    samples = TrainingSamples(
        training_source(TrainingDataConfig(data=sa1b)), image_size=32, mask_side=32, masks_per_image=2, seed=seed
    )
    usual = samples[0, 0]
    for entry in whole["annotations"]:
        entry["area"] = area
    (sa1b / "sa_0.json").write_text(json.dumps(whole))
    found = samples[0, 0]
    assert isinstance(usual, Sample)
    assert isinstance(found, Sample)
    assert len(found.ann_ids) == 2
    assert found.ann_ids == usual.ann_ids


@given(number=st.integers(-5, 2**70) | st.sampled_from([2**63 - 1, 2**63, 10**400]), zeros=st.integers(0, 3))
def test_ids_in_lists(path: Path, number: int, zeros: int) -> None:
    ids = path.with_name("ids.txt")
    ids.write_text("0" * zeros + str(number))
    found = outcome(lambda: read_ids(ids), names=("entry 1",))
    if is_id(number):
        assert found == [number]
    else:
        assert found is REFUSED
