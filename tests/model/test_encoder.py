"""The encoder: SAM's own when dense or at keep ratio 1, routed as the design says below it, on any rectangle."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything import modeling as sa
from torch import Tensor, nn

from conftest import VARIANTS
from processes import run_in_two
from sam_blvit.config import ModelConfig
from sam_blvit.model.benefit import benefit_in
from sam_blvit.model.encoder import ImageEncoder
from sam_blvit.model.router import choose
from sam_blvit.model.variants import two_class_scores
from sam_blvit.model.windows import GlobalScope, WindowScope

Config = Callable[..., ModelConfig]
Randomize = Callable[[nn.Module], nn.Module]
Refused = Callable[..., Any]
OriginalSam = Callable[[ModelConfig], sa.Sam]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def new_encoder(tiny: Config, randomize: Randomize) -> Callable[..., ImageEncoder]:
    """A big.LITTLE encoder with nothing at zero."""

    def build(**overrides: object) -> ImageEncoder:
        return randomize(ImageEncoder(tiny(**overrides))).requires_grad_(False)

    return build


def images(height: int = 128, width: int = 128, count: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width)


# dense ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [4, 3], ids=["whole", "padded"])
def test_a_dense_encoder_equals_segment_anythings(tiny_dense: Config, original_sam: OriginalSam, window: int) -> None:
    config = tiny_dense(window=window, rel_pos_window=window)
    theirs = original_sam(config).image_encoder
    ours = ImageEncoder(config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images(count=2)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_segment_anythings_encoder_loads_a_dense_one(tiny_dense: Config, original_sam: OriginalSam) -> None:
    theirs = original_sam(tiny_dense()).image_encoder
    theirs.load_state_dict(ImageEncoder(tiny_dense()).state_dict(), strict=True)


@pytest.mark.parametrize("window", [4, 3], ids=["whole", "padded"])
def test_at_keep_ratio_1_the_encoder_is_the_sam_its_blocks_came_from(
    new_encoder: Callable[..., ImageEncoder], tiny: Config, original_sam: OriginalSam, window: int
) -> None:
    theirs = original_sam(tiny(window=window, rel_pos_window=window)).image_encoder
    ours = new_encoder(window=window, rel_pos_window=window)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    ours.keep_ratio = 1
    x = images()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_at_keep_ratio_1_nothing_is_routed(new_encoder: Callable[..., ImageEncoder]) -> None:
    encoder = new_encoder(keep_ratio=1)
    assert encoder.encode(images()).routings == {}


# routed --------------------------------------------------------------------------------------------------------------


def test_a_choice_holds_until_the_next_router(new_encoder: Callable[..., ImageEncoder]) -> None:
    encoder = new_encoder(keep_ratio=0.5)  # routers after layers 1 and 3; 2 and 4 are global
    x = images(count=2)
    grid = encoder.patch_embed(x) + encoder.pos_embed
    encoding = encoder.encode(x)
    layout = encoding.layout
    windowed, everywhere = WindowScope(layout, x.device), GlobalScope(layout, x.device)

    after_1 = encoder.blocks[0](layout.by_window(grid), windowed)
    first = choose(encoder.routers["0"](after_1), layout=layout, num_primary=8)
    after_2 = encoder.blocks[1](after_1, everywhere, dense=False, routing=first)
    after_3 = encoder.blocks[2](after_2, windowed, dense=False, routing=first)
    second = choose(encoder.routers["2"](after_3), layout=layout, num_primary=8)
    after_4 = encoder.blocks[3](after_3, everywhere, dense=False, routing=second)

    assert not torch.equal(first.tokens, second.tokens)
    torch.testing.assert_close(encoding.embedding, encoder.neck(layout.by_raster(after_4).permute(0, 3, 1, 2)))


def test_a_router_reads_its_own_layer_also_where_a_dense_layer_follows(
    new_encoder: Callable[..., ImageEncoder],
) -> None:
    encoder = new_encoder(routed_from=4, routers_after=(2,), little_layers=(4,))
    outputs: list[Tensor] = []
    encoder.blocks[1].register_forward_hook(lambda _block, _inputs, output: outputs.append(output))
    encoding = encoder.encode(images())
    expected = choose(encoder.routers["1"](outputs[0]), layout=encoding.layout, num_primary=4)
    assert torch.equal(encoding.routings[2].tokens, expected.tokens)
    torch.testing.assert_close(encoding.routings[2].scores, expected.scores)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_variant_learns_whatever_it_has(tiny: Config, randomize: Randomize, variant: str, dtype: str) -> None:
    encoder = randomize(ImageEncoder(tiny(**VARIANTS[variant], compute_dtype=dtype)))
    for x in (images(), images(64, 128, count=2)):
        embedding = encoder(x)
        assert embedding.shape == (len(x), 256, 8, 8)
        embedding.square().mean().backward()
    idle = [name for name, value in encoder.named_parameters() if value.grad is None or not value.grad.any()]
    unscaled = not encoder.config.score_scaling
    assert idle == ([f"routers.{layer}.score.weight" for layer in (0, 2) if unscaled and variant != "random"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_variant_is_the_papers_encoder(tiny: Config, randomize: Randomize, variant: str) -> None:
    theirs = randomize(ImageEncoder(tiny()))
    ours = randomize(ImageEncoder(tiny(**VARIANTS[variant])))
    shared = {name: value for name, value in theirs.state_dict().items() if name in ours.state_dict()}
    shared = {name: value for name, value in shared.items() if value.shape == ours.state_dict()[name].shape}
    ours.load_state_dict(shared, strict=False)
    x = images()
    assert (ours(x) - theirs(x)).abs().max() > 1e-3
    for encoder in (ours, theirs):
        encoder.keep_ratio = 1
    torch.testing.assert_close(ours(x), theirs(x))


def test_asking_what_choices_are_worth_changes_no_gradient(tiny: Config, randomize: Randomize) -> None:
    encoder, x = randomize(ImageEncoder(tiny(compute_dtype="bfloat16"))), images()
    found = []
    for with_benefits in (False, True):
        encoder.zero_grad()
        encoder.encode(x, with_benefits=with_benefits).embedding.square().mean().backward()
        found.append({name: value.grad.clone() for name, value in encoder.named_parameters() if value.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_benefits_add_up_over_the_layers_that_a_router_decides_for(new_encoder: Callable[..., ImageEncoder]) -> None:
    encoder = new_encoder()
    tokens = encoder.begin(images())
    scopes = WindowScope(tokens.layout, tokens.x.device), GlobalScope(tokens.layout, tokens.x.device)
    layers = {layer: encoder.blocks[layer - 1] for layer in (2, 3, 4)}
    second, x = benefit_in(layers[2], tokens.x, scopes[1], scopes[1])
    third, after = benefit_in(layers[3], x, scopes[0], scopes[0])
    torch.testing.assert_close(encoder.benefits(1, tokens.x, tokens.layout), second + third)
    fourth, _ = benefit_in(layers[4], after, scopes[1], scopes[1])
    torch.testing.assert_close(encoder.benefits(3, after, tokens.layout), fourth)


def test_the_config_says_what_a_routers_softmax_runs_over(
    new_encoder: Callable[..., ImageEncoder], refused: Refused
) -> None:
    one, other = new_encoder(), new_encoder(router_scores="two_class")
    other.load_state_dict(one.state_dict())
    x = images()
    ours, theirs = one.encode(x), other.encode(x)
    expected = choose(theirs.logits[1], layout=theirs.layout, num_primary=4, scoring=two_class_scores)
    assert torch.equal(ours.routings[1].tokens, theirs.routings[1].tokens)
    assert torch.equal(theirs.routings[1].scores, expected.scores)
    assert not torch.allclose(ours.embedding, theirs.embedding)
    with refused(ValueError, match="router_scores='tokens' is not one of window, two_class"):
        new_encoder(router_scores="tokens")


@pytest.mark.parametrize(
    ("window", "keep_ratio", "expected"),
    [(4, 0.25, 4), (4, 0.5, 8), (4, 0.3, 5), (4, 0.99, 16), (3, 0.5, 4), (3, 0.75, 5)],
)
def test_every_window_keeps_its_share_of_the_mean_window(
    new_encoder: Callable[..., ImageEncoder], window: int, keep_ratio: float, expected: int
) -> None:
    encoder = new_encoder(window=window, keep_ratio=keep_ratio)  # 64 tokens in 4 windows of 4, or 9 of 3
    routings = encoder.encode(images()).routings
    assert sorted(routings) == [1, 3]
    assert {routing.slots.shape[-1] for routing in routings.values()} == {expected}


def test_at_keep_ratio_0_performance_blocks_of_routed_layers_do_nothing(
    new_encoder: Callable[..., ImageEncoder], randomize: Randomize
) -> None:
    encoder = new_encoder(keep_ratio=0)
    x = images()
    before = encoder(x)
    for block in encoder.blocks[1:]:
        for part in (block.norm1, block.attn, block.norm2, block.mlp):
            randomize(part)
    assert torch.equal(encoder(x), before)


@pytest.mark.parametrize("part", ["blocks.0.attn", "blocks.1.little.attn", "blocks.2.little.mlp"])
def test_at_keep_ratio_0_dense_layers_and_efficiency_blocks_run(
    new_encoder: Callable[..., ImageEncoder], randomize: Randomize, part: str
) -> None:
    encoder = new_encoder(keep_ratio=0)
    x = images()
    before = encoder(x)
    randomize(encoder.get_submodule(part))
    assert not torch.allclose(encoder(x), before)


def test_at_keep_ratio_0_a_layer_without_efficiency_block_passes_tokens_through(
    new_encoder: Callable[..., ImageEncoder], tiny: Config
) -> None:
    encoder = new_encoder(keep_ratio=0, little_layers=(2, 4))
    x = images()
    shorter = ImageEncoder(tiny(layers=3, keep_ratio=0, global_layers=(2, 3), routers_after=(1,), little_layers=(2, 3)))
    state = {name: value for name, value in encoder.state_dict().items() if "blocks.2." not in name}
    state = {name.replace("blocks.3.", "blocks.2."): value for name, value in state.items() if "routers.2" not in name}
    shorter.load_state_dict(state, strict=True)
    torch.testing.assert_close(encoder(x), shorter(x))


def test_the_dial_turns_from_one_embedding_to_another(new_encoder: Callable[..., ImageEncoder]) -> None:
    encoder = new_encoder()
    x = images()
    embeddings = []
    for keep_ratio in (0, 0.25, 0.5, 1):
        encoder.keep_ratio = keep_ratio
        embeddings.append(encoder(x))
    for number, one in enumerate(embeddings):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in embeddings[number + 1 :])


def test_the_layers_before_the_first_routed_one_serve_every_keep_ratio(
    new_encoder: Callable[..., ImageEncoder],
) -> None:
    encoder = new_encoder()
    x = images()
    begun = encoder.begin(x)
    for keep_ratio in (0.25, 0.75, 1, 0):
        encoder.keep_ratio = keep_ratio
        assert torch.equal(encoder.finish(begun).embedding, encoder(x))


def test_an_image_is_encoded_alike_alone_and_in_a_batch(new_encoder: Callable[..., ImageEncoder]) -> None:
    encoder = new_encoder()
    x = images(count=3)
    torch.testing.assert_close(encoder(x)[1:2], encoder(x[1:2]), rtol=1e-4, atol=1e-4)


# the dial's own errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, "x", True, -1, 2])
def test_the_dial_refuses_what_is_no_number_in_0_to_1(
    new_encoder: Callable[..., ImageEncoder], refused: Refused, value: object
) -> None:
    encoder = new_encoder()
    with refused(ValueError, match="keep_ratio="):
        encoder.keep_ratio = value  # type: ignore[assignment]
    assert encoder.keep_ratio == 0.25


def test_the_dial_of_a_dense_model_stays_at_1(tiny_dense: Config, refused: Refused) -> None:
    encoder = ImageEncoder(tiny_dense())
    with refused(ValueError, match="vit_tiny is dense"):
        encoder.keep_ratio = 0.5
    encoder.keep_ratio = 1
    assert encoder.keep_ratio == 1


# sizes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 128), (128, 64), (64, 64)])
def test_what_no_token_covers_is_the_learned_vector(
    new_encoder: Callable[..., ImageEncoder], height: int, width: int
) -> None:
    encoder = new_encoder()
    embedding = encoder(images(height, width, count=2))
    uncovered = torch.ones(8, 8, dtype=torch.bool)
    uncovered[: height // 16, : width // 16] = False
    assert embedding.shape == (2, 256, 8, 8)
    assert (embedding[:, :, uncovered] == encoder.outside[:, None]).all()
    assert not (embedding[:, :, ~uncovered] == encoder.outside[:, None]).any()


def test_a_rectangle_is_read_from_the_squares_upper_left(new_encoder: Callable[..., ImageEncoder]) -> None:
    # windowed layers alone: tokens of the rectangle then see the same as in the square
    encoder = new_encoder(global_layers=(), keep_ratio=0.5)
    encoder.neck[2] = nn.Identity()  # its 3 x 3 convolution sees over the edge
    x = images()
    torch.testing.assert_close(encoder(x[..., :64, :])[:, :, :4], encoder(x)[:, :, :4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(100, 128), (128, 80), (192, 128), (128, 192), (0, 128)])
def test_an_input_that_is_no_whole_windows_is_refused(
    new_encoder: Callable[..., ImageEncoder], refused: Refused, height: int, width: int
) -> None:
    with refused(ValueError, match=f"input of {height} x {width} pixels.* multiples of 64 up to 128"):
        new_encoder()(images(height, width))


def test_an_encoder_with_padded_windows_takes_any_multiple_of_16(new_encoder: Callable[..., ImageEncoder]) -> None:
    assert new_encoder(window=3)(images(80, 112)).shape == (1, 256, 8, 8)


@pytest.mark.parametrize("size", [64, 80, 192])
def test_an_encoder_is_built_for_any_side_that_is_a_multiple_of_16(
    new_encoder: Callable[..., ImageEncoder], size: int
) -> None:
    embedding = new_encoder(image_size=size)(images(size, size))
    assert embedding.shape == (1, 256, size // 16, size // 16)


@pytest.mark.parametrize(
    ("size", "padded"), [((128, 96), (128, 128)), ((128, 64), (128, 64)), ((30, 128), (64, 128)), ((1, 65), (64, 128))]
)
def test_a_photograph_is_padded_to_whole_windows(
    new_encoder: Callable[..., ImageEncoder], size: tuple[int, int], padded: tuple[int, int]
) -> None:
    assert new_encoder().padded_size(*size) == padded


def test_a_model_with_padded_windows_pads_a_photograph_to_sams_square(
    new_encoder: Callable[..., ImageEncoder],
) -> None:
    assert new_encoder(window=3).padded_size(30, 128) == (128, 128)


def test_a_dense_model_pads_a_photograph_to_sams_square(tiny_dense: Config) -> None:
    assert ImageEncoder(tiny_dense()).padded_size(30, 128) == (128, 128)


# dtype ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bfloat16_pair(new_encoder: Callable[..., ImageEncoder]) -> tuple[ImageEncoder, ImageEncoder]:
    """The same weights computing in bfloat16 and in float32."""
    half, full = new_encoder(compute_dtype="bfloat16"), new_encoder()
    half.load_state_dict(full.state_dict())
    return half, full


@pytest.mark.parametrize("keep_ratio", [0, 1])
def test_bfloat16_comes_close_to_float32(bfloat16_pair: tuple[ImageEncoder, ImageEncoder], keep_ratio: float) -> None:
    half, full = bfloat16_pair
    half.keep_ratio = full.keep_ratio = keep_ratio
    x = images()
    error = (half(x) - full(x)).norm() / full(x).norm()
    assert 1e-4 < error < 0.03  # not 0: it did compute in bfloat16


def test_bfloat16_comes_close_to_float32_when_it_keeps_the_same_tokens(
    bfloat16_pair: tuple[ImageEncoder, ImageEncoder],
) -> None:
    half, full = bfloat16_pair
    for encoder in bfloat16_pair:
        for router in encoder.routers.values():
            router.score.weight.zero_()  # ties: rounding cannot change the choice
    x = images()
    error = (half(x) - full(x)).norm() / full(x).norm()
    assert 1e-4 < error < 0.03


@pytest.mark.parametrize("keep_ratio", [0.25, 1])
def test_a_bfloat16_encoder_takes_and_returns_float32(
    bfloat16_pair: tuple[ImageEncoder, ImageEncoder], keep_ratio: float
) -> None:
    half, _ = bfloat16_pair
    half.keep_ratio = keep_ratio
    assert half(images(64, 128)).dtype == torch.float32


def test_a_bfloat16_encoder_normalises_and_scores_in_float32(
    bfloat16_pair: tuple[ImageEncoder, ImageEncoder],
) -> None:
    half, _ = bfloat16_pair
    seen: set[torch.dtype] = set()
    for name, module in half.named_modules():
        if name.rsplit(".", 1)[-1] in ("norm1", "norm2") or name in ("neck.1", "neck.3"):
            module.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    encoding = half.encode(images())
    assert seen == {torch.float32}
    assert {routing.scores.dtype for routing in encoding.routings.values()} == {torch.float32}


def test_the_necks_norm_takes_its_statistics_in_float32(new_encoder: Callable[..., ImageEncoder]) -> None:
    norm = new_encoder().neck[1]
    x = (torch.randn(1, 256, 4, 4) + 50).bfloat16()  # bfloat16 statistics would lose the spread beside the mean
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = norm(x)
    torch.testing.assert_close(out, norm(x.float()))


@pytest.mark.gpu
def test_cuda_comes_close_to_the_cpu(new_encoder: Callable[..., ImageEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    encoder = new_encoder(window=3, keep_ratio=0.75)
    for router in encoder.routers.values():
        router.score.weight.zero_()  # ties: rounding cannot change the choice
    x = images(count=2)
    expected = encoder(x)
    torch.testing.assert_close(encoder.cuda()(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)


# start ---------------------------------------------------------------------------------------------------------------


def test_a_fresh_efficiency_block_leaves_unchosen_tokens_as_they_are(tiny: Config) -> None:
    encoder = ImageEncoder(tiny(keep_ratio=0)).requires_grad_(False)
    x = images()
    grid = encoder.patch_embed(x) + encoder.pos_embed
    begun = encoder.begin(x)
    assert not torch.equal(begun.layout.by_raster(begun.x), grid)  # the dense layer did run
    expected = encoder.neck(begun.layout.by_raster(begun.x).permute(0, 3, 1, 2))
    torch.testing.assert_close(encoder(x), expected)


# what is looked at on the way ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [4, 3], ids=["whole", "padded"])
@pytest.mark.parametrize("keep_ratio", [0, 0.5, 1])
def test_the_tokens_after_a_layer_come_back_in_raster_order(
    new_encoder: Callable[..., ImageEncoder], window: int, keep_ratio: float
) -> None:
    encoder = new_encoder(window=window, keep_ratio=keep_ratio)
    outputs: list[Tensor] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _block, _inputs, output: outputs.append(output))
    encoding = encoder.encode(images(count=2), features_of=(1, 3, 4))
    assert sorted(encoding.features) == [1, 3, 4]
    for layer, feature in encoding.features.items():
        assert feature.shape == (2, 8, 8, 32)
        assert torch.equal(feature, encoding.layout.by_raster(outputs[layer - 1]))
    last = encoding.features[4].permute(0, 3, 1, 2)
    assert torch.equal(encoder.neck(last), encoding.embedding)


def test_without_being_asked_no_features_are_kept(new_encoder: Callable[..., ImageEncoder]) -> None:
    assert new_encoder().encode(images()).features == {}


def test_the_logits_of_every_router_that_ran_come_back(new_encoder: Callable[..., ImageEncoder]) -> None:
    encoder = new_encoder(window=3, keep_ratio=0.5)
    encoding = encoder.encode(images(count=2), features_of=(1, 3))
    assert list(encoding.logits) == list(encoding.routings) == [1, 3]
    for layer, logits in encoding.logits.items():
        scored = encoder.routers[str(layer - 1)](encoding.features[layer])
        torch.testing.assert_close(encoding.layout.by_raster(logits[..., None])[..., 0], scored.view(2, 8, 8))


@pytest.mark.parametrize("keep_ratio", [0, 1])
def test_where_no_router_chooses_there_are_no_logits(
    new_encoder: Callable[..., ImageEncoder], keep_ratio: float
) -> None:
    assert new_encoder(keep_ratio=keep_ratio).encode(images()).logits == {}


@pytest.mark.parametrize("layer", [0, 5])
def test_tokens_after_a_layer_that_there_is_not_are_refused(
    new_encoder: Callable[..., ImageEncoder], refused: Refused, layer: int
) -> None:
    with refused(ValueError, match=f"features_of names layer {layer}; blvit_tiny has layers 1 to 4"):
        new_encoder().encode(images(), features_of=(1, layer))


# factors on updates --------------------------------------------------------------------------------------------------

RATIOS = pytest.mark.parametrize("keep_ratio", [0, 0.25, 1])


@RATIOS
def test_factors_of_1_change_nothing(new_encoder: Callable[..., ImageEncoder], keep_ratio: float) -> None:
    encoder = new_encoder(keep_ratio=keep_ratio)
    x = images(count=2)
    assert torch.equal(encoder.encode(x, branch_scale=torch.ones(2, 4, 2)).embedding, encoder(x))


@RATIOS
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_with_factors_of_0_a_layer_passes_an_image_through(
    new_encoder: Callable[..., ImageEncoder], keep_ratio: float, layer: int
) -> None:
    encoder = new_encoder(keep_ratio=keep_ratio)
    scale = torch.ones(2, 4, 2)
    scale[1, layer - 1] = 0
    x = images(count=2)
    encoding = encoder.encode(x, branch_scale=scale, features_of=(1, 2, 3))
    plain = encoder.encode(x, features_of=(1, 2, 3))
    begun = encoder.patch_embed(x) + encoder.pos_embed
    before = encoding.features.get(layer - 1, begun)
    assert torch.equal(encoding.features[layer][1], before[1])
    assert torch.equal(encoding.features[layer][0], plain.features[layer][0])
    assert not torch.equal(plain.features[layer][1], before[1])


@RATIOS
@pytest.mark.parametrize("window", [4, 3], ids=["whole", "padded"])
@pytest.mark.parametrize("half", [0, 1], ids=["attention", "feed_forward"])
def test_a_factor_multiplies_the_whole_update_of_its_half(
    new_encoder: Callable[..., ImageEncoder], keep_ratio: float, window: int, half: int
) -> None:
    encoder = new_encoder(window=window, keep_ratio=keep_ratio)

    def update(factor: float) -> Tensor:
        """Of the second layer's one half, where the other does nothing."""
        scale = torch.ones(1, 4, 2)
        scale[0, 1] = torch.tensor([factor, 0.0] if half == 0 else [0.0, factor])
        features = encoder.encode(x, branch_scale=scale, features_of=(1, 2)).features
        return features[2] - features[1]

    x = images()
    torch.testing.assert_close(update(2.5), 2.5 * update(1), rtol=1e-4, atol=1e-5)
    assert update(1).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(4, 2), (1, 4, 2), (2, 3, 2), (2, 4)])
