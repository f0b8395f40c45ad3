"""Draws depend only on their purpose; points sampled with them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sam_blvit.train.loss.sampling import (
    Draws,
    Purpose,
    at_places,
    loss_places,
    mask_at_places,
    pixel_centres,
    uniform_pixels,
)

DRAWS = Draws(seed=1, epoch=2, image_id=3)


def numbers(draws: Draws, ann_id: int, round_number: int, purpose: Purpose) -> tuple[float, ...]:
    (generator,) = draws.masks([ann_id], round_number, purpose)
    return tuple(generator.random(3))


def places(logits: Tensor, ann_ids: list[int], *, round_number: int = 0, count: int = 400) -> Tensor:
    return loss_places(
        logits, draws=DRAWS, ann_ids=ann_ids, round_number=round_number, count=count, covered=(0.75, 1.0)
    )


def test_a_mask_draws_the_same_whatever_is_drawn_beside_it() -> None:
    among = DRAWS.masks([7, 8, 9], 1, Purpose.PROMPT)[1]
    assert tuple(among.random(3)) == numbers(DRAWS, 8, 1, Purpose.PROMPT)


def test_seed_epoch_image_annotation_round_and_purpose_all_change_the_draw() -> None:
    drawn = [
        numbers(Draws(seed, epoch, image), ann_id, number, purpose)
        for seed in (0, 1)
        for epoch in (0, 1)
        for image in (0, 1)
        for ann_id in (0, 1, 2**40)
        for number in (0, 1)
        for purpose in Purpose
    ]
    of_images = [tuple(DRAWS.image(number, purpose).random(3)) for number in (0, 1) for purpose in Purpose]
    assert len(set(drawn + of_images)) == len(drawn) + len(of_images)


def test_draws_have_nothing_in_common_with_those_of_the_data() -> None:
    of_data = tuple(np.random.default_rng([1, 2, 3]).random(3))
    assert of_data not in [tuple(DRAWS.image(0, purpose).random(3)) for purpose in Purpose]


def test_pixels_are_those_that_counting_finds() -> None:
    regions = torch.rand(6, 9, 7) > 0.6
    regions[0] = False
    regions[0, 8, 6] = True
    regions[1] = True
    draws = torch.rand(6, 5, dtype=torch.float64)
    draws[:, 0], draws[:, 1] = 0, 1 - 1e-16
    pixels, found = uniform_pixels(regions, draws)
    assert found.all()
    for region, us, chosen in zip(regions, draws, pixels, strict=True):
        true = [(x, y) for y in range(9) for x in range(7) if region[y, x]]
        assert [tuple(pixel) for pixel in chosen.tolist()] == [true[math.floor(u * len(true))] for u in us]


def test_a_draw_that_is_rounded_up_to_1_is_the_last_pixel() -> None:
    regions = torch.zeros(1, 4, 4, dtype=torch.bool)
    regions[0, 1, :3] = True
    pixels, _ = uniform_pixels(regions, torch.tensor([[1 - 2**-53]], dtype=torch.float64).float())
    assert pixels.tolist() == [[[2, 1]]]


def test_an_empty_region_is_said_and_disturbs_no_other() -> None:
    regions = torch.zeros(2, 4, 4, dtype=torch.bool)
    regions[1, 2, 3] = True
    pixels, found = uniform_pixels(regions, torch.full((2, 1), 0.9, dtype=torch.float64))
    assert found.tolist() == [False, True]
    assert pixels[1].tolist() == [[3, 2]]
    assert 0 <= pixels.min() <= pixels.max() < 4


def test_pixels_are_uniform_in_the_region() -> None:
    region = torch.zeros(1, 12, 12, dtype=torch.bool)
    region[0, 2:6, 3:8] = True
    region[0, 9, ::2] = True
    draws = torch.from_numpy(np.random.default_rng(0).random((1, 26000)))
    (pixels,), _ = uniform_pixels(region, draws)
    counts = torch.bincount(pixels[:, 1] * 12 + pixels[:, 0], minlength=144)[region.flatten()].double()
    assert counts.sum() == 26000
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert 11 < chi_square < 44  # 25 degrees of freedom, 1 % on either side


@pytest.mark.parametrize(("side", "expected"), [(64, [0.5, 126.5]), (256, [-0.25, 31.25]), (128, [0.0, 63.0])])
def test_points_are_centres_of_pixels_in_the_frame_of_the_image(side: int, expected: list[float]) -> None:
    torch.testing.assert_close(pixel_centres(torch.tensor([0, 63]), side, 128), torch.tensor(expected))


def test_values_at_the_centres_of_pixels_are_those_of_upsampling() -> None:
    logits = torch.randn(2, 3, 8, 8)
    y, x = torch.meshgrid((torch.arange(32) + 0.5) / 32, (torch.arange(32) + 0.5) / 32, indexing="ij")
    centres = torch.stack([x, y], dim=-1).flatten(0, 1).expand(2, -1, 2)
    expected = F.interpolate(logits, (32, 32), mode="bilinear").flatten(2)[:, :, None]
    torch.testing.assert_close(at_places(logits, centres), expected)


def test_masks_are_interpolated_as_their_floats_would_be() -> None:
    masks = torch.rand(3, 16, 16) > 0.5
    anywhere = torch.rand(3, 200, 2)
    anywhere[:, :2] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(mask_at_places(masks, anywhere), at_places(masks[:, None].float(), anywhere))


def test_places_lie_on_the_photograph_and_three_quarters_of_them_where_the_answer_is_unsure() -> None:
    logits = torch.full((2, 1, 32, 32), 9.0)
    logits[0, :, :, 8:16] = 0.1  # a quarter of the candidates: 1 of 1.2 that PointRend wants
    chosen = places(logits, [5, 6])
    assert chosen.shape == (2, 400, 2)
    assert (chosen >= 0).all()
    assert chosen[..., 1].max() < 0.75
    assert chosen[..., 0].max() > 0.9
    inside = (chosen[0, :, 0] > 0.22) & (chosen[0, :, 0] < 0.53)
    assert inside[:300].float().mean() > 0.95
    assert 0.2 < inside[300:].float().mean() < 0.42


def test_the_least_sure_of_several_outputs_decides_where_to_look() -> None:
    logits = torch.full((1, 3, 32, 32), 9.0)
    logits[:, 1, :, :8], logits[:, 2, :, 24:] = 0.1, -0.1
    x = places(logits, [5])[0, :300, 0]
    assert ((x < 0.3) | (x > 0.7)).all()


def test_each_mask_and_round_has_its_own_places_whatever_is_beside_it() -> None:
    logits = torch.randn(2, 1, 8, 8)
    both = places(logits, [5, 6])
    torch.testing.assert_close(places(logits[1:], [6]), both[1:])
    assert not torch.equal(places(logits[:1].expand(2, -1, -1, -1), [5, 6])[1], both[0])
    assert not torch.equal(places(logits, [5, 6], round_number=1), both)


def test_places_are_drawn_and_masks_looked_up_without_waiting_for_the_device() -> None:
    chosen = places(torch.empty(2, 3, 8, 8, device="meta"), [5, 6])  # has no values: to ask for one is an error
    assert chosen.is_meta
    assert mask_at_places(torch.empty(2, 16, 16, dtype=torch.bool, device="meta"), chosen).is_meta


def test_without_anything_unsure_places_are_uniform() -> None:
    chosen = places(torch.ones(1, 1, 8, 8), [5], count=8000)[0, 6000:]
    cells = (chosen[:, 0] * 5).long() + 5 * (chosen[:, 1] / 0.75 * 5).long()
    counts = torch.bincount(cells, minlength=25).double()
    assert 10 < ((counts - 80) ** 2 / 80).sum() < 43  # 24 degrees of freedom
