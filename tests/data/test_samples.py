"""Training samples: what is drawn, where masks and pixels lie, and what becomes of damaged photographs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets import EMPTY, squares, write_annotations, write_images
from sam_blvit.config import TrainingDataConfig
from sam_blvit.data.instances import Instance
from sam_blvit.data.samples import Damaged, Sample, TrainingSamples
from sam_blvit.data.sources import training_source
from synthetic import annotation, rectangle_mask, write_flat, write_tar

DATA = Path(__file__).parents[3] / "shared" / "data" / "real_train"


def samples_of(root: Path, *, annotations: Path | None = None, **options: Any) -> TrainingSamples:
    source = training_source(TrainingDataConfig(data=root, annotations=annotations))
    return TrainingSamples(source, **{"image_size": 128, "mask_side": 128, "masks_per_image": 8, **options})


def sample(samples: TrainingSamples, epoch: int = 0, index: int = 0) -> Sample:
    found = samples[epoch, index]
    assert isinstance(found, Sample), found
    return found


def write_masks(root: Path, masks: Sequence[np.ndarray], *, areas: Sequence[int] | None = None) -> Path:
    """One photograph of 48 x 64 with these masks, perhaps with other areas than theirs."""
    write_flat(root, range(1), masks=0)
    entries = [annotation(mask, number) for number, mask in enumerate(masks)]
    for entry, area in zip(entries, areas or [entry["area"] for entry in entries], strict=True):
        entry["area"] = area
    path = root / "sa_0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": entries}))
    return root


def test_masks_are_where_boxes_and_pixels_are(tmp_path: Path) -> None:
    found = sample(samples_of(write_flat(tmp_path, range(1), masks=1)), epoch=3)
    assert (found.epoch, found.image_id, found.ann_ids) == (3, 0, (0,))
    assert found.image.shape == (3, 96, 128)
    assert found.valid == (96, 128)
    mask = found.masks[0]
    rows, columns = torch.where(mask)
    box = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    torch.testing.assert_close(found.boxes[0], box.float(), atol=2, rtol=0)
    inside = found.image.float().mean(0)[mask[:96]].mean()
    assert inside > found.image.float().mean(0)[~mask[:96]].mean() + 60


def test_masks_have_the_resolution_of_the_loss(tmp_path: Path) -> None:
    write_flat(tmp_path, range(1), size=(300, 200), masks=2)
    found = sample(samples_of(tmp_path, mask_side=32))
    assert found.image.shape == (3, 128, 85)
    assert found.masks.shape == (2, 32, 32)
    assert found.valid == (32, 21)
    assert not found.masks[:, :, 21:].any()


def test_pixels_and_masks_are_resized_as_opencv_does_it(tmp_path: Path) -> None:
    write_flat(tmp_path, range(1), size=(300, 200), masks=2)
    samples = samples_of(tmp_path, mask_side=64)
    found, read = sample(samples), samples.source.read(0)
    area = cv2.resize(read.pixels, (85, 128), interpolation=cv2.INTER_AREA)
    torch.testing.assert_close(found.image, torch.from_numpy(area).permute(2, 0, 1), rtol=0, atol=0)
    by_id = {one.ann_id: one.mask(300, 200) for one in read.instances}
    for mask, ann_id in zip(found.masks, found.ann_ids, strict=True):
        nearest = cv2.resize(by_id[ann_id].astype(np.uint8), (42, 64), interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(mask[:, :42].numpy(), nearest.astype(bool))


def test_a_small_photograph_is_enlarged_linearly(tmp_path: Path) -> None:
    samples = samples_of(write_flat(tmp_path, range(1)))
    linear = cv2.resize(samples.source.read(0).pixels, (128, 96), interpolation=cv2.INTER_LINEAR)
    torch.testing.assert_close(sample(samples).image, torch.from_numpy(linear).permute(2, 0, 1), rtol=0, atol=0)


def test_after_crop_and_flip_masks_are_still_on_the_bright_pixels(tmp_path: Path) -> None:
    samples = samples_of(write_flat(tmp_path, range(1), masks=1), smallest_crop=0.6, mirrored=0.5)
    images = set()
    for epoch in range(12):
        found = sample(samples, epoch)
        height, width = found.image.shape[1:]
        mask, grey = found.masks[0, :height, :width], found.image.float().mean(0)
        assert grey[mask].mean() > grey[~mask].mean() + 60
        rows, columns = torch.where(mask)
        box = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        torch.testing.assert_close(found.boxes[0], box.float(), atol=3, rtol=0)
        images.add(found.image.sum().item())
    assert len(images) > 6


def test_half_of_the_photographs_are_mirrored(tmp_path: Path) -> None:
    plain = sample(samples_of(write_flat(tmp_path, range(1)))).image
    samples = samples_of(tmp_path, mirrored=0.5)
    mirrored = [torch.equal(sample(samples, epoch).image, plain.flip(-1)) for epoch in range(40)]
    assert 10 <= sum(mirrored) <= 30


def test_a_crop_leaves_out_masks_that_it_does_not_show_or_that_fill_it(tmp_path: Path) -> None:
    corner, middle = rectangle_mask(48, 64, (0, 0, 3, 3)), rectangle_mask(48, 64, (8, 6, 56, 42))
    samples = samples_of(write_masks(tmp_path, [corner, middle]), smallest_crop=0.3)
    seen = {sample(samples, epoch).ann_ids for epoch in range(60)}
    assert {(), (1,)} <= seen
    assert any(0 in ids for ids in seen)


def test_what_is_drawn_depends_on_seed_epoch_and_image_alone(tmp_path: Path) -> None:
    write_flat(tmp_path / "four", range(4), masks=9)
    write_tar(tmp_path / "one" / "sa_000000.tar", range(2, 3), masks=9)
    options = {"masks_per_image": 3, "smallest_crop": 0.5, "mirrored": 0.5}
    first, alone = samples_of(tmp_path / "four", **options), samples_of(tmp_path / "one", **options)
    first[1, 0]  # another order of access
    one, same = sample(first, 1, 2), sample(alone, 1, 0)
    assert one.ann_ids == same.ann_ids
    torch.testing.assert_close((one.image, one.masks, one.boxes), (same.image, same.masks, same.boxes))
    assert sample(first, 0, 2).ann_ids != one.ann_ids
    assert sample(samples_of(tmp_path / "four", seed=1, **options), 1, 2).ann_ids != one.ann_ids


def test_alike_photographs_have_draws_of_their_own(tmp_path: Path) -> None:
    masks = [rectangle_mask(48, 64, (i, i, 20, 20)) for i in range(9)]
    record = json.loads((write_masks(tmp_path, masks) / "sa_0.json").read_text())
    write_flat(tmp_path, range(1, 2))
    (tmp_path / "sa_1.json").write_text(json.dumps(record))
    samples = samples_of(tmp_path, masks_per_image=4)
    assert sample(samples, 0, 0).ann_ids != sample(samples, 0, 1).ann_ids


def test_readers_in_processes_of_their_own_draw_the_same(tmp_path: Path) -> None:
    samples = samples_of(write_tar(tmp_path / "sa_000000.tar", range(4)).parent, masks_per_image=2)
    places = [(epoch, index) for epoch in range(2) for index in range(4)]
    loader: DataLoader[Any] = DataLoader(samples, sampler=places, batch_size=None, num_workers=2)  # type: ignore[arg-type]
    for place, found in zip(places, loader, strict=True):
        here = sample(samples, *place)
        assert (found.epoch, found.image_id, found.ann_ids) == (place[0], here.image_id, here.ann_ids)
        assert torch.equal(found.masks, here.masks)


def test_masks_are_drawn_without_replacement_and_never_repeated(tmp_path: Path) -> None:
    write_flat(tmp_path, range(1), masks=6)
    for wanted, drawn in ((4, 4), (6, 6), (60, 6)):
        found = sample(samples_of(tmp_path, masks_per_image=wanted))
        assert len(set(found.ann_ids)) == len(found.ann_ids) == len(found.masks) == drawn


def test_every_mask_has_its_turn(tmp_path: Path) -> None:
    samples = samples_of(write_flat(tmp_path, range(1), masks=6), masks_per_image=2)
    assert {ann_id for epoch in range(30) for ann_id in sample(samples, epoch).ann_ids} == set(range(6))


def test_only_the_drawn_masks_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[int] = []
    runs = Instance.runs

    def counted(self: Instance, height: int, width: int) -> dict[str, Any]:
        unpacked.append(self.ann_id)
        return runs(self, height, width)

    monkeypatch.setattr(Instance, "runs", counted)
    found = sample(samples_of(write_flat(tmp_path, range(1), masks=9), masks_per_image=2))
    assert tuple(unpacked) == found.ann_ids
    assert len(unpacked) == 2


def test_a_damaged_mask_matters_only_when_it_is_drawn(tmp_path: Path) -> None:
    write_flat(tmp_path, range(1), masks=2)
    path = tmp_path / "sa_0.json"
    record = json.loads(path.read_text())
    record["annotations"][0]["segmentation"]["counts"] = "0"
    path.write_text(json.dumps(record))
    samples = samples_of(tmp_path, masks_per_image=1)
    found = [samples[epoch, 0] for epoch in range(12)]
    assert {one.ann_ids for one in found if isinstance(one, Sample)} == {(1,)}
    reasons = {one.reason for one in found if isinstance(one, Damaged)}
    assert reasons == {"annotation 0: segmentation is malformed (run lengths cover 0 of 3072 pixels)"}


def test_masks_over_nearly_all_of_the_photograph_or_none_are_never_drawn(tmp_path: Path) -> None:
    empty, full = np.zeros((48, 64), dtype=np.uint8), np.ones((48, 64), dtype=np.uint8)
    nearly, more = full.copy(), full.copy()
    nearly.flat[:308], more.flat[:307] = 0, 0  # 0.9 of 3072 is 2764.8
    write_masks(tmp_path, [full, more, nearly, empty], areas=[100, 100, 100, 100])
    samples = samples_of(tmp_path, masks_per_image=1)
    assert {sample(samples, epoch).ann_ids for epoch in range(12)} == {(2,)}
    found = sample(samples_of(tmp_path))
    assert (found.ann_ids, len(found.masks), len(found.boxes)) == ((2,), 1, 1)


@pytest.mark.parametrize("area", [0, -1, 0.25, 48 * 64, 10**9])
def test_the_annotated_area_decides_nothing(tmp_path: Path, area: float) -> None:
    masks = [rectangle_mask(48, 64, (i, i, 20, 20)) for i in range(6)]
    options = {"masks_per_image": 3, "smallest_crop": 0.7}
    write_masks(tmp_path, masks)
    expected = [sample(samples_of(tmp_path, **options), epoch) for epoch in range(4)]
    write_masks(tmp_path, masks, areas=[area] * 6)
    found = [sample(samples_of(tmp_path, **options), epoch) for epoch in range(4)]
    assert [one.ann_ids for one in found] == [one.ann_ids for one in expected]
    assert all(torch.equal(one.masks, other.masks) for one, other in zip(found, expected, strict=True))
    assert len(found[0].ann_ids) == 3


@pytest.mark.parametrize("area", [0, -1, 90 * 120])
def test_the_annotated_area_decides_nothing_in_cocos_format(tmp_path: Path, area: float) -> None:
    write_images(tmp_path, (1,))
    path = write_annotations(tmp_path, [{**one, "area": area} for one in squares((1,))], (1,))
    assert sorted(sample(samples_of(tmp_path, annotations=path)).ann_ids) == [10, 11]


def test_a_mask_that_cannot_be_trained_on_gives_its_place_to_another(tmp_path: Path) -> None:
    small, full = rectangle_mask(48, 64, (4, 4, 20, 20)), np.ones((48, 64), dtype=np.uint8)
    samples = samples_of(write_masks(tmp_path, [full, small, np.zeros_like(full), small]), masks_per_image=2)
    assert {frozenset(sample(samples, epoch).ann_ids) for epoch in range(12)} == {frozenset((1, 3))}


def test_a_mask_too_small_for_the_resolution_of_the_loss_is_left_out(tmp_path: Path) -> None:
    write_masks(tmp_path, [rectangle_mask(48, 64, (5, 5, 6, 6)), rectangle_mask(48, 64, (4, 4, 20, 20))])
    assert sample(samples_of(tmp_path, mask_side=16)).ann_ids == (1,)
    assert sorted(sample(samples_of(tmp_path, mask_side=128)).ann_ids) == [0, 1]


@pytest.mark.parametrize("masks_per_image", [0, 8])
def test_a_photograph_without_masks_is_a_sample_without_masks(tmp_path: Path, masks_per_image: int) -> None:
    write_flat(tmp_path, range(1), masks=0 if masks_per_image else 3)
    found = sample(samples_of(tmp_path, masks_per_image=masks_per_image))
    assert found.image.shape == (3, 96, 128)
    assert (found.masks.shape, found.boxes.shape, found.ann_ids) == ((0, 128, 128), (0, 4), ())
    assert (found.masks.dtype, found.boxes.dtype) == (torch.bool, torch.float32)


def test_a_damaged_photograph_is_told_and_not_replaced(tmp_path: Path) -> None:
    write_flat(tmp_path, range(3))
    (tmp_path / "sa_1.jpg").write_bytes(b"no picture")
    samples = samples_of(tmp_path)
    found = samples[0, 1]
    assert isinstance(found, Damaged)
    assert found.image_id == 1
    assert "sa_1.jpg is damaged" in found.reason
    assert "\n" not in found.reason
    assert [sample(samples, 0, index).image_id for index in (0, 2)] == [0, 2]


def test_annotations_in_cocos_format_make_samples(tmp_path: Path) -> None:
    write_images(tmp_path, (1, 2))
    path = write_annotations(tmp_path, [*squares((1, 2)), EMPTY], (1, 2))
    samples = samples_of(tmp_path, annotations=path)
    assert sorted(sample(samples).ann_ids) == [10, 11]
    found = sample(samples, 0, 1)
    assert found.image.shape == (3, 128, 60)
    assert sorted(found.ann_ids) == [20, 21]


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:.*tar indexes cannot be kept")
def test_real_photographs_make_samples() -> None:
    found = sample(samples_of(DATA, image_size=512, masks_per_image=16), 0, 5)
    assert max(found.image.shape[1:]) == 512
    assert 0 < len(found.masks) <= 16
