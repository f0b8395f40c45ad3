import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sam_blvit.data.sa1b import Sa1bDataset, find_pairs, read_ids, read_pair
from synthetic import sa1b_files, write_flat, write_tar

DATA = Path(__file__).parents[2] / "shared" / "data" / "real_train"


def dataset(root: Path, **options: object) -> Sa1bDataset:
    settings = {"image_size": 128, "mask_side": 128, "masks_per_image": 8, **options}
    return Sa1bDataset(find_pairs(root), **settings)  # type: ignore[arg-type]


def test_a_tar_and_a_flat_directory_hold_the_same_pairs(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "sa_000000.tar", range(3))
    write_tar(tmp_path / "tars" / "sa_000001.tar", range(3, 5))
    write_flat(tmp_path / "flat", range(5))
    packed, flat = find_pairs(tmp_path / "tars"), find_pairs(tmp_path / "flat")
    assert [p.image_id for p in packed] == [p.image_id for p in flat] == [0, 1, 2, 3, 4]
    for a, b in zip(packed, flat, strict=True):
        assert a.image.read() == b.image.read()
        assert a.annotations.read() == b.annotations.read()


def test_flat_files_beside_tars_are_counted_and_left_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "sa_000000.tar", range(2))
    write_flat(tmp_path, range(5, 8))
    with pytest.warns(UserWarning, match=r"holds 1 .tar files, so 6 files beside them are left out"):
        assert [p.image_id for p in find_pairs(tmp_path)] == [0, 1]


def test_an_image_in_two_tars_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "sa_000000.tar", range(2))
    write_tar(tmp_path / "sa_000001.tar", range(1, 3))
    with pytest.raises(ValueError, match=r"sa_1.jpg is both in .*sa_000000.tar and in .*sa_000001.tar"):
        find_pairs(tmp_path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda a: a.pop("area"), "no 'area'"),
        (lambda a: a.update(segmentation=[[0, 0, 9, 0, 9, 9]]), "annotation 0 holds no compressed run lengths"),
        (
            lambda a: a["segmentation"].update(size=[9, 9]),
            r"annotation 0 is \[9, 9\] pixels, the photograph \[48, 64\]",
        ),
    ],
)
def test_an_annotation_that_is_not_sa1bs_is_named(tmp_path: Path, change: Callable[[dict], object], line: str) -> None:
    write_flat(tmp_path, range(1))
    path = tmp_path / "sa_0.json"
    record = json.loads(path.read_text())
    change(record["annotations"][0])
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"sa_0 in .* is damaged .*{line}"):
        read_pair(find_pairs(tmp_path)[0])


def test_few_incomplete_pairs_are_counted_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_blvit.data.sa1b.MAX_BAD_SHARE", 0.5)
    write_flat(tmp_path, range(4))
    (tmp_path / "sa_2.json").unlink()
    with pytest.warns(UserWarning, match="1 of 4 images or annotations lack the other half"):
        pairs = find_pairs(tmp_path)
    assert [p.image_id for p in pairs] == [0, 1, 3]


def test_many_incomplete_pairs_stop_the_run(tmp_path: Path) -> None:
    write_flat(tmp_path, range(4))
    (tmp_path / "sa_2.json").unlink()
    with pytest.raises(ValueError, match="is a tar cut short"):
        find_pairs(tmp_path)


def test_gzip_under_a_tar_name_is_named_as_such(tmp_path: Path) -> None:
    write_tar(tmp_path / "sa_000000.tar", range(2), mode="w:gz")
    with pytest.raises(ValueError, match=r"sa_000000.tar is gzip data under a .tar name"):
        find_pairs(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_a_damaged_tar_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sa_000000.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"sa_000000.tar is no readable tar"):
        find_pairs(tmp_path)


def test_a_directory_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no pair of sa_<id>"):
        find_pairs(tmp_path)
    with pytest.raises(ValueError, match="is not a directory"):
        find_pairs(tmp_path / "nowhere")