def test_factors_of_another_shape_are_refused(
    new_encoder: Callable[..., ImageEncoder], refused: Refused, shape: tuple[int, ...]
) -> None:
    with refused(ValueError, match=r"branch_scale of shape .* is not one of \(2, 4, 2\)"):
        new_encoder().encode(images(count=2), branch_scale=torch.ones(shape))


# training ------------------------------------------------------------------------------------------------------------


def learned(encoder: ImageEncoder, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The embedding, and the gradients of some loss by the parameter's name."""
    encoder.train().requires_grad_(True).zero_grad()
    embedding = encoder.encode(x, branch_scale=torch.linspace(0.5, 1.5, 8 * len(x)).view(-1, 4, 2)).embedding
    (embedding * torch.linspace(-1, 1, embedding.numel()).view_as(embedding)).sum().backward()
    gradients = {name: value.grad for name, value in encoder.named_parameters() if value.grad is not None}
    return embedding.detach(), gradients


@RATIOS
def test_checkpointed_layers_give_the_same_embedding_and_gradients(
    new_encoder: Callable[..., ImageEncoder], keep_ratio: float
) -> None:
    encoder = new_encoder(window=3, keep_ratio=keep_ratio)
    x = images(count=2)
    embedding, gradients = learned(encoder, x)
    encoder.checkpoint_layers = True
    again, gradients_again = learned(encoder, x)
    assert torch.equal(embedding, again)
    assert gradients.keys() == gradients_again.keys()
    assert [name for name, value in gradients.items() if not torch.equal(value, gradients_again[name])] == []


def kept_for_the_gradient(encoder: ImageEncoder) -> int:
    """Elements beside the parameters that the graph of one embedding holds."""
    parameters = {value.data_ptr() for value in encoder.parameters()}
    held: dict[int, int] = {}

    def seen(value: Tensor) -> Tensor:
        held[value.data_ptr()] = value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda value: value):
        encoder.train().requires_grad_(True).encode(images())
    return sum(count for pointer, count in held.items() if pointer not in parameters)


