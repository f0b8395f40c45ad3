import torch

from sam_blvit.data.sa1b import Sample
from sam_blvit.train.simulate import Prompts, draw_points, draw_prompts, noisy_boxes, uniform_points

SIZE = 128


def sample(masks: int) -> Sample:
    """An image of 96 x 128 with the same mask `masks` times, at half resolution."""
    mask = torch.zeros(masks, 64, 64, dtype=torch.bool)
    mask[:, 10:20, 30:50] = True
    box = torch.tensor([[60.0, 20.0, 100.0, 40.0]]).repeat(masks, 1)
    return Sample(image_id=1, image=torch.zeros(3, 96, 128, dtype=torch.uint8), masks=mask, boxes=box, valid=(48, 64))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_kind(masks: int, seed: int = 0) -> tuple[Prompts, Prompts, Prompts]:
    boxes, one, several = draw_prompts(sample(masks), SIZE, generator(seed))
    return boxes, one, several


def points_of(prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
    assert prompts.points is not None
    return prompts.points


def test_half_of_the_prompts_are_boxes_a_quarter_one_point_and_a_quarter_several() -> None:
    kinds = by_kind(4000)
    for prompts, share in zip(kinds, (0.5, 0.25, 0.25), strict=True):
        assert abs(len(prompts.masks) / 4000 - share) < 0.03
    assert sorted(mask for prompts in kinds for mask in prompts.masks.tolist()) == list(range(4000))


def test_several_points_are_two_to_ten_and_as_many_for_all_masks_of_an_image() -> None:
    counts = {points_of(by_kind(40, seed)[2])[1].shape[1] for seed in range(100)}
    assert counts == set(range(2, 11))
    assert points_of(by_kind(40)[1])[1].shape[1] == 1


def test_no_prompt_is_padded() -> None:
    for prompts in by_kind(100)[1:]:
        assert set(points_of(prompts)[1].unique().tolist()) <= {0, 1}


def test_one_point_is_answered_by_the_best_of_three_several_by_one_and_a_box_by_both() -> None:
    boxes, one, several = by_kind(100)
    assert (boxes.single == 0.5).all()
    assert (boxes.multi == 0.5).all()
    assert (one.single == 0).all()
    assert (one.multi == 1).all()
    assert (several.single == 1).all()
    assert (several.multi == 0).all()


def test_points_lie_on_the_object_or_off_it_as_their_labels_say() -> None:
    target = sample(3000)
    xy, labels = draw_points(target, torch.arange(3000), 3, SIZE, generator())
    scale = SIZE / 64
    column, row = ((xy[..., i] + 0.5) / scale - 0.5 for i in range(2))
    torch.testing.assert_close(column, column.round())
    assert torch.equal(target.masks[0, row.long(), column.long()], labels == 1)
    assert row.max() < target.valid[0]
    assert (labels[:, 0] == 1).all()
    assert abs((labels[:, 1:] == 0).float().mean() - 0.2) < 0.02


def test_points_cover_the_mask() -> None:
    xy = uniform_points(sample(1).masks, 2000, SIZE, generator())
    assert len(torch.unique(xy[0], dim=0)) > 190  # of 200 pixels


def test_box_noise_is_a_tenth_of_the_side_capped_and_inside_the_image() -> None:
    boxes = torch.tensor([[40.0, 30.0, 60.0, 70.0]]).repeat(5000, 1)
    noisy = noisy_boxes(boxes, torch.Size((96, 128)), 1024, generator())
    shift = noisy - boxes
    assert abs(shift[:, 0].std() - 2) < 0.1  # width 20
    assert abs(shift[:, 1].std() - 4) < 0.2  # height 40
    capped = noisy_boxes(boxes * 10, torch.Size((960, 1280)), 1024, generator()) - boxes * 10
    assert capped.abs().max() == 20
    edge = noisy_boxes(torch.tensor([[0.0, 0.0, 128.0, 96.0]]).repeat(99, 1), torch.Size((96, 128)), 1024, generator())
    assert edge.min() == 0
    assert edge[:, 2].max() == 128
    assert edge[:, 3].max() == 96


def test_the_same_generator_draws_the_same_prompts() -> None:
    first, again = (draw_prompts(sample(20), SIZE, generator(7)) for _ in range(2))
    other = draw_prompts(sample(20), SIZE, generator(8))
    assert torch.equal(first[0].masks, again[0].masks)
    assert not torch.equal(first[0].masks, other[0].masks)