def test_a_damaged_photograph_is_named(tmp_path: Path) -> None:
    write_flat(tmp_path, range(1))
    (tmp_path / "sa_0.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"sa_0 in .*sa_0\.jpg is damaged"):
        read_pair(find_pairs(tmp_path)[0])


def test_ids_are_read_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("3\n14\n")
    assert read_ids(path) == [3, 14]
    path.write_text("3\nsa_14\n")
    with pytest.raises(ValueError, match="entry 2 is 'sa_14', not an image id"):
        read_ids(path)


def test_a_sample_has_its_masks_where_its_boxes_and_pixels_are(tmp_path: Path) -> None:
    write_flat(tmp_path, range(1), masks=1)
    sample = dataset(tmp_path)[(0, 0)]
    assert sample.image.shape == (3, 96, 128)
    assert sample.valid == (96, 128)
    mask = sample.masks[0]
    rows, cols = torch.where(mask)
    box = torch.tensor([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1])
    torch.testing.assert_close(sample.boxes[0], box.float(), atol=2, rtol=0)
    inside = sample.image.float().mean(0)[mask[:96]].mean()
    outside = sample.image.float().mean(0)[~mask[:96]].mean()
    assert inside > outside + 60


def test_a_flipped_and_cropped_sample_still_has_its_masks_on_the_bright_pixels(tmp_path: Path) -> None:
    write_flat(tmp_path, range(1), masks=1)
    samples = dataset(tmp_path, smallest_crop=0.6, flip=True)
    images = set()
    for epoch in range(12):
        sample = samples[(epoch, 0)]
        height, width = sample.image.shape[1:]
        mask = sample.masks[0, :height, :width]
        grey = sample.image.float().mean(0)
        assert grey[mask].mean() > grey[~mask].mean() + 60
        images.add(sample.image.sum().item())
    assert len(images) > 6


def test_what_is_drawn_depends_on_seed_epoch_and_image_alone(tmp_path: Path) -> None:
    write_flat(tmp_path, range(4), masks=9)
    first, again = dataset(tmp_path, masks_per_image=3), dataset(tmp_path, masks_per_image=3)
    again[(0, 0)]  # another order of access
    torch.testing.assert_close(first[(1, 2)].boxes, again[(1, 2)].boxes)
    assert not torch.equal(first[(0, 2)].boxes, first[(1, 2)].boxes)
    assert not torch.equal(first[(0, 2)].boxes, dataset(tmp_path, masks_per_image=3, seed=1)[(0, 2)].boxes)


def test_masks_are_drawn_without_replacement(tmp_path: Path) -> None:
    write_flat(tmp_path, range(1), masks=6)
    boxes = dataset(tmp_path, masks_per_image=6)[(0, 0)].boxes
    assert len(torch.unique(boxes, dim=0)) == 6


def test_an_image_without_a_usable_mask_gives_way_to_the_next(tmp_path: Path) -> None:
    write_flat(tmp_path, range(1), masks=0)
    write_flat(tmp_path, range(1, 2))
    assert dataset(tmp_path)[(0, 0)].image_id == 1


def test_a_mask_over_nearly_the_whole_image_is_not_trained_on(tmp_path: Path) -> None:
    files = sa1b_files(0, masks=1)
    import json

    from synthetic import annotation

    record = json.loads(files["sa_0.json"])
    record["annotations"].append(annotation(np.ones((48, 64), dtype=np.uint8), 7))
    (tmp_path / "sa_0.jpg").write_bytes(files["sa_0.jpg"])
    (tmp_path / "sa_0.json").write_text(json.dumps(record))
    assert len(dataset(tmp_path)[(0, 0)].masks) == 1


@pytest.mark.data
def test_the_real_tars_are_read() -> None:
    pairs = find_pairs(DATA)
    assert len(pairs) == 2564
    assert len({pair.image_id for pair in pairs} & set(read_ids(DATA / "val_ids.txt"))) == 100
    sample = Sa1bDataset(pairs, image_size=512, mask_side=128, masks_per_image=16)[(0, 5)]
    assert max(sample.image.shape[1:]) == 512
    assert 0 < len(sample.masks) <= 16
