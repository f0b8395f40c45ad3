"""What a trainer validates with: drawn once, measured as the evaluator measures, the same for any number of
processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import TINY
from datasets import CROWD, EMPTY, annotation, squares, write_annotations, write_images
from processes import run_in_two
from sam_blvit.checkpoint.load import load_sam, save_sam
from sam_blvit.config import FinetuneConfig, ModelConfig, compose
from sam_blvit.data.instances import ImageFile, find_images, read_instances
from sam_blvit.data.sources import Source, training_source
from sam_blvit.evaluate.in_training.validation import Validation
from sam_blvit.evaluate.masks import MaskMeasure, measure_masks
from sam_blvit.evaluate.protocol.protocols import PROTOCOLS
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.system.distributed import Processes
from synthetic import write_flat, write_tar

ROOT = Path(__file__).parents[3]
ALONE = Processes()


@pytest.fixture
def sam(tiny: Callable[..., ModelConfig], randomize: Callable[[Sam], Sam]) -> Sam:
    return randomize(build_sam(tiny()))


def annotated(root: Path, image_ids: tuple[int, ...], annotations: Sequence[dict[str, Any]] | None = None) -> Path:
    """A dataset in COCO's format of two squares a photograph, or of the `annotations` given."""
    write_images(root, image_ids)
    write_annotations(root, squares(image_ids) if annotations is None else list(annotations), image_ids)
    return root


def config_of(root: Path, *, coco: Path | None = None, **fields: Any) -> FinetuneConfig:
    if coco is not None:
        fields |= {"val_annotations": coco / "annotations.json", "val_images": coco}
    return compose(FinetuneConfig, data=root / "sa1b", output=root / "run", **fields)


def source_of(root: Path, image_ids: range, **options: Any) -> Source:
    """Photographs in a tar."""
    write_tar(root / "sa1b" / "sa_000000.tar", image_ids, **options)
    return training_source(config_of(root).data)


def made(config: FinetuneConfig, held: Source | None = None) -> Validation:
    validation = Validation.of(config, held, processes=ALONE)
    assert validation is not None
    return validation


def drawn(validation: Validation, kind: str) -> list[int]:
    return [image.image_id for image in validation.shares[kind].images]


def test_the_numbers_are_the_evaluators(tmp_path: Path, sam: Sam) -> None:
    coco = annotated(tmp_path, (1, 2, 3), [*squares((1, 2, 3)), CROWD])
    scores = made(config_of(tmp_path, coco=coco))(sam)
    dataset = read_instances(coco / "annotations.json")
    images = find_images(list(dataset.records.values()), coco)
    how = MaskMeasure(protocol=PROTOCOLS["blvit"])
    rows = measure_masks(sam.eval(), images, [a for a in dataset.instances if not a.crowd], how).rows
    expected = {p: sum(getattr(row, f"iou_{p}") for row in rows) / len(rows) for p in ("box", "1pt", "3pt")}
    assert scores == pytest.approx(
        {f"val/annotations/{p}": mean for p, mean in expected.items()} | {"score": sum(expected.values()) / 3}
    )
    assert len({round(score, 3) for score in scores.values()}) == 4


def test_photographs_in_tars_are_measured_as_files_are(tmp_path: Path, sam: Sam) -> None:
    held = source_of(tmp_path, range(4, 7))
    scores = made(config_of(tmp_path), held)(sam)
    flat = write_flat(tmp_path / "flat", range(4, 7))
    images = [ImageFile(i, 48, 64, flat / f"sa_{i}.jpg") for i in range(4, 7)]
    instances = [instance for index in range(3) for instance in held.read(index).instances]
    rows = measure_masks(sam.eval(), images, instances, MaskMeasure(protocol=PROTOCOLS["blvit"])).rows
    assert len(rows) == 9
    assert scores["val/held/3pt"] == pytest.approx(sum(row.iou_3pt for row in rows) / 9)


