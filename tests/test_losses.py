import pytest
import torch
import torch.nn.functional as F

from sam_blvit.train.losses import dice_loss, distillation_loss, focal_loss, mask_iou, mask_loss

ALL = torch.ones(8, 8, dtype=torch.bool)


def embeddings() -> torch.Tensor:
    return torch.randn(2, 256, 4, 4)


def test_identical_features_cost_nothing_and_opposite_ones_two() -> None:
    x, valid = embeddings(), torch.ones(2, 4, 4)
    torch.testing.assert_close(distillation_loss(x, x, valid), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(distillation_loss(-x, x, valid), torch.tensor(2.0))


def test_orthogonal_features_cost_one() -> None:
    x, y = torch.zeros(1, 256, 4, 4), torch.zeros(1, 256, 4, 4)
    x[:, 0], y[:, 1] = 1, 1
    torch.testing.assert_close(distillation_loss(x, y, torch.ones(1, 4, 4)), torch.tensor(1.0))


def test_features_of_the_padding_do_not_count() -> None:
    x, y = embeddings(), embeddings()
    valid = torch.zeros(2, 4, 4)
    valid[:, :2] = 1
    changed = y.clone()
    changed[:, :, 2:] += 100
    torch.testing.assert_close(distillation_loss(x, y, valid), distillation_loss(x, changed, valid))


def test_a_gradient_step_on_distillation_raises_the_cosine() -> None:
    x, y = embeddings().requires_grad_(), embeddings()
    before = F.cosine_similarity(x, y, dim=1).mean()
    distillation_loss(x, y, torch.ones(2, 4, 4)).backward()
    assert x.grad is not None
    assert F.cosine_similarity(x - 100 * x.grad, y, dim=1).mean() > before + 0.001


def test_no_gradient_reaches_the_teacher() -> None:
    x, y = embeddings().requires_grad_(), embeddings().requires_grad_()
    distillation_loss(x, y, torch.ones(2, 4, 4)).backward()
    assert y.grad is None


def test_focal_loss_is_the_formula_of_its_paper() -> None:
    logits, target = torch.randn(2, 4, 8, 8), torch.randint(0, 2, (2, 4, 8, 8)).float()
    p = logits.sigmoid()
    p_true = torch.where(target > 0, p, 1 - p)
    alpha = torch.where(target > 0, 0.25, 0.75)
    expected = (-alpha * (1 - p_true) ** 2 * p_true.log()).mean(dim=(-2, -1))
    torch.testing.assert_close(focal_loss(logits, target, ALL), expected)


def test_dice_of_a_sure_and_right_mask_is_zero_and_of_an_empty_one_near_one() -> None:
    target = torch.zeros(1, 1, 8, 8)
    target[..., :4, :] = 1
    sure = (target * 2 - 1) * 50
    torch.testing.assert_close(dice_loss(sure, target, ALL), torch.zeros(1, 1))
    assert dice_loss(torch.full_like(sure, -50), target, ALL).item() > 0.95


def test_pixels_outside_the_photograph_do_not_count() -> None:
    valid = ALL.clone()
    valid[6:] = False
    logits, target = torch.randn(2, 4, 8, 8), torch.rand(2, 8, 8) > 0.5
    changed = logits.clone()
    changed[..., 6:, :] *= -3
    iou, ones = torch.rand(2, 4), torch.ones(2)
    for name in ("total", "focal", "dice", "iou"):
        a, b = (
            getattr(mask_loss(x, iou, target, valid=valid, single=ones, multi=ones), name) for x in (logits, changed)
        )
        torch.testing.assert_close(a, b)


def test_iou_counts_pixels() -> None:
    masks, target = torch.zeros(1, 1, 8, 8, dtype=torch.bool), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    masks[..., :4, :], target[..., 2:6, :] = True, True
    torch.testing.assert_close(mask_iou(masks, target, ALL), torch.tensor([[1 / 3]]))


@pytest.mark.parametrize(
    ("single", "multi", "heads", "rated"),
    [(1.0, 0.0, {0}, {0}), (0.0, 1.0, {2}, {1, 2, 3}), (0.5, 0.5, {0, 2}, {0, 1, 2, 3})],
)
def test_the_head_that_answers_the_prompt_is_trained_and_all_that_could_have_are_rated(
    single: float, multi: float, heads: set[int], rated: set[int]
) -> None:
    target = torch.rand(1, 8, 8) > 0.5
    logits = torch.randn(1, 4, 8, 8)
    logits[:, 2] += (target.float() * 2 - 1) * 3  # the best of the three
    logits.requires_grad_()
    iou = torch.rand(1, 4).requires_grad_()
    loss = mask_loss(logits, iou, target, valid=ALL, single=torch.tensor([single]), multi=torch.tensor([multi]))
    loss.total.sum().backward()
    assert logits.grad is not None
    assert iou.grad is not None
    assert {h for h in range(4) if logits.grad[0, h].abs().sum() > 0} == heads
    assert {h for h in range(4) if iou.grad[0, h] != 0} == rated


def test_the_predicted_iou_is_pulled_to_the_real_one() -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.bool)
    target[:, :4] = True
    logits = torch.full((1, 4, 8, 8), -9.0)
    logits[:, :, :2] = 9  # half of the target: IoU 0.5
    loss = mask_loss(logits, torch.full((1, 4), 0.9), target, valid=ALL, single=torch.ones(1), multi=torch.zeros(1))
    torch.testing.assert_close(loss.iou, torch.tensor([0.4**2]))
