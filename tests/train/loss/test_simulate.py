"""The first prompts and the points at errors, against the descriptions of SAM, EfficientViT-SAM and this package."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sam_blvit.data.samples import Sample
from sam_blvit.train.loss.prompts import PromptBatch, add_error_points, draw_prompts, noisy_boxes, plan_rounds
from sam_blvit.train.loss.sampling import Draws
from sam_blvit.train.loss.terms import Heads, TargetMasks

SIZE, SIDE = 128, 64


def sample(masks: int, *, image_id: int = 1) -> Sample:
    """An image of 96 x 128 with the same mask `masks` times, at half resolution."""
    mask = torch.zeros(masks, SIDE, SIDE, dtype=torch.bool)
    mask[:, 10:20, 30:50] = True
    return Sample(
        epoch=0,
        image_id=image_id,
        image=torch.zeros(3, 96, 128, dtype=torch.uint8),
        masks=mask,
        boxes=torch.tensor([[60.0, 20.0, 100.0, 40.0]]).repeat(masks, 1),
        ann_ids=tuple(range(100, 100 + masks)),
        valid=(48, 64),
    )


def drawn(of: Sample, style: str = "mixed", seed: int = 0) -> list[PromptBatch]:
    return draw_prompts(of, style, image_size=SIZE, draws=Draws(seed, of.epoch, of.image_id))


def of_mask(prompts: list[PromptBatch], ann_id: int) -> tuple[Tensor, Tensor]:
    """Coordinates and labels that a mask is asked for by."""
    ((group, i),) = [(group, group.ann_ids.index(ann_id)) for group in prompts if ann_id in group.ann_ids]
    return group.coords[i], group.labels[i]


@pytest.mark.parametrize(
    ("style", "shares"), [("mixed", (0.5, 0.25, 0.25)), ("sam11", (0.5, 0.5)), ("evs", (0.5, 0.5))]
)
def test_shares_of_boxes_of_one_point_and_of_several(style: str, shares: tuple[float, ...]) -> None:
    prompts = drawn(sample(4000), style)
    assert len(prompts) == len(shares)
    for group, share in zip(prompts, shares, strict=True):
        assert abs(len(group.masks) / 4000 - share) < 0.03
    assert sorted(mask for group in prompts for mask in group.masks.tolist()) == list(range(4000))
    assert all(group.ann_ids == tuple(100 + i for i in group.masks.tolist()) for group in prompts)


@pytest.mark.parametrize(("style", "fewest"), [("mixed", 2), ("evs", 1)])
def test_several_points_are_up_to_ten_and_as_many_for_all_masks_of_an_image(style: str, fewest: int) -> None:
    counts = {drawn(sample(40), style, seed)[-1].labels.shape[1] - 1 for seed in range(100)}
    assert counts == set(range(fewest, 11))


def test_every_prompt_has_the_tokens_that_sam_gives_it_and_no_padding_else() -> None:
    boxes, one, several = drawn(sample(100))
    assert (boxes.labels == torch.tensor([2, 3])).all()
    assert (one.labels == torch.tensor([1, -1])).all()
    assert (several.labels[:, :-1] == 1).all()
    assert (several.labels[:, -1] == -1).all()


def test_one_point_is_answered_by_the_best_of_three_several_by_one_and_a_box_by_both() -> None:
    assert [group.heads for group in drawn(sample(100))] == [Heads.BOTH, Heads.MULTI, Heads.SINGLE]
    single = {group.labels.shape[1]: group.heads for seed in range(40) for group in drawn(sample(9), "evs", seed)[1:]}
    assert single[2] is Heads.MULTI
    assert single[3] is Heads.SINGLE


@pytest.mark.parametrize("style", ["mixed", "sam11", "evs"])
def test_points_are_centres_of_pixels_of_the_object(style: str) -> None:
    target = sample(500)
    for group in drawn(target, style)[1:]:
        column, row = ((group.coords[:, :-1, i] + 0.5) * (SIDE / SIZE) - 0.5 for i in range(2))
        torch.testing.assert_close(column, column.round())
        assert target.masks[0, row.long(), column.long()].all()
        assert len(torch.stack([column, row], -1).flatten(0, 1).unique(dim=0)) > 80  # of 200 pixels
        count = column.shape[1]
        assert sum(len(points.unique(dim=0)) for points in group.coords[:, :-1]) > 0.9 * count * len(group.masks)


def test_boxes_of_efficientvit_sam_have_no_noise_and_those_of_the_others_do() -> None:
    exact = torch.tensor([[[60.0, 20.0], [100.0, 40.0]]])
    assert (drawn(sample(50), "evs")[0].coords == exact).all()
    for style in ("mixed", "sam11"):
        shift = (drawn(sample(2000), style)[0].coords - exact).abs()
        assert shift.max() == 2.5
        assert abs(shift[..., 1].median() - 0.6745 * 2) < 0.1  # of a side of 20; no cap moves a median


def test_box_noise_is_a_tenth_of_the_side_with_caps() -> None:
    boxes = torch.tensor([[40.0, 30.0, 60.0, 70.0]]).repeat(5000, 1)
    noise = torch.randn(5000, 4)
    moved = noisy_boxes(boxes, noise, size=(96, 128), image_size=1024) - boxes
    assert abs(moved[:, 0].std() - 2) < 0.1  # width 20
    assert abs(moved[:, 3].std() - 4) < 0.2  # height 40
    large = noisy_boxes(boxes * 10, noise, size=(960, 1280), image_size=1024) - boxes * 10
    assert large.abs().max() == 20
    small = noisy_boxes(boxes * 10, noise, size=(960, 1280), image_size=512) - boxes * 10
    assert small.abs().max() == 10


def test_noise_leaves_boxes_on_the_photograph() -> None:
    whole = torch.tensor([[0.0, 0.0, 128.0, 96.0]]).repeat(99, 1)
    moved = noisy_boxes(whole, torch.randn(99, 4), size=(96, 128), image_size=1024)
    assert moved.min() == 0
    assert moved[:, 2].max() == 128
    assert moved[:, 3].max() == 96


def test_no_noise_turns_a_box_inside_out() -> None:
    box = torch.tensor([[40.0, 30.0, 60.0, 70.0]])
    moved = noisy_boxes(box, torch.tensor([[7.0, 0.0, -7.0, 0.0]]), size=(96, 128), image_size=1024)
    torch.testing.assert_close(moved, torch.tensor([[46.0, 30.0, 54.0, 70.0]]))


@pytest.mark.parametrize("style", ["mixed", "sam11", "evs"])
def test_a_mask_is_asked_for_alike_whatever_masks_are_drawn_beside_it_and_in_whatever_order(style: str) -> None:
    whole = sample(30)
    chosen = torch.tensor([17, 4, 25])
    ids = tuple(whole.ann_ids[i] for i in chosen)
    part = replace(whole, masks=whole.masks[chosen], boxes=whole.boxes[chosen], ann_ids=ids)
    for ann_id in ids:
        for in_whole, in_part in zip(
            of_mask(drawn(whole, style), ann_id), of_mask(drawn(part, style), ann_id), strict=True
        ):
            assert torch.equal(in_whole, in_part)


def test_prompts_change_with_seed_epoch_and_image() -> None:
    first = drawn(sample(30))
    for other in (drawn(sample(30), seed=1), drawn(replace(sample(30), epoch=1)), drawn(sample(30, image_id=2))):
        assert [group.ann_ids for group in other] != [group.ann_ids for group in first]


def asked_again(answer: Tensor, target: Tensor, seed: int = 0) -> PromptBatch:
    prompts = PromptBatch(
        torch.arange(len(target)),
        tuple(range(len(target))),
        torch.zeros(len(target), 2, 2, device=target.device),
        torch.ones(len(target), 2, device=target.device).long(),
        Heads.SINGLE,
    )
    draws = torch.rand(len(target), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return add_error_points(prompts, answer, TargetMasks(target, (48, 64)), image_size=SIZE, draws=draws)


def test_new_points_lie_in_the_error_and_say_on_which_side_it_is() -> None:
    target = torch.zeros(400, SIDE, SIDE, dtype=torch.bool)
    target[:, 10:20, 30:50] = True
    answer = torch.zeros_like(target)
    answer[:, 15:25, 30:50] = True
    again = asked_again(answer[:, :48, :64], target)
    column, row = ((again.coords[:, 2, i] + 0.5) * (SIDE / SIZE) - 0.5 for i in range(2))
    column, row = column.long(), row.long()
    assert (answer ^ target)[0, row, column].all()
    assert torch.equal(again.labels[:, 2] == 1, target[0, row, column])
    assert abs((again.labels[:, 2] == 1).float().mean() - 0.5) < 0.08
    assert set(again.labels[:, 2].tolist()) == {0, 1}


def test_errors_of_the_padding_are_none() -> None:
    target = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    target[:, 50:] = True
    answer = torch.zeros(1, 48, 64, dtype=torch.bool)
    answer[:, 5, 6] = True
    for seed in range(20):
        again = asked_again(answer, target, seed)
        assert again.coords[0, 2].tolist() == [12.5, 10.5]
        assert again.labels[0, 2] == 0


def test_a_mask_without_an_error_gets_a_token_that_is_no_point_beside_others_points() -> None:
    target = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    target[:, 10:20, 30:50] = True
    answer = target[:, :48, :64].clone()
    answer[1, 12, 30] = False
    assert asked_again(answer, target).labels[:, 2].tolist() == [-1, 1]


def test_without_any_error_all_get_a_token_that_is_no_point() -> None:
    target = torch.rand(2, SIDE, SIDE) > 0.5
    again = asked_again(target[:, :48, :64], target)
    assert again.labels.tolist() == [[1, 1, -1], [1, 1, -1]]
    assert again.coords.shape == (2, 3, 2)


@pytest.mark.parametrize("style", ["mixed", "sam11", "evs"])
def test_first_prompts_are_drawn_without_waiting_for_the_device(style: str) -> None:
    masks = sample(100).masks.to("meta")  # has no values: to ask for one is an error
    assert all(
        group.coords.is_meta and group.labels.is_meta for group in drawn(replace(sample(100), masks=masks), style)
    )


def test_new_points_are_drawn_without_waiting_for_the_device() -> None:
    target = torch.zeros(3, SIDE, SIDE, dtype=torch.bool, device="meta")
    assert asked_again(target[:, :48, :64], target).labels.shape == (3, 3)


def test_mixed_prompts_end_with_a_round_without_a_new_point() -> None:
    assert plan_rounds("mixed", 2, Draws(0, 0, 0)) == [True, True, False]
    assert plan_rounds("evs", 2, Draws(0, 0, 0)) == []


def test_eleven_rounds_of_sam_have_eight_new_points_and_one_pause_among_them() -> None:
    plans = [plan_rounds("sam11", 2, Draws(0, 0, image_id)) for image_id in range(100)]
    assert all(len(plan) == 10 and sum(plan) == 8 and not plan[-1] for plan in plans)
    assert {plan.index(False) for plan in plans} == set(range(1, 8))