def test_each_keep_ratio_is_measured_under_its_own_name(tmp_path: Path, sam: Sam) -> None:
    validation = made(config_of(tmp_path, coco=annotated(tmp_path, (1, 2))))
    scores = validation(sam, keep_ratios=(0.25, 1, 0.25))
    prompts = ("box", "1pt", "3pt")
    assert list(scores) == [*(f"val@{ratio}/annotations/{p}" for ratio in ("0.25", "1") for p in prompts), "score"]
    for ratio in (0.25, 1):
        means = validation.mious(sam, keep_ratio=ratio)["annotations"]
        assert {p: scores[f"val@{ratio}/annotations/{p}"] for p in prompts} == means
    assert scores["val@0.25/annotations/box"] != scores["val@1/annotations/box"]
    assert scores["score"] == pytest.approx((sum(scores.values()) - scores["score"]) / 6)


def test_without_keep_ratios_it_is_that_of_the_config_whatever_the_last_step_drew(tmp_path: Path, sam: Sam) -> None:
    validation = made(config_of(tmp_path, coco=annotated(tmp_path, (1, 2))))
    usual = validation(sam)
    sam.image_encoder.keep_ratio = 1.0
    assert validation(sam) == usual
    assert validation.mious(sam, keep_ratio=1.0)["annotations"]["box"] != usual["val/annotations/box"]


def test_both_kinds_are_measured_and_weigh_the_same_in_the_score(tmp_path: Path, sam: Sam) -> None:
    held = source_of(tmp_path, range(3))
    scores = made(config_of(tmp_path, coco=annotated(tmp_path, (1,))), held)(sam)
    names = [f"val/{kind}/{prompt}" for kind in ("held", "annotations") for prompt in ("box", "1pt", "3pt")]
    assert list(scores) == [*names, "score"]
    assert scores["score"] == pytest.approx(sum(scores[name] for name in names) / 6)


def test_a_student_in_training_is_measured_as_in_use_and_left_as_it_was(tmp_path: Path, sam: Sam) -> None:
    validation = made(config_of(tmp_path, coco=annotated(tmp_path, (1,))))
    modes = []
    sam.image_encoder.blocks[1].register_forward_pre_hook(lambda block, _: modes.append(block.training))
    sam.train()
    sam.image_encoder.keep_ratio = 0.5
    validation(sam, keep_ratios=(0.25,))
    assert modes == [False]
    assert all(module.training for module in sam.modules())
    assert sam.image_encoder.keep_ratio == 0.5
    assert {p.grad for p in sam.parameters()} == {None}


def test_a_student_of_numbers_that_are_none_is_refused_and_left_as_it_was(
    tmp_path: Path, sam: Sam, refused: Callable[..., Any]
) -> None:
    validation = made(config_of(tmp_path, coco=annotated(tmp_path, (1,))))
    with torch.no_grad():
        sam.image_encoder.pos_embed.fill_(torch.nan)
    sam.train()
    with refused(ValueError, "NaN or infinity"):
        validation(sam, keep_ratios=(0.25,))
    assert sam.training


def test_nothing_to_validate_with_is_none(tmp_path: Path) -> None:
    assert Validation.of(config_of(tmp_path), None, processes=ALONE) is None


# what is drawn --------------------------------------------------------------------------------------------------------


def test_photographs_are_drawn_by_the_seed_up_to_the_limit(tmp_path: Path) -> None:
    held, coco = source_of(tmp_path, range(20)), annotated(tmp_path, (1, 2, 3, 4, 5, 6, 7))
    found = {seed: made(config_of(tmp_path, coco=coco, val_limit=4, seed=seed), held) for seed in (0, 1)}
    for kind in ("held", "annotations"):
        first, other = drawn(found[0], kind), drawn(found[1], kind)
        assert len(first) == len(set(first)) == 4
        assert first == sorted(first)
        assert first != other
    again = made(config_of(tmp_path, coco=coco, val_limit=4), held)
    assert drawn(again, "held") == drawn(found[0], "held")
    assert drawn(made(config_of(tmp_path), held), "held") == list(range(20))


