"""One layer: equal to a slow reference written token by token from the design's equations, and to SAM's block."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything.modeling.image_encoder import Block as OriginalBlock
from torch import Tensor, nn

from sam_blvit.model.benefit import benefit_in
from sam_blvit.model.big_little import BigLittleLayer
from sam_blvit.model.blocks import EfficiencyBlock, PerformanceBlock
from sam_blvit.model.router import Routing, choose
from sam_blvit.model.windows import GlobalScope, Scope, WindowLayout, WindowScope

CPU = torch.device("cpu")
DIM, LITTLE_DIM = 8, 6
Vector = np.ndarray
Place = tuple[int, int]
"""Row and column of a token."""
Randomize = Callable[[nn.Module], nn.Module]
New = Callable[..., BigLittleLayer]


class SlowLayer:
    """The reference for a `BigLittleLayer`: one image, one token after the other, places instead of indices."""

    def __init__(self, block: BigLittleLayer, *, grid: tuple[int, int], window: int, is_global: bool) -> None:
        self.weights = {name: value.numpy() for name, value in block.state_dict().items()}
        self.big_heads = block.attn.num_heads
        self.little_heads = block.little.attn.num_heads if block.little is not None else 0
        self.places = [(row, col) for row in range(grid[0]) for col in range(grid[1])]
        self.window = window
        self.is_global = is_global

    def route(self, image: dict[Place, Vector], logits: dict[Place, float], num_primary: int) -> dict[Place, Vector]:
        """One routed layer: both halves of the design's equations."""
        scores = self.primary_scores(logits, num_primary)
        normed = {place: self.norm("norm1", x) for place, x in image.items()}
        p = self.attention("attn", self.big_heads, normed, asking=list(scores))
        e = {}
        if self.little_heads:
            normed = {place: self.norm("little.norm1", x) for place, x in image.items()}
            e = self.attention("little.attn", self.little_heads, normed, asking=self.places)
        image = self.fused(image, p, e, scores, "attn")
        p = {place: self.big_mlp(self.norm("norm2", image[place])) for place in scores}
        if self.little_heads:
            e = {place: self.little_mlp(self.norm("little.norm2", x)) for place, x in image.items()}
        return self.fused(image, p, e, scores, "mlp")

    def fused(
        self, image: dict[Place, Vector], p: dict[Place, Vector], e: dict[Place, Vector], scores: dict, half: str
    ) -> dict[Place, Vector]:
        result = {}
        for place, x in image.items():
            update = np.zeros_like(x)
            if place in scores:
                update = update + (self.weights[f"alpha_{half}"] * scores[place] + 1) * p[place]
                if e:
                    update = update + self.weights[f"gamma_{half}"] * e[place]
            elif e:
                update = update + e[place]
            result[place] = x + update
        return result

    def primary_scores(self, logits: dict[Place, float], num_primary: int) -> dict[Place, float]:
        """The score of each primary token: of every window the best, of equals the first."""
        windows: dict[Place, list[Place]] = {}
        for row, col in self.places:
            windows.setdefault((row // self.window, col // self.window), []).append((row, col))
        scores = {}
        for inside in windows.values():
            total = sum(math.exp(logits[place]) for place in inside)
            for place in sorted(inside, key=lambda place: (-logits[place], place))[:num_primary]:
                scores[place] = len(inside) * math.exp(logits[place]) / total
        return scores

    def attention(
        self, name: str, heads: int, tokens: dict[Place, Vector], *, asking: list[Place]
    ) -> dict[Place, Vector]:
        width = self.weights[f"{name}.qkv.weight"].shape[0] // 3
        size = width // heads
        packed: dict[Place, Vector] = {}
        answers = {}
        for query in asking:
            answer = np.zeros(width)
            keys = self.keys_of(query)
            for place in [query, *keys]:
                if place not in packed:  # a slot that holds no token is a zero
                    packed[place] = self.linear(f"{name}.qkv", tokens.get(place, np.zeros(DIM)))
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                q = packed[query][:width][part]
                likings, values = [], []
                for key in keys:
                    k, v = packed[key][width : 2 * width][part], packed[key][2 * width :][part]
                    by_row = self.table_row(f"{name}.rel_pos_h", query[0] - key[0])
                    by_col = self.table_row(f"{name}.rel_pos_w", query[1] - key[1])
                    likings.append(math.exp(q @ k / math.sqrt(size) + q @ by_row + q @ by_col))
                    values.append(v)
                shares = [liking / sum(likings) for liking in likings]
                answer[part] = sum(share * v for share, v in zip(shares, values, strict=True))
            answers[query] = self.linear(f"{name}.proj", answer)
        return answers

    def keys_of(self, query: Place) -> list[Place]:
        if self.is_global:
            return self.places
        top, left = (at // self.window * self.window for at in query)
        return [(top + row, left + col) for row in range(self.window) for col in range(self.window)]

    def table_row(self, name: str, offset: int) -> Vector:
        table = self.weights[name]
        farthest = (len(table) - 1) // 2
        return table[max(-farthest, min(farthest, offset)) + farthest]

    def linear(self, name: str, x: Vector) -> Vector:
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Vector) -> Vector:
        spread = math.sqrt(((x - x.mean()) ** 2).mean() + 1e-6)
        return (x - x.mean()) / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def big_mlp(self, x: Vector) -> Vector:
        return self.linear("mlp.lin2", gelu(self.linear("mlp.lin1", x)))

    def little_mlp(self, x: Vector) -> Vector:
        inner = self.linear("little.mlp.lin2", gelu(self.linear("little.mlp.lin1", self.linear("little.mlp.enter", x))))
        return self.linear("little.mlp.leave", inner)


def gelu(x: Vector) -> Vector:
    return np.array([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x])


@pytest.fixture
def new_block(randomize: Randomize) -> New:
    """A routed layer in float64 with nothing at zero."""

    def build(*, little: bool = True, table_size: int = 4) -> BigLittleLayer:
        narrow = EfficiencyBlock(DIM, inner_dim=LITTLE_DIM, num_heads=3, table_size=table_size) if little else None
        block = BigLittleLayer(DIM, num_heads=2, table_size=table_size, little=narrow)
        return randomize(block).double().requires_grad_(False)

    return build


def scope_of(layout: WindowLayout, is_global: bool) -> Scope:
    return GlobalScope(layout, CPU) if is_global else WindowScope(layout, CPU)


def routed_tokens(layout: WindowLayout, num_primary: int, images: int = 1) -> tuple[Tensor, Tensor, Routing]:
    """Random tokens (B, N, C) in float64, their logits (B, N), and the choice among them."""
    x = torch.randn(images, layout.num_tokens, DIM, dtype=torch.double)
    logits = torch.randn(images, layout.num_tokens) * 2
    return x, logits, choose(logits, layout=layout, num_primary=num_primary)


def slowly(
    block: BigLittleLayer, x: Tensor, logits: Tensor, *, layout: WindowLayout, num_primary: int, is_global: bool
) -> Tensor:
    """What the reference makes of `x` (B, N, C)."""
    layer = SlowLayer(block, grid=layout.grid, window=layout.window, is_global=is_global)
    rasters = layout.by_raster(x).numpy(), layout.by_raster(logits[..., None]).double().numpy()[..., 0]
    images = []
    for tokens, liking in zip(*rasters, strict=True):
        routed = layer.route(
            {place: tokens[place] for place in layer.places},
            {place: liking[place] for place in layer.places},
            num_primary,
        )
        images.append(np.stack([routed[place] for place in layer.places]).reshape(tokens.shape))
    return layout.by_window(torch.from_numpy(np.stack(images)))


@pytest.mark.parametrize("is_global", [False, True], ids=["windowed", "global"])
@pytest.mark.parametrize("little", [False, True], ids=["alone", "with_little"])
@pytest.mark.parametrize(
    ("grid", "window", "num_primary"),
    [
        pytest.param((4, 4), 2, 1, id="whole"),
        pytest.param((2, 6), 2, 3, id="whole_rectangle"),
        pytest.param((4, 4), 3, 2, id="padded"),
        pytest.param((5, 4), 3, 4, id="padded_rectangle"),
    ],
)
def test_a_routed_layer_equals_the_design_token_by_token(
    new_block: New,
    grid: tuple[int, int],
    window: int,
    num_primary: int,
    little: bool,
    is_global: bool,
) -> None:
    block = new_block(little=little, table_size=6 if is_global else window)
    layout = WindowLayout(grid, window, CPU)
    x, logits, routing = routed_tokens(layout, num_primary, images=2)
    out = block(x, scope_of(layout, is_global), dense=False, routing=routing)
    expected = slowly(block, x, logits, layout=layout, num_primary=num_primary, is_global=is_global)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grid", [(4, 8), (5, 4)], ids=["whole", "padded"])
def test_a_window_larger_than_its_tables_reads_their_last_rows(new_block: New, grid: tuple[int, int]) -> None:
    block = new_block(table_size=3)  # offsets -2 to 2, in windows with -3 to 3
    layout = WindowLayout(grid, 4, CPU)
    x, logits, routing = routed_tokens(layout, 5)
    out = block(x, WindowScope(layout, CPU), dense=False, routing=routing)
    expected = slowly(block, x, logits, layout=layout, num_primary=5, is_global=False)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("is_global", [False, True])
@pytest.mark.parametrize("window", [4, 3], ids=["whole", "padded"])
def test_a_dense_layer_equals_segment_anythings_block(new_block: New, window: int, is_global: bool) -> None:
    size = 8 if is_global else window
    ours = new_block(table_size=size)
    theirs = OriginalBlock(
        DIM,
        num_heads=2,
        use_rel_pos=True,
        window_size=0 if is_global else window,
        input_size=(8, 8),
        norm_layer=lambda dim: nn.LayerNorm(dim, eps=1e-6),
    ).double()
    theirs.load_state_dict({name: value for name, value in ours.state_dict().items() if name in theirs.state_dict()})
    layout = WindowLayout((8, 8), window, CPU)
    x = torch.randn(2, 8, 8, DIM, dtype=torch.double)
    out = ours(layout.by_window(x), scope_of(layout, is_global), dense=True)
    torch.testing.assert_close(layout.by_raster(out), theirs(x))


@pytest.mark.parametrize("is_global", [False, True])
def test_without_an_efficiency_block_only_primary_tokens_change(new_block: New, is_global: bool) -> None:
    layout = WindowLayout((4, 4), 3, CPU)  # the last window has 1 token for 2 places
    x, logits, _ = routed_tokens(layout, 2)
    logits[0, 0] = -9  # the token that fillers point at is not primary
    routing = choose(logits, layout=layout, num_primary=2)
    out = new_block(little=False, table_size=4)(x, scope_of(layout, is_global), dense=False, routing=routing)
    assert torch.equal((out != x).any(-1), routing.primary[..., 0] > 0)


def test_without_an_efficiency_block_and_primary_tokens_nothing_changes(
    new_block: New,
) -> None:
    layout = WindowLayout((4, 4), 2, CPU)
    x, _, _ = routed_tokens(layout, 1)
    assert torch.equal(new_block(little=False)(x, WindowScope(layout, CPU), dense=False), x)


def test_without_primary_tokens_the_efficiency_block_updates_all(new_block: New) -> None:
    block = new_block()
    layout = WindowLayout((4, 4), 2, CPU)
    scope = WindowScope(layout, CPU)
    x, _, _ = routed_tokens(layout, 1)
    halfway = x + block.little.attention_update(x, scope)
    torch.testing.assert_close(block(x, scope, dense=False), halfway + block.little.mlp_update(halfway))


def test_alpha_starts_at_0_and_gamma_at_1e_5_with_shape_1() -> None:
    little = EfficiencyBlock(DIM, inner_dim=LITTLE_DIM, num_heads=3, table_size=4)
    block = BigLittleLayer(DIM, num_heads=2, table_size=4, little=little)
    for half in ("attn", "mlp"):
        assert block.get_parameter(f"alpha_{half}").tolist() == [0]
        assert block.get_parameter(f"gamma_{half}").tolist() == pytest.approx([1e-5])


def test_a_dense_layer_has_no_parameters_beyond_sams() -> None:
    block = PerformanceBlock(DIM, num_heads=2, table_size=4)
    theirs = OriginalBlock(DIM, num_heads=2, use_rel_pos=True, window_size=4)
    assert set(block.state_dict()) == set(theirs.state_dict())


def test_without_score_scaling_there_is_no_alpha_and_scores_change_nothing(randomize: Randomize) -> None:
    block = randomize(BigLittleLayer(DIM, num_heads=2, table_size=4, little=None, score_scaling=False)).double()
    assert not [name for name, _ in block.named_parameters() if "alpha" in name]
    layout = WindowLayout((4, 4), 2, CPU)
    x, _, routing = routed_tokens(layout, 1)
    scope = WindowScope(layout, CPU)
    other = replace(routing, scores=routing.scores * 7)
    assert torch.equal(block(x, scope, dense=False, routing=routing), block(x, scope, dense=False, routing=other))


def test_an_efficiency_block_attends_in_its_own_scope(new_block: New) -> None:
    block = new_block(table_size=4)
    layout = WindowLayout((4, 4), 2, CPU)
    x, _, _ = routed_tokens(layout, 1)
    windowed, whole = WindowScope(layout, CPU), GlobalScope(layout, CPU)
    out = block(x, whole, dense=False, efficiency_scope=windowed)
    assert torch.equal(out, block(x, windowed, dense=False))
    assert not torch.equal(out, block(x, whole, dense=False))


@pytest.mark.parametrize("little", [False, True], ids=["alone", "with_little"])
def test_the_benefit_is_the_distance_of_the_two_updates(new_block: New, little: bool) -> None:
    block = new_block(little=little)
    layout = WindowLayout((4, 4), 4, CPU)
    scope = WindowScope(layout, CPU)
    x, _, _ = routed_tokens(layout, 1)
    benefit, after = benefit_in(block, x, scope, scope)
    torch.testing.assert_close(after, block(x, scope, dense=True), rtol=1e-6, atol=1e-6)
    halfway = x + block.attn(block.norm1(x), scope.grid)
    apart = halfway - x, after - halfway
    if little:
        apart = apart[0] - block.little.attention_update(x, scope), apart[1] - block.little.mlp_update(halfway)
    expected = sum(part.square().sum(-1).sqrt() for part in apart)
    torch.testing.assert_close(benefit.double(), expected, rtol=1e-5, atol=1e-5)
