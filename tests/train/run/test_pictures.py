"""Pictures of a step hold the true masks, the answers and the routing of each photograph, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam_blvit.config import ModelConfig
from sam_blvit.data.samples import Sample
from sam_blvit.draw.pictures import draw_objects, routing_map
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.predictor import SamPredictor
from sam_blvit.train.run import pictures
from sam_blvit.train.run.pictures import draw_step

GAP = 8
"""Paper around a panel."""


@pytest.fixture
def sam(tiny: Callable[..., ModelConfig], randomize: Callable[[Sam], Sam]) -> Sam:
    return randomize(build_sam(tiny(keep_ratio=0.25)))


def sample_of(image_id: int = 1, *, masks: int = 2, size: tuple[int, int] = (96, 128), side: int = 64) -> Sample:
    """Grey noise with `masks` rectangles; masks at `side` for 128 pixels."""
    rng = np.random.default_rng(image_id)
    boxes = np.array([[8 + 12 * i, 8, 40 + 12 * i, 72] for i in range(masks)], np.float32).reshape(-1, 4)
    square = np.zeros((masks, side, side), bool)
    for mask, (x0, y0, x1, y1) in zip(square, (boxes * side / 128).astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    return Sample(
        epoch=0,
        image_id=image_id,
        image=torch.from_numpy(rng.integers(0, 256, (3, *size), np.uint8)),
        masks=torch.from_numpy(square),
        boxes=torch.from_numpy(boxes),
        ann_ids=tuple(range(masks)),
        valid=(size[0] * side // 128, size[1] * side // 128),
    )


def drawn(sam: Sam, *samples: Sample, path: Path, **options: float) -> np.ndarray:
    draw_step(sam, samples, path, **options)  # type: ignore[arg-type]
    return np.array(Image.open(path))


def panel(page: np.ndarray, column: int, *, size: tuple[int, int] = (300, 400), columns: int = 4) -> np.ndarray:
    """The picture under the caption of a panel of a page of one row."""
    assert (page.shape[1] - GAP) % columns == 0
    width = (page.shape[1] - GAP) // columns
    left, bottom = GAP + column * width, page.shape[0] - GAP
    return page[bottom - size[0] : bottom, left : left + size[1]]


def shown(sam: Sam, sample: Sample, masks: np.ndarray) -> np.ndarray:
    """`masks` (n, 300, 400) as a panel shows them on the photograph."""
    photograph = pictures.scaled(sample.image.permute(1, 2, 0).numpy(), 400)
    return draw_objects(photograph, masks, boxes=sample.boxes[: len(masks)].numpy() * 400 / 128)


def enlarged(mask: np.ndarray) -> np.ndarray:
    return np.array(Image.fromarray(mask).resize((400, 300), Image.Resampling.NEAREST))


def test_the_first_panel_shows_the_first_three_true_masks(sam: Sam, tmp_path: Path) -> None:
    sample = sample_of(masks=5)
    masks = np.stack([enlarged(mask) for mask in sample.masks[:3, :48].numpy()])
    np.testing.assert_array_equal(panel(drawn(sam, sample, path=tmp_path / "p.png"), 0), shown(sam, sample, masks))


def test_the_second_panel_shows_the_answers_of_the_predictor(sam: Sam, tmp_path: Path) -> None:
    sample = sample_of()
    page = drawn(sam, sample, path=tmp_path / "p.png")
    predictor = SamPredictor(sam.eval())
    predictor.set_image(sample.image.permute(1, 2, 0).numpy())
    answers = []
    for box in sample.boxes.numpy():
        masks, predicted, _ = predictor.predict(box=box, multimask_output=True)
        answers.append(enlarged(masks[predicted.argmax()]))
    assert 0 < np.mean(answers) < 1
    difference = (panel(page, 1) != shown(sam, sample, np.stack(answers))).any(axis=2)
    assert difference.mean() < 0.005  # near ties: prompts of a batch and one by one round differently


def test_each_router_has_a_panel_that_darkens_what_waits(sam: Sam, tmp_path: Path) -> None:
    sample = sample_of()
    page = drawn(sam, sample, path=tmp_path / "p.png")
    encoding = sam.eval().encode_photograph(sample.image)
    bright = pictures.scaled(sample.image.permute(1, 2, 0).numpy(), 400)
    for column, (_, routing) in enumerate(sorted(encoding.routings.items()), start=2):
        chosen = np.repeat(np.repeat(routing_map(routing, encoding.layout)[:6], 50, axis=0), 50, axis=1)
        same = (panel(page, column) == bright).all(axis=2)
        np.testing.assert_array_equal(same, chosen)


def test_a_photograph_without_masks_shows_its_routing_and_no_answer(sam: Sam, tmp_path: Path) -> None:
    sample = sample_of(masks=0)
    page = drawn(sam, sample, path=tmp_path / "p.png")
    plain = pictures.scaled(sample.image.permute(1, 2, 0).numpy(), 400)
    np.testing.assert_array_equal(panel(page, 0, columns=3), plain)
    assert not np.array_equal(panel(page, 1, columns=3), plain)


def test_the_keep_ratio_of_the_step_or_another_decides_about_routing(sam: Sam, tmp_path: Path) -> None:
    sam.image_encoder.keep_ratio = 1
    assert drawn(sam, sample_of(), path=tmp_path / "p.png").shape[1] == GAP + 2 * (400 + GAP)
    assert drawn(sam, sample_of(), path=tmp_path / "p.png", keep_ratio=0.5).shape[1] == GAP + 4 * (400 + GAP)


def test_photographs_of_any_form_have_a_row_each_up_to_the_most(sam: Sam, tmp_path: Path) -> None:
    samples = [sample_of(1), sample_of(2, size=(128, 64)), sample_of(3, masks=0), sample_of(4)]
    heights = [drawn(sam, sample, path=tmp_path / "p.png").shape[0] for sample in samples]
    page = drawn(sam, *samples, path=tmp_path / "all.png", most=3)
    assert page.shape[0] == sum(heights[:3])
    assert len(set(heights)) == 2


def test_drawing_leaves_the_student_as_it_was(sam: Sam, tmp_path: Path) -> None:
    sam.train()
    sam.mask_decoder.eval()
    modes = [module.training for module in sam.modules()]
    drawn(sam, sample_of(), path=tmp_path / "p.png", keep_ratio=0.5)
    assert [module.training for module in sam.modules()] == modes
    assert sam.image_encoder.keep_ratio == 0.25
    assert {parameter.grad for parameter in sam.parameters()} == {None}


def test_a_step_of_damaged_photographs_alone_draws_nothing(sam: Sam, tmp_path: Path) -> None:
    draw_step(sam, [], tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []


def test_the_picture_is_written_as_a_whole_into_a_directory_that_is_made(sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "pictures" / "step_00000001.png"
    drawn(sam, sample_of(), path=path)
    assert list(path.parent.iterdir()) == [path]