def test_the_order_of_the_photographs_draws_no_others(tmp_path: Path) -> None:
    coco = annotated(tmp_path, (1, 2, 3, 4, 5, 6, 7))
    first = drawn(made(config_of(tmp_path, coco=coco, val_limit=3)), "annotations")
    content = json.loads((coco / "annotations.json").read_text())
    (coco / "annotations.json").write_text(json.dumps({key: values[::-1] for key, values in content.items()}))
    assert drawn(made(config_of(tmp_path, coco=coco, val_limit=3)), "annotations") == first


def test_of_many_objects_sixteen_are_measured_always_the_same(tmp_path: Path) -> None:
    held = source_of(tmp_path, range(3), masks=40)
    share = made(config_of(tmp_path), held).shares["held"]
    assert (share.photographs, share.objects) == (3, 48)
    ids = [instance.ann_id for instance in share.instances]
    places = [{ann_id % 1000 for ann_id in ids if ann_id // 1000 == image_id} for image_id in range(3)]
    assert ids == sorted(set(ids))
    assert [len(of_image) for of_image in places] == [16] * 3
    assert places[0] != places[1] != places[2]
    assert [a.ann_id for a in made(config_of(tmp_path), held).shares["held"].instances] == ids
    assert [a.ann_id for a in made(config_of(tmp_path, seed=1), held).shares["held"].instances] != ids


def test_crowds_and_photographs_of_nothing_else_are_left_out(tmp_path: Path) -> None:
    objects = [*squares((1,)), CROWD, annotation(77, 3, 4, 4, 9, segmentation=[])]
    validation = made(config_of(tmp_path, coco=annotated(tmp_path, (1, 2, 3), objects)))
    assert drawn(validation, "annotations") == [1]
    assert validation.shares["annotations"].objects == 2


def test_photographs_that_were_not_drawn_need_not_be_there(tmp_path: Path) -> None:
    coco = annotated(tmp_path, (1, 2, 3, 4))
    kept = drawn(made(config_of(tmp_path, coco=coco, val_limit=2)), "annotations")
    for image_id in {1, 2, 3, 4} - set(kept):
        (coco / "val2017" / f"{image_id}.png").unlink()
    assert drawn(made(config_of(tmp_path, coco=coco, val_limit=2)), "annotations") == kept


# what is refused before training starts -------------------------------------------------------------------------------


def test_a_photograph_that_is_missing_damaged_or_of_another_size_is_refused(
    tmp_path: Path, refused: Callable[..., Any]
) -> None:
    config = config_of(tmp_path, coco=annotated(tmp_path, (1, 2)))
    path = tmp_path / "val2017" / "2.png"
    path.write_bytes((tmp_path / "val2017" / "1.png").read_bytes())
    with refused(ValueError, "2.png is 120 x 90 pixels, its annotations are for 70 x 150"):
        made(config)
    path.write_bytes(b"no picture")
    with refused(ValueError, "2.png is in no format that Pillow reads"):
        made(config)
    path.unlink()
    with refused(ValueError, "1 of 2 photographs are missing"):
        made(config)


def test_a_damaged_photograph_held_out_is_refused_with_the_remedy(tmp_path: Path, refused: Callable[..., Any]) -> None:
    flat = write_flat(tmp_path / "sa1b", range(3))
    held = training_source(config_of(tmp_path).data)
    (flat / "sa_1.jpg").write_bytes(b"no picture")
    with refused(ValueError, "to validate with: .*sa_1.*; leave the photograph out with exclude"):
        made(config_of(tmp_path), held)


def test_an_annotation_that_cannot_be_drawn_is_refused(tmp_path: Path, refused: Callable[..., Any]) -> None:
    objects = [*squares((1,)), annotation(77, 1, 4, 4, 9, segmentation="none")]
    with refused(ValueError, "annotation 77: segmentation is malformed"):
        made(config_of(tmp_path, coco=annotated(tmp_path, (1,), objects)))


def test_a_box_outside_its_photograph_is_refused(tmp_path: Path, refused: Callable[..., Any]) -> None:
    objects = [annotation(77, 1, 4, 4, 9, bbox=[300, 4, 9, 9])]
    with refused(ValueError, "annotation 77: bbox .* lies outside its image of 120 x 90 pixels"):
        made(config_of(tmp_path, coco=annotated(tmp_path, (1,), objects)))


@pytest.mark.parametrize("area", [0, -1, 90 * 120])
def test_the_annotated_area_decides_nothing(tmp_path: Path, area: float) -> None:
    objects = [{**one, "area": area} for one in squares((1, 2))]
    validation = made(config_of(tmp_path, coco=annotated(tmp_path, (1, 2), objects)))
    assert validation.shares["annotations"].objects == 4


@pytest.mark.parametrize("objects", [[CROWD], [EMPTY]], ids=["crowd", "empty"])
def test_photographs_without_an_object_are_refused(
    tmp_path: Path, refused: Callable[..., Any], objects: list[dict[str, Any]]
) -> None:
    with refused(ValueError, r"val_annotations=.*annotations\.json: no object with a pixel"):
        made(config_of(tmp_path, coco=annotated(tmp_path, (1, 2), objects)))


def test_a_held_out_part_without_objects_is_refused_by_name(tmp_path: Path, refused: Callable[..., Any]) -> None:
    held = source_of(tmp_path, range(2), masks=0)
    with refused(ValueError, "held out of .*sa1b.*: no object with a pixel"):
        made(config_of(tmp_path), held)


# several processes ----------------------------------------------------------------------------------------------------

TOGETHER = """
import json, sys
from pathlib import Path
from sam_blvit.checkpoint.load import load_sam, save_sam
from sam_blvit.config import FinetuneConfig, compose
from sam_blvit.data.sources import training_source
from sam_blvit.system.distributed import joined_processes
from sam_blvit.evaluate.in_training.validation import Validation

root = Path(sys.argv[1])

def made(held, coco, processes):
    config = compose(
        FinetuneConfig,
        data=root / "sa1b", output=root / "run", val_annotations=coco / "annotations.json", val_images=coco
    )
    return Validation.of(config, training_source(config.data) if held else None, processes=processes)

with joined_processes() as processes:
    validation = made(True, root, processes)
    seen = {"scores": validation(load_sam(root / "model.safetensors"), keep_ratios=(0.25,)), "told": None}
    for kind, share in validation.shares.items():
        seen[kind] = [[image.image_id for image in share.images], share.photographs, share.objects]
    try:
        made(False, root / "broken", processes)
    except ValueError as error:
        seen["told"] = str(error)
(root / f"{processes.rank}.json").write_text(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Where two processes validated the same student, and what each saw, by rank."""
    root = tmp_path_factory.mktemp("two")
    source_of(root, range(3, 8))
    annotated(root, (1, 2, 3))
    (annotated(root / "broken", (1, 2)) / "val2017" / "2.png").write_bytes(b"no picture")
    torch.manual_seed(0)
    save_sam(build_sam(TINY), root / "model.safetensors")
    run_in_two(TOGETHER, root)
    return root, [json.loads((root / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_share_the_photographs(together: tuple[Path, list[dict[str, Any]]]) -> None:
    _, (first, second) = together
    assert (first["held"], second["held"]) == ([[3, 5, 7], 5, 15], [[4, 6], 5, 15])
    assert (first["annotations"], second["annotations"]) == ([[1, 3], 3, 6], [[2], 3, 6])


def test_two_processes_give_exactly_the_numbers_of_one(together: tuple[Path, list[dict[str, Any]]]) -> None:
    root, seen = together
    alone = made(config_of(root, coco=root), training_source(config_of(root).data))
    scores = alone(load_sam(root / "model.safetensors"), keep_ratios=(0.25,))
    assert [of_one["scores"] for of_one in seen] == [scores] * 2
    assert scores["val@0.25/held/box"] > 0


def test_what_one_process_cannot_read_is_told_to_all(together: tuple[Path, list[dict[str, Any]]]) -> None:
    root, seen = together
    line = f"image {root}/broken/val2017/2.png is in no format that Pillow reads; save it as PNG or JPEG"
    assert [of_one["told"] for of_one in seen] == [line] * 2