def test_checkpointed_layers_keep_less_for_the_gradient(new_encoder: Callable[..., ImageEncoder]) -> None:
    encoder = new_encoder()
    encoder.neck = nn.Sequential(nn.Identity())  # as wide as 8 layers of the tiny model
    everything = kept_for_the_gradient(encoder)
    encoder.checkpoint_layers = True
    assert kept_for_the_gradient(encoder) < 0.3 * everything


def test_a_compiled_layer_learns_the_same(new_encoder: Callable[..., ImageEncoder]) -> None:
    encoder = new_encoder()
    compiled = copy.deepcopy(encoder)
    compiled.blocks[2].compile(backend="aot_eager")  # traced and differentiated as by the default one, but no C++
    x = images()
    embedding, gradients = learned(encoder, x)
    again, gradients_again = learned(compiled, x)
    torch.testing.assert_close(again, embedding)
    torch.testing.assert_close(gradients_again, gradients)


SHARDED = """
import copy, json, sys
from pathlib import Path
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from sam_blvit.config import ModelConfig
from sam_blvit.system.distributed import joined_processes
from sam_blvit.model.encoder import ImageEncoder

def learned(encoder, x):
    encoder.zero_grad()
    embedding = encoder(x)
    (embedding * torch.linspace(-1, 1, embedding.numel()).view_as(embedding)).sum().backward()
    return embedding.detach(), {name: value.grad for name, value in encoder.named_parameters()}

def whole(value):
    return value.full_tensor() if isinstance(value, DTensor) else value

directory, report = Path(sys.argv[1]), {}
plain = ImageEncoder(ModelConfig.from_json((directory / "config.json").read_text()))
plain.load_state_dict(torch.load(directory / "weights.pth"))
images = torch.load(directory / "images.pth")
with joined_processes() as processes:
    sharded = copy.deepcopy(plain)
    for block in sharded.blocks:
        fully_shard(block)
    fully_shard(sharded)
    for checkpointed in (False, True):
        sharded.checkpoint_layers = checkpointed
        for keep_ratio in (0, 0.25, 1):
            plain.keep_ratio = sharded.keep_ratio = keep_ratio
            each = [learned(plain, x) for x in images]  # FSDP2 gives every process the mean of their gradients
            embedding, gradients = learned(sharded, images[processes.rank])
            wrong = []
            for name, ours in gradients.items():
                theirs = [of[name] for _, of in each]
                if (ours is None) != (theirs[0] is None):
                    wrong.append(name)
                elif ours is not None and not torch.allclose(whole(ours), sum(theirs) / 2, rtol=1e-3, atol=1e-5):
                    wrong.append(name)
            report[f"{checkpointed} {keep_ratio}"] = {
                "embedding": (embedding - each[processes.rank][0]).abs().max().item(),
                "gradients": wrong,
                "learned": sum(value is not None for value in gradients.values()),
            }
    report["sharded"] = all(isinstance(value, DTensor) for value in sharded.parameters())
(directory / f"{processes.rank}.json").write_text(json.dumps(report))
"""


def test_sharded_by_fsdp2_the_encoder_learns_the_same(new_encoder: Callable[..., ImageEncoder], tmp_path: Path) -> None:
    encoder = new_encoder(window=3, little_layers=(2, 4))  # layer 3 runs without any parameter at keep ratio 0
    (tmp_path / "config.json").write_text(encoder.config.to_json())
    torch.save(encoder.state_dict(), tmp_path / "weights.pth")
    torch.save(images(count=2)[:, None], tmp_path / "images.pth")  # one for each process
    run_in_two(SHARDED, tmp_path)
    for rank in range(2):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        assert report.pop("sharded")
        assert len(report) == 6
        for case, seen in report.items():
            assert seen["embedding"] < 1e-5, case
            assert seen["gradients"] == [], case
            assert seen["learned"] > 40, case
