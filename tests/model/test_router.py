"""The router: which tokens it chooses, and what their scores are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sam_blvit.model.router import TokenRouter, choose
from sam_blvit.model.windows import WindowLayout

CPU = torch.device("cpu")
WHOLE = WindowLayout((8, 8), 4, CPU)  # 4 windows of 16 tokens
PADDED = WindowLayout((4, 4), 3, CPU)  # windows of 9, 3, 3 and 1 tokens


def window_of_token(layout: WindowLayout) -> Tensor:
    """(N,) the window that each window-major token lies in."""
    rows, cols = torch.meshgrid(torch.arange(layout.grid[0]), torch.arange(layout.grid[1]), indexing="ij")
    window = (rows // layout.window) * layout.windows[1] + cols // layout.window
    return layout.by_window(window[None, :, :, None])[0, :, 0]


@pytest.mark.parametrize("layout", [WHOLE, PADDED])
@pytest.mark.parametrize("num_primary", [1, 2, 5])
def test_the_best_tokens_of_each_window_are_chosen(layout: WindowLayout, num_primary: int) -> None:
    logits = torch.randn(2, layout.num_tokens)
    primary = choose(logits, layout=layout, num_primary=num_primary).primary.squeeze(-1)
    window = window_of_token(layout)
    for image in range(2):
        for number in range(layout.num_windows):
            inside = logits[image, window == number].tolist()
            chosen = logits[image, (window == number) & (primary[image] > 0)].tolist()
            assert sorted(chosen) == sorted(inside)[-num_primary:]


def test_every_window_gets_exactly_k_tokens() -> None:
    routing = choose(torch.randn(3, 64), layout=WHOLE, num_primary=5)
    assert routing.primary.view(3, 4, 16).sum(-1).tolist() == [[5, 5, 5, 5]] * 3


def test_slots_and_tokens_name_the_same_choice() -> None:
    routing = choose(torch.randn(3, 64), layout=WHOLE, num_primary=5)
    assert torch.equal(routing.tokens.view(3, 4, 5), routing.slots + 16 * torch.arange(4)[:, None])
    assert torch.equal(routing.primary[..., 0], torch.zeros(3, 64).scatter(1, routing.tokens, 1))


@pytest.mark.parametrize("layout", [WHOLE, PADDED])
def test_chosen_slots_ascend(layout: WindowLayout) -> None:
    slots = choose(torch.randn(3, layout.num_tokens), layout=layout, num_primary=5).slots
    assert (slots.diff(dim=-1) > 0).all()


def test_of_equal_tokens_the_first_are_chosen() -> None:
    logits = torch.zeros(1, 64)
    logits[0, 7] = 1
    logits[0, 16] = -1
    slots = choose(logits, layout=WHOLE, num_primary=3).slots[0].tolist()
    assert slots == [[0, 1, 7], [1, 2, 3], [0, 1, 2], [0, 1, 2]]


def test_swapping_the_logits_of_unchosen_tokens_changes_no_choice() -> None:
    logits = torch.randn(1, 64)
    before = choose(logits, layout=WHOLE, num_primary=4)
    others = [number for number in range(16) if number not in before.slots[0, 0].tolist()]
    swapped = logits.clone()
    swapped[0, others] = logits[0, others].flip(0)
    after = choose(swapped, layout=WHOLE, num_primary=4)
    assert not torch.equal(swapped, logits)
    assert torch.equal(after.tokens, before.tokens)
    torch.testing.assert_close(after.scores, before.scores)


def test_scores_are_the_softmax_over_a_window_times_its_tokens() -> None:
    logits = torch.randn(1, 64)
    scores = choose(logits, layout=WHOLE, num_primary=16).scores
    expected = (logits.view(4, 16).softmax(-1) * 16).view(1, 64, 1)
    torch.testing.assert_close(scores, expected)


def test_scores_have_mean_1_over_the_tokens_of_every_window() -> None:
    routing = choose(torch.randn(2, 16) * 3, layout=PADDED, num_primary=9)
    assert routing.filled is not None
    total = routing.scores.view(2, 4, 9).sum(-1)
    tokens = routing.filled.view(2, 4, 9).sum(-1)
    assert tokens.tolist() == [[9, 3, 3, 1]] * 2
    torch.testing.assert_close(total / tokens, torch.ones(2, 4))


def test_a_border_window_with_too_few_tokens_chooses_each_of_them_once() -> None:
    routing = choose(torch.randn(1, 16), layout=PADDED, num_primary=2)
    assert routing.filled is not None
    assert routing.filled.view(4, 2).tolist() == [[1, 1], [1, 1], [1, 1], [1, 0]]
    assert routing.slots[0, 3, 0] == 0  # the only token of the last window
    assert routing.primary.sum() == 7
    assert routing.primary.max() == 1


def test_a_filler_scores_0_and_makes_no_token_primary() -> None:
    logits = torch.zeros(1, 16)
    logits[0, 0] = -9  # fillers point at token 0, which is not to be chosen on their account
    routing = choose(logits, layout=PADDED, num_primary=2)
    assert routing.tokens[0, -1] == 0
    assert routing.scores[0, -1] == 0
    assert routing.primary[0, 0] == 0


def test_windows_without_padding_have_no_fillers() -> None:
    assert choose(torch.randn(1, 64), layout=WHOLE, num_primary=4).filled is None


def test_one_image_is_routed_alike_alone_and_in_a_batch() -> None:
    logits = torch.randn(3, 16)
    together, alone = (choose(part, layout=PADDED, num_primary=2) for part in (logits, logits[1:2]))
    assert torch.equal(together.tokens[1:2], alone.tokens)
    assert torch.equal(together.scores[1:2], alone.scores)


def test_a_router_is_a_linear_layer_without_bias() -> None:
    router = TokenRouter(8)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(router(x), x @ router.score.weight[0])
    assert [name for name, _ in router.named_parameters()] == ["score.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_stay_float32_under_autocast(dtype: torch.dtype) -> None:
    router = TokenRouter(8)
    x = torch.randn(2, 5, 8).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = router(x)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, router(x))
