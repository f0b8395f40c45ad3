"""Study variants: what their scores, summaries and layers are, and the tables that a config chooses from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import TINY
from sam_blvit.config import model as words
from sam_blvit.config import override
from sam_blvit.model.big_little import BigLittleLayer
from sam_blvit.model.blocks import EfficiencyBlock
from sam_blvit.model.router import choose
from sam_blvit.model.variants import (
    ROUTERS,
    SCORINGS,
    BroadcastLayer,
    RandomRouter,
    SummaryLayer,
    SummaryRouting,
    route,
    summarize,
    two_class_scores,
)
from sam_blvit.model.windows import GlobalScope, Scope, WindowLayout, WindowScope

CPU = torch.device("cpu")
WHOLE = WindowLayout((8, 8), 4, CPU)  # 4 windows of 16 tokens
PADDED = WindowLayout((4, 4), 3, CPU)  # windows of 9, 3, 3 and 1 tokens
DIM = 8
Randomize = Callable[[nn.Module], nn.Module]


def test_every_word_of_the_config_names_a_part() -> None:
    assert tuple(ROUTERS) == tuple(words.ROUTER_LEARNS)
    assert tuple(SCORINGS) == words.ROUTER_SCORES


@pytest.mark.parametrize("layout", [WHOLE, PADDED])
def test_with_two_classes_a_score_is_twice_the_softmax_over_them(layout: WindowLayout) -> None:
    logits = torch.randn(2, layout.num_tokens)
    routing = choose(logits, layout=layout, num_primary=2, scoring=two_class_scores)
    twice = 2 * torch.stack([torch.zeros_like(logits), logits], dim=-1).softmax(-1)[..., 1]  # not primary, primary
    expected = twice.gather(1, routing.tokens)[..., None]
    if routing.filled is not None:
        expected = expected * routing.filled
        assert not routing.filled.all()
    torch.testing.assert_close(routing.scores, expected)


@pytest.mark.parametrize("layout", [WHOLE, PADDED])
def test_with_two_classes_the_choice_is_the_same(layout: WindowLayout) -> None:
    logits = torch.randn(2, layout.num_tokens)
    one, other = (choose(logits, layout=layout, num_primary=2, scoring=scoring) for scoring in SCORINGS.values())
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.primary, other.primary)
    assert not torch.allclose(one.scores, other.scores)


@pytest.mark.parametrize("layout", [WHOLE, PADDED])
def test_with_two_classes_undecided_logits_score_1(layout: WindowLayout) -> None:
    routing = choose(torch.zeros(1, layout.num_tokens), layout=layout, num_primary=2, scoring=two_class_scores)
    assert set(routing.scores[routing.primary.gather(1, routing.tokens[..., None]) > 0].tolist()) <= {0.0, 1.0}
    assert routing.scores.max() == 1


def test_with_two_classes_a_tokens_score_depends_on_no_other_token() -> None:
    logits = torch.zeros(1, 64, requires_grad=True)
    choose(logits, layout=WHOLE, num_primary=1, scoring=two_class_scores).scores[0, 0].backward()
    assert logits.grad is not None
    assert logits.grad.nonzero().tolist() == [[0, 0]]


@pytest.mark.parametrize("level", [0, 30, 300])
def test_a_random_router_prefers_no_place_and_scores_equal_tokens_equally(level: float) -> None:
    x = torch.randn(400, 64, 8) + level  # the larger the sum, the fewer bits it has after the point
    logits = RandomRouter()(x)
    assert torch.equal(logits, RandomRouter()(x.clone()))
    shares = choose(logits, layout=WHOLE, num_primary=4).primary[..., 0].mean(0)
    assert shares.mean().item() == pytest.approx(0.25)
    assert (shares - 0.25).abs().max() < 0.1  # 4.6 standard deviations of 400 draws


def test_a_summary_of_primary_tokens_holds_them_alone() -> None:
    x = torch.randn(2, 4, 16, 3)  # images, windows, slots, channels
    routing = choose(torch.randn(2, 64), layout=WHOLE, num_primary=5)
    summary = summarize(routing.slots, WHOLE, pool=None)
    rows = summary.rows(x)
    torch.testing.assert_close(rows, x.gather(2, routing.slots.unsqueeze(-1).expand(-1, -1, -1, 3)))
    assert torch.equal(summary.log_counts, torch.zeros(2, 4, 5))


def test_a_summary_with_means_holds_those_of_the_other_tokens_in_each_square() -> None:
    x = torch.randn(2, 4, 16, 3)
    logits = torch.randn(2, 64)
    logits[0, :4] = logits[0, 4:8] = 9  # rows 0 and 1 of the first window: its upper squares have no others
    routing = choose(logits, layout=WHOLE, num_primary=8)
    summary = summarize(routing.slots, WHOLE, pool=2)
    rows, counts = summary.rows(x), summary.log_counts.exp()
    primary = routing.primary[..., 0].view(2, 4, 16)
    for image in range(2):
        for window in range(4):
            for square in range(4):
                row, col = square // 2 * 2, square % 2 * 2
                slots = [(row + i) * 4 + col + j for i in range(2) for j in range(2)]
                others = [slot for slot in slots if not primary[image, window, slot]]
                mean = x[image, window, others].mean(0) if others else torch.zeros(3)
                torch.testing.assert_close(rows[image, window, 8 + square], mean)
                assert counts[image, window, 8 + square].item() == pytest.approx(len(others))
    assert counts[0, 0, 8:].tolist() == [0, 0, 4, 4]


@pytest.mark.parametrize(("pool", "middles"), [(2, [5, 7, 13, 15]), (4, [10])])
def test_means_that_are_updated_ask_from_the_middles_of_their_squares(pool: int, middles: list[int]) -> None:
    slots = choose(torch.randn(2, 64), layout=WHOLE, num_primary=5).slots
    for broadcast in (False, True):
        summary = summarize(slots, WHOLE, pool=pool, broadcast=broadcast)
        assert torch.equal(summary.places[..., :5], slots)
        assert summary.places[..., 5:].tolist() == [[middles * broadcast] * 4] * 2


def test_updates_of_means_go_to_the_tokens_that_they_stand_for() -> None:
    routing = choose(torch.randn(2, 64), layout=WHOLE, num_primary=5)
    summary = summarize(routing.slots, WHOLE, pool=2, broadcast=True)
    of_rows = torch.randn(2, 4 * (5 + 4), 3)
    of_primary, of_all = summary.updates(of_rows)
    by_window = of_rows.view(2, 4, 9, 3)
    assert torch.equal(of_primary, by_window[:, :, :5].reshape(2, 20, 3))
    primary = routing.primary[..., 0].view(2, 4, 16)
    for slot in range(16):
        square = slot // 4 // 2 * 2 + slot % 4 // 2
        expected = by_window[:, :, 5 + square] * (1 - primary[:, :, slot, None])
        torch.testing.assert_close(of_all.view(2, 4, 16, 3)[:, :, slot], expected)


WIDE = WindowLayout((4, 8), 4, CPU)  # 2 windows of 16 tokens


def scope_of(layout: WindowLayout, is_global: bool) -> Scope:
    return GlobalScope(layout, CPU) if is_global else WindowScope(layout, CPU)


def drawn(images: int = 2) -> tuple[Tensor, Tensor]:
    """Random tokens (B, N, C) in float64, and their logits (B, N)."""
    return torch.randn(images, WIDE.num_tokens, DIM, dtype=torch.double), torch.randn(images, WIDE.num_tokens) * 2


def routed(logits: Tensor, **fields: Any) -> SummaryRouting:
    """The choice of 3 tokens of each window for a model with these fields."""
    routing = route(logits, config=override(TINY, **fields), layout=WIDE, num_primary=3)
    assert isinstance(routing, SummaryRouting)
    return routing


@pytest.fixture
def new_layer(randomize: Randomize) -> Callable[..., BigLittleLayer]:
    """A layer in float64 with nothing at zero."""

    def build(kind: type[BigLittleLayer], *, is_global: bool, little: bool = False) -> BigLittleLayer:
        size = 8 if is_global else 4
        narrow = EfficiencyBlock(DIM, inner_dim=6, num_heads=3, table_size=size) if little else None
        layer = kind(DIM, num_heads=2, table_size=size, little=narrow)
        return randomize(layer).double().requires_grad_(False)

    return build


@pytest.fixture
def papers(new_layer: Callable[..., BigLittleLayer]) -> Callable[..., BigLittleLayer]:
    """The paper's layer with the weights of another."""

    def build(layer: BigLittleLayer, *, is_global: bool) -> BigLittleLayer:
        twin = new_layer(BigLittleLayer, is_global=is_global, little=layer.little is not None)
        twin.load_state_dict(layer.state_dict())
        return twin

    return build


