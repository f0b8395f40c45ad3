"""The losses, against their formulas written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sam_blvit.model.windows import WindowLayout
from sam_blvit.train.loss.terms import (
    Distillation,
    Heads,
    OutputScores,
    TargetMasks,
    answer_of,
    compare,
    distillation_loss,
    focal_and_dice,
    listwise_loss,
    mask_iou,
    mask_loss,
)

EVERYWHERE = torch.ones(2, 4, 4)


def embeddings() -> Tensor:
    return torch.randn(2, 256, 4, 4)


def per_token(distillation: Distillation) -> Tensor:
    return distillation.cosine / distillation.tokens


@pytest.mark.parametrize(("angle", "expected"), [(0, 0.0), (60, 0.5), (90, 1.0), (180, 2.0)])
def test_the_cosine_loss_of_a_token_goes_from_nothing_to_two(angle: int, expected: float) -> None:
    x, y = torch.zeros(2, 256, 4, 4), torch.zeros(2, 256, 4, 4)
    x[:, 0] = 3
    y[:, 0], y[:, 1] = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    torch.testing.assert_close(per_token(distillation_loss(x, y, EVERYWHERE)), torch.tensor(expected))


def test_distillation_sums_over_tokens_what_loops_do() -> None:
    x, y, valid = embeddings(), embeddings(), torch.rand(2, 4, 4) > 0.3
    cosines, squares, ratios = [], [], []
    for b in range(2):
        for row in range(4):
            for column in range(4):
                if valid[b, row, column]:
                    s, t = x[b, :, row, column], y[b, :, row, column]
                    cosines.append((s @ t / (s @ s).sqrt() / (t @ t).sqrt()).item())
                    squares.append(sum((a - b) ** 2 for a, b in zip(s.tolist(), t.tolist(), strict=True)) / 256)
                    ratios.append(((s @ s) / (t @ t)).sqrt().item())
    found = distillation_loss(x, y, valid)
    assert found.tokens == len(cosines)
    assert found.cosine.item() == pytest.approx(sum(1 - c for c in cosines), rel=1e-5)
    assert found.mse.item() == pytest.approx(sum(squares), rel=1e-5)
    assert found.mean_cosine.item() == pytest.approx(sum(cosines) / len(cosines), rel=1e-4)
    assert found.norm_ratio.item() == pytest.approx(sum(ratios) / len(ratios), rel=1e-5)
    lower = sum(c < found.low_cosine.item() for c in cosines)
    assert 0.01 < lower / len(cosines) < 0.1


def test_features_of_the_padding_do_not_count() -> None:
    x, y = embeddings().requires_grad_(), embeddings()
    valid = torch.zeros(2, 4, 4)
    valid[:, :2] = 1
    changed = y.clone()
    changed[:, :, 2:] = torch.nan
    first, second = distillation_loss(x, y, valid), distillation_loss(x, changed, valid)
    for name in ("cosine", "mse", "tokens", "mean_cosine", "low_cosine", "norm_ratio"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    (second.cosine + second.mse).backward()
    assert x.grad is not None
    assert (x.grad[:, :, 2:] == 0).all()
    assert (x.grad[:, :, :2] != 0).any()


def test_a_gradient_step_on_distillation_raises_the_cosine() -> None:
    x, y = embeddings().requires_grad_(), embeddings()
    before = F.cosine_similarity(x, y, dim=1).mean()
    per_token(distillation_loss(x, y, EVERYWHERE)).backward()
    assert x.grad is not None
    assert F.cosine_similarity(x - 100 * x.grad, y, dim=1).mean() > before + 0.001


def test_no_gradient_reaches_the_teacher_nor_flows_from_what_is_logged() -> None:
    x, y = embeddings().requires_grad_(), embeddings().requires_grad_()
    found = distillation_loss(x, y, EVERYWHERE)
    (found.cosine + found.mse).backward()
    assert y.grad is None
    assert not any(getattr(found, name).requires_grad for name in ("mean_cosine", "low_cosine", "norm_ratio"))


def test_distillation_is_in_fp32_under_autocast() -> None:
    x, y = embeddings(), embeddings()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = distillation_loss(x, y, EVERYWHERE)
    assert torch.equal(inside.cosine, distillation_loss(x, y, EVERYWHERE).cosine)


def slow_focal(logits: Tensor, target: Tensor) -> float:
    """Lin et al., equation 5, pixel by pixel."""
    total = 0.0
    for logit, wanted in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        p_true, alpha = (p, 0.25) if wanted else (1 - p, 0.75)
        total += -alpha * (1 - p_true) ** 2 * math.log(p_true)
    return total / logits.numel()


def slow_dice(logits: Tensor, target: Tensor) -> float:
    both = sizes = 0.0
    for logit, wanted in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        both += p * wanted
        sizes += p + wanted
    return 1 - (2 * both + 1) / (sizes + 1)


def slow_iou(logits: Tensor, target: Tensor) -> float:
    pairs = list(zip((logits > 0).flatten().tolist(), target.flatten().tolist(), strict=True))
    return sum(a and b for a, b in pairs) / max(1, sum(a or b for a, b in pairs))


def test_masks_are_compared_on_the_photograph_at_their_own_side() -> None:
    logits, truth = 2 * torch.randn(2, 3, 4, 4), TargetMasks(torch.rand(2, 8, 8) > 0.5, (5, 8))
    compared = compare(logits, truth)
    wide = F.interpolate(logits, (8, 8), mode="bilinear")[..., :5, :]
    for p in range(2):
        for h in range(3):
            seen, wanted = wide[p, h], truth.masks[p, :5]
            assert compared.focal[p, h].item() == pytest.approx(slow_focal(seen, wanted), rel=1e-4)
            assert compared.dice[p, h].item() == pytest.approx(slow_dice(seen, wanted), rel=1e-4)
            assert compared.iou[p, h].item() == pytest.approx(slow_iou(seen, wanted))
            assert torch.equal(compared.masks[p, h], seen > 0)
    assert torch.equal(compared.areas.covered, truth.masks[:, :5])


def test_at_places_masks_are_compared_there_and_their_iou_at_the_side_of_the_logits() -> None:
    logits, truth = 2 * torch.randn(2, 3, 4, 4), TargetMasks(torch.rand(2, 16, 16) > 0.5, (12, 16))
    column, row = torch.randint(0, 16, (2, 30)), torch.randint(0, 12, (2, 30))  # centres of pixels: nothing between
    compared = compare(logits, truth, places=(torch.stack([column, row], dim=-1) + 0.5) / 16)
    wide = F.interpolate(logits, (16, 16), mode="bilinear")
    for p in range(2):
        for h in range(3):
            seen, wanted = wide[p, h, row[p], column[p]], truth.masks[p, row[p], column[p]]
            assert compared.focal[p, h].item() == pytest.approx(slow_focal(seen, wanted), rel=1e-4)
            assert compared.dice[p, h].item() == pytest.approx(slow_dice(seen, wanted), rel=1e-4)
            assert compared.iou[p, h].item() == pytest.approx(slow_iou(logits[p, h, :3], truth.masks[p, 2:12:4, 2::4]))


def test_uniform_places_estimate_what_all_pixels_give() -> None:
    logits = F.interpolate(torch.randn(1, 2, 4, 4), (32, 32), mode="bicubic")  # smooth, as answers are
    truth = TargetMasks(torch.zeros(1, 128, 128, dtype=torch.bool), (96, 128))
    truth.masks[:, 20:80, 32:112] = True
    everywhere = compare(logits, truth)
    some = compare(logits, truth, places=torch.rand(1, 40000, 2) * torch.tensor([1, 0.75]))
    for name in ("focal", "dice", "iou"):
        torch.testing.assert_close(getattr(some, name), getattr(everywhere, name), rtol=0.02, atol=0)


def test_gradients_of_a_comparison_are_those_of_the_formula_and_stay_on_the_photograph() -> None:
    logits, truth = torch.randn(1, 1, 4, 4, requires_grad=True), TargetMasks(torch.rand(1, 4, 4) > 0.5, (3, 4))
    compared = compare(logits, truth)
    (compared.focal + compared.dice).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[..., 3, :] == 0).all()
    for row in range(3):
        for column in range(4):
            slopes = []
            for step in (1e-3, -1e-3):
                moved = logits.detach().double()[0, 0, :3]
                moved[row, column] += step
                slopes.append(slow_focal(moved, truth.masks[0, :3]) + slow_dice(moved, truth.masks[0, :3]))
            assert logits.grad[0, 0, row, column].item() == pytest.approx((slopes[0] - slopes[1]) / 2e-3, rel=1e-3)


def test_nothing_at_the_side_of_the_masks_is_kept_for_the_backward_pass() -> None:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    logits = torch.randn(1, 4, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        focal = compare(logits, TargetMasks(torch.rand(1, 64, 64) > 0.5, (64, 64))).focal
        (focal * focal).sum().backward()
    assert kept
    assert max(kept) <= logits.numel()


def test_comparison_is_in_fp32_under_autocast() -> None:
    logits, truth = torch.randn(2, 3, 4, 4).bfloat16(), TargetMasks(torch.rand(2, 8, 8) > 0.5, (8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = compare(logits, truth)
    for name in ("focal", "dice"):
        assert torch.equal(getattr(inside, name), getattr(compare(logits.float(), truth), name))


def test_focal_loss_between_no_and_yes_is_between_theirs() -> None:
    logits = torch.randn(1, 1, 1, 9)
    (no, _), (half, _), (yes, _) = (focal_and_dice(logits, torch.full((1, 1, 1, 9), t)) for t in (0.0, 0.5, 1.0))
    assert 0 < half < max(no, yes)


def test_dice_of_a_sure_and_right_mask_is_zero_and_of_an_empty_one_near_one() -> None:
    target = torch.zeros(1, 1, 8, 8)
    target[..., :4, :] = 1
    sure = (target * 2 - 1) * 50
    torch.testing.assert_close(focal_and_dice(sure, target)[1], torch.zeros(1, 1))
    assert focal_and_dice(torch.full_like(sure, -50), target)[1].item() > 0.95


def test_iou_counts_pixels_and_an_empty_union_is_no_overlap() -> None:
    masks, target = torch.zeros(2, 1, 8, 8, dtype=torch.bool), torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    masks[0, ..., :4, :], target[0, ..., 2:6, :] = True, True
    torch.testing.assert_close(mask_iou(masks, target), torch.tensor([[1 / 3], [0.0]]))


def test_a_reduced_truth_has_the_pixel_at_each_centre_and_keeps_its_share_of_the_square() -> None:
    masks = torch.rand(2, 16, 16) > 0.5
    small = TargetMasks(masks, (12, 16)).at(4)
    assert torch.equal(small.masks, masks[:, 2::4, 2::4])
    assert small.valid == (3, 4)
    assert TargetMasks(masks, (1, 16)).at(4).valid == (1, 4)


def compared(outputs: int) -> OutputScores:
    """Random losses of 5 masks."""
    masks = torch.zeros(5, outputs, 2, 2, dtype=torch.bool)
    losses = torch.rand(3, 5, outputs)
    return OutputScores(losses[0] / 10, losses[1], losses[2], masks, TargetMasks(masks[:, 0], (2, 2)))


@pytest.mark.parametrize(
    ("heads", "teams"), [(Heads.SINGLE, [[0]]), (Heads.MULTI, [[1, 2, 3]]), (Heads.BOTH, [[0], [1, 2, 3]])]
)
def test_the_best_output_of_each_team_is_trained_and_all_of_them_are_rated(
    heads: Heads, teams: list[list[int]]
) -> None:
    outputs = sorted(output for team in teams for output in team)
    assert list(range(4))[heads.outputs] == outputs
    given, iou = compared(len(outputs)), torch.rand(5, len(outputs))
    loss = mask_loss(given, iou, heads)
    for p in range(5):
        total = focal = dice = squares = 0.0
        for team in teams:
            places = [outputs.index(output) for output in team]
            terms = {20 * given.focal[p, i].item() + given.dice[p, i].item(): i for i in places}
            best = terms[min(terms)]
            error = sum((iou[p, i].item() - given.iou[p, i].item()) ** 2 for i in places) / len(places)
            total += (min(terms) + error) / len(teams)
            focal += given.focal[p, best].item() / len(teams)
            dice += given.dice[p, best].item() / len(teams)
            squares += error / len(teams)
        assert loss.total[p].item() == pytest.approx(total, rel=1e-5)
        assert loss.focal[p].item() == pytest.approx(focal, rel=1e-5)
        assert loss.dice[p].item() == pytest.approx(dice, rel=1e-5)
        assert loss.iou[p].item() == pytest.approx(squares, rel=1e-5)


@pytest.mark.parametrize(("heads", "expected"), [(Heads.SINGLE, 0), (Heads.MULTI, 2), (Heads.BOTH, 0)])
def test_the_answer_is_the_output_of_highest_predicted_iou_or_the_single_one(heads: Heads, expected: int) -> None:
    iou = torch.tensor([[0.1, 0.5, 0.3, 0.9]])[:, heads.outputs]  # of outputs 1 to 3 the last is the best
    assert answer_of(iou, heads).item() == expected
    given = compared(iou.shape[1])
    torch.testing.assert_close(mask_loss(given, iou.expand(5, -1), heads).answer_iou, given.iou[:, expected])


@pytest.mark.parametrize(
    ("heads", "trained", "rated"),
    [(Heads.SINGLE, {0}, {0}), (Heads.MULTI, {2}, {1, 2, 3}), (Heads.BOTH, {0, 2}, {0, 1, 2, 3})],
)
def test_gradients_reach_the_winners_masks_and_every_rating(heads: Heads, trained: set[int], rated: set[int]) -> None:
    truth = TargetMasks(torch.rand(1, 8, 8) > 0.5, (8, 8))
    logits, iou = torch.randn(1, 4, 8, 8), torch.rand(1, 4).requires_grad_()
    logits[:, 2] += (truth.masks.float() * 2 - 1) * 3  # the best of the three
    logits.requires_grad_()
    mask_loss(compare(logits[:, heads.outputs], truth), iou[:, heads.outputs], heads).total.sum().backward()
    assert logits.grad is not None
    assert iou.grad is not None
    assert {h for h in range(4) if logits.grad[0, h].abs().sum() > 0} == trained
    assert {h for h in range(4) if iou.grad[0, h] != 0} == rated


@pytest.mark.parametrize("window", [4, 3], ids=["whole", "padded"])
def test_the_listwise_loss_is_the_divergence_from_the_shares_of_what_is_gained(window: int) -> None:
    layout = WindowLayout((4, 8), window, torch.device("cpu"))
    logits, benefits = torch.randn(2, 32), torch.rand(2, 32)
    valid = torch.zeros(2, 8, 8)
    valid[0, :4, :8], valid[1, :3, :5] = 1, 1
    number = torch.arange(4)[:, None] // window * -(-8 // window) + torch.arange(8) // window
    windows = layout.by_window(number[None, :, :, None])[0, :, 0]
    shown = layout.by_window(valid[:, :4, :, None])[..., 0]
    expected = 0.0
    for image in range(2):
        for inside in (windows == window for window in windows.unique()):
            share = (benefits[image, inside] ** 2 / (benefits[image, inside] ** 2).sum()).tolist()
            chance = logits[image, inside].softmax(0).tolist()
            apart = sum(a * math.log(a / b) for a, b in zip(share, chance, strict=True))
            expected += apart * shown[image, inside].sum().item()
    assert listwise_loss(logits, benefits, valid, layout).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("window", [4, 3], ids=["whole", "padded"])
def test_the_listwise_loss_teaches_the_order_of_what_is_gained(window: int) -> None:
    layout = WindowLayout((4, 8), window, torch.device("cpu"))
    benefits, valid = torch.rand(1, 32) + 0.1, torch.ones(1, 8, 8)
    logits = torch.zeros(1, 32, requires_grad=True)
    assert listwise_loss(2 * benefits.log(), benefits, valid, layout).item() == pytest.approx(0, abs=1e-4)
    assert listwise_loss(logits, torch.zeros(1, 32), valid, layout) == 0
    listwise_loss(logits, benefits, valid, layout).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, benefits.argmax()] < 0 < logits.grad[0, benefits.argmin()]
