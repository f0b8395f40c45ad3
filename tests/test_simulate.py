import torch

from sam_blvit.data.sa1b import Sample
from sam_blvit.train.simulate import NOT_A_POINT, draw_prompts, noisy_boxes, uniform_points

SIZE = 128


def sample(masks: int) -> Sample:
    """An image of 96 x 128 with the same mask `masks` times, at half resolution."""
    mask = torch.zeros(masks, 64, 64, dtype=torch.bool)
    mask[:, 10:20, 30:50] = True
    box = torch.tensor([[60.0, 20.0, 100.0, 40.0]]).repeat(masks, 1)
    return Sample(image_id=1, image=torch.zeros(3, 96, 128, dtype=torch.uint8), masks=mask, boxes=box, valid=(48, 64))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_half_of_the_prompts_are_boxes_a_quarter_one_point_and_a_quarter_several() -> None:
    boxes, points = draw_prompts(sample(4000), SIZE, generator())
    assert abs(len(boxes.masks) / 4000 - 0.5) < 0.03
    assert points.points is not None
    counts = (points.points[1] == 1).sum(1)
    assert abs((counts == 1).sum() / 4000 - 0.25) < 0.03
    assert set(counts.tolist()) == set(range(1, 11))
    assert sorted([*boxes.masks.tolist(), *points.masks.tolist()]) == list(range(4000))


def test_one_point_is_answered_by_the_best_of_three_several_by_one_and_a_box_by_both() -> None:
    boxes, points = draw_prompts(sample(100), SIZE, generator())
    assert (boxes.single == 0.5).all()
    assert (boxes.multi == 0.5).all()
    assert points.points is not None
    several = (points.points[1] == 1).sum(1) > 1
    assert torch.equal(points.single, several.float())
    assert torch.equal(points.multi, 1 - several.float())


def test_points_lie_in_the_mask_and_cover_it() -> None:
    target = sample(1)
    xy, labels = uniform_points(target.masks, torch.tensor([2000]), SIZE, generator())
    assert (labels == 1).all()
    scale = SIZE / 64
    column, row = ((xy[0, :, i] + 0.5) / scale - 0.5 for i in range(2))
    torch.testing.assert_close(column, column.round())
    assert target.masks[0, row.long(), column.long()].all()
    assert len(torch.unique(xy[0], dim=0)) > 190  # of 200 pixels


def test_ragged_prompts_are_padded_with_points_that_are_none() -> None:
    _, labels = uniform_points(sample(2).masks, torch.tensor([1, 3]), SIZE, generator())
    assert labels.tolist() == [[1, NOT_A_POINT, NOT_A_POINT], [1, 1, 1]]


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