New = Callable[..., BigLittleLayer]


@pytest.mark.parametrize("is_global", [False, True], ids=["windowed", "global"])
def test_with_means_of_single_tokens_all_tokens_are_keys(new_layer: New, papers: New, is_global: bool) -> None:
    layer, scope = new_layer(SummaryLayer, is_global=is_global, little=True), scope_of(WIDE, is_global)
    x, logits = drawn()
    routing = routed(logits, primary_keys="pooled", pool=1)
    expected = papers(layer, is_global=is_global)(x, scope, routing=choose(logits, layout=WIDE, num_primary=3))
    torch.testing.assert_close(layer(x, scope, routing=routing), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("is_global", [False, True], ids=["windowed", "global"])
def test_with_primary_keys_other_tokens_are_not_seen(new_layer: New, papers: New, is_global: bool) -> None:
    layer, scope = new_layer(SummaryLayer, is_global=is_global), scope_of(WIDE, is_global)
    x, logits = drawn()
    routing = routed(logits, primary_keys="primary")
    out = layer(x, scope, routing=routing)
    again = layer(torch.where(routing.primary > 0, x, torch.randn_like(x)), scope, routing=routing)
    primary = routing.primary[..., 0] > 0
    torch.testing.assert_close(again[primary], out[primary])
    seen = papers(layer, is_global=is_global)(x, scope, routing=routing)
    assert (seen[primary] - out[primary]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("is_global", [False, True], ids=["windowed", "global"])
def test_a_mean_of_like_tokens_weighs_as_much_as_all_of_them(new_layer: New, papers: New, is_global: bool) -> None:
    layer, scope = new_layer(SummaryLayer, is_global=is_global), scope_of(WIDE, is_global)
    layer.attn.rel_pos_h.zero_()  # a mean's bias is the mean of its tokens': like tokens alone would differ in it
    layer.attn.rel_pos_w.zero_()
    x, logits = drawn(images=1)
    routing = routed(logits, primary_keys="pooled", pool=2)
    square = x.view(1, 2, 2, 2, 2, 2, DIM)[:, :, :, :1, :, :1].expand(-1, -1, -1, 2, -1, 2, -1)
    alike = torch.where(routing.primary > 0, x, square.reshape(x.shape))
    out, expected = (each(alike, scope, routing=routing) for each in (layer, papers(layer, is_global=is_global)))
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("is_global", [False, True], ids=["windowed", "global"])
def test_a_broadcast_update_is_that_of_the_mean(new_layer: New, is_global: bool) -> None:
    layer, scope = new_layer(BroadcastLayer, is_global=is_global), scope_of(WIDE, is_global)
    x, logits = drawn()
    routing = routed(logits, primary_keys="pooled", pool=2, broadcast=True, little_layers=())
    updates = layer(x, scope, routing=routing) - x
    others = routing.primary[..., 0] == 0
    for image, window, i, j in np.ndindex(2, 2, 2, 2):
        inside = others.view(2, 2, 2, 2, 2, 2)[image, window, i, :, j]
        alike = updates.view(2, 2, 2, 2, 2, 2, DIM)[image, window, i, :, j][inside]
        assert alike.any()
        torch.testing.assert_close(alike, alike[:1].expand_as(alike), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("is_global", [False, True], ids=["windowed", "global"])
def test_without_broadcast_only_primary_tokens_change(new_layer: New, is_global: bool) -> None:
    layer, scope = new_layer(SummaryLayer, is_global=is_global), scope_of(WIDE, is_global)
    x, logits = drawn()
    routing = routed(logits, primary_keys="pooled", pool=2)
    assert torch.equal((layer(x, scope, routing=routing) != x).any(-1), routing.primary[..., 0] > 0)


def test_a_router_learns_where_it_has_parameters() -> None:
    assert {name: any(True for _ in make(8).parameters()) for name, make in ROUTERS.items()} == words.ROUTER_LEARNS
