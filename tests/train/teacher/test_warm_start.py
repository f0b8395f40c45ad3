"""The layerwise warm start, on a dense encoder of random weights that efficiency blocks learn to follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sam_blvit.config import ModelConfig
from sam_blvit.model.big_little import BigLittleLayer
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.model.windows import GlobalScope, WindowScope
from sam_blvit.train.teacher.warm_start import warm_start

Randomize = Callable[[Sam], Sam]
SHAPES = [(128, 128), (128, 96), (60, 128), (128, 120)]
"""Of the photographs: more than one padded size where none is SAM's square."""


@pytest.fixture
def images() -> list[Tensor]:
    return [torch.randint(0, 256, (3, *shape), dtype=torch.uint8) for shape in SHAPES]


def started(config: ModelConfig, randomize: Randomize) -> Sam:
    """A model whose performance blocks are random and whose efficiency blocks are as at the start of training."""
    fresh = build_sam(config)
    sam = randomize(build_sam(config))
    little = {name: value for name, value in fresh.state_dict().items() if ".little." in name}
    sam.load_state_dict(little, strict=False)
    return sam


def warmed(sam: Sam, images: list[Tensor], **options: object) -> dict[int, float]:
    settings = {"steps": 60, "batch_size": 2, "say": lambda _: None, **options}
    return warm_start(sam, images, **settings)  # type: ignore[arg-type]


@torch.no_grad()
def distance_from_dense(sam: Sam, images: list[Tensor]) -> float:
    """Of the embedding at keep ratio 0, over all photographs, relative."""
    embeddings = {}
    for keep_ratio in (0.0, 1.0):
        sam.image_encoder.keep_ratio = keep_ratio
        embeddings[keep_ratio] = torch.cat([sam.encode_images([image.float()]) for image in images])
    return ((embeddings[0.0] - embeddings[1.0]).norm() / embeddings[1.0].norm()).item()


@pytest.mark.parametrize("window", [3, 4])
def test_a_warm_student_without_primary_tokens_is_closer_to_the_dense_one(
    tiny: Callable[..., ModelConfig], randomize: Randomize, images: list[Tensor], window: int
) -> None:
    sam = started(tiny(window=window), randomize)
    before = distance_from_dense(sam, images)
    errors = warmed(sam, images)
    assert list(errors) == [2, 3, 4]
    assert all(error < 0.9 for error in errors.values())
    assert distance_from_dense(sam, images) < 0.9 * before


def test_nothing_but_efficiency_blocks_changes(
    tiny: Callable[..., ModelConfig], randomize: Randomize, images: list[Tensor]
) -> None:
    sam = started(tiny(), randomize)
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    warmed(sam, images, steps=3)
    changed = {name for name, value in sam.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".little." in name}
    assert all(parameter.grad is None for parameter in sam.parameters())


def test_layers_without_an_efficiency_block_only_pass_the_tokens_on(
    tiny: Callable[..., ModelConfig], randomize: Randomize, images: list[Tensor]
) -> None:
    assert list(warmed(started(tiny(little_layers=(2, 4)), randomize), images, steps=2)) == [2, 4]


def test_an_efficiency_block_that_updates_nothing_has_an_error_of_1(
    tiny: Callable[..., ModelConfig], randomize: Randomize, images: list[Tensor]
) -> None:
    errors = warmed(started(tiny(), randomize), images, steps=0)
    assert errors == pytest.approx({2: 1, 3: 1, 4: 1})


@pytest.mark.parametrize("window", [3, 4])
@torch.no_grad()
def test_errors_are_those_on_what_the_dense_encoder_puts_before_each_layer(
    tiny: Callable[..., ModelConfig], randomize: Randomize, images: list[Tensor], window: int
) -> None:
    sam = randomize(build_sam(tiny(window=window)))
    encoder = sam.image_encoder
    squares = torch.zeros(5, 2, 2)  # layer, half, (error, wanted)
    for image in images:
        tokens = encoder.begin(sam.preprocess(image.float())[None])
        x, layout = tokens.x, tokens.layout
        for layer in (2, 3, 4):
            block = encoder.blocks[layer - 1]
            assert isinstance(block, BigLittleLayer)
            assert block.little is not None
            scope = (WindowScope if layer == 3 else GlobalScope)(layout, x.device)
            middle = x + scope.leave(block.attn(scope.enter(block.norm1(x)), scope.grid))
            after = block(x, scope, dense=True)
            for half, (update, wanted) in enumerate(
                [
                    (block.little.attention_update(x, scope), middle - x),
                    (block.little.mlp_update(middle), after - middle),
                ]
            ):
                squares[layer, half] += torch.stack([(update - wanted).square().sum(), wanted.square().sum()])
            x = after
    expected = (squares[..., 0] / squares[..., 1]).mean(1)
    assert warmed(sam, images, steps=0) == pytest.approx({n: expected[n].item() for n in (2, 3, 4)}, rel=1e-4)


def test_every_process_comes_to_the_same(
    tiny: Callable[..., ModelConfig], randomize: Randomize, images: list[Tensor]
) -> None:
    first = started(tiny(), randomize)
    second = build_sam(tiny())
    second.load_state_dict(first.state_dict())
    warmed(first, images, steps=4)
    torch.rand(3)  # the global generator is another's
    warmed(second, images, steps=4)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    third = build_sam(tiny())
    third.load_state_dict(first.state_dict())
    warmed(second, images, steps=4, seed=0)
    warmed(third, images, steps=4, seed=1)
    assert not all(torch.equal(value, third.state_dict()[name]) for name, value in second.state_dict().items())


def test_photographs_of_every_shape_are_learned_from(
    tiny: Callable[..., ModelConfig], randomize: Randomize, images: list[Tensor]
) -> None:
    first = started(tiny(), randomize)
    learned = []
    for last in (images[2], 255 - images[2]):  # the only one of its padded size
        sam = build_sam(tiny())
        sam.load_state_dict(first.state_dict())
        warmed(sam, [*images[:2], last], steps=8)
        learned.append(sam.image_encoder.blocks[1].state_dict()["little.mlp.leave.weight"])
    assert not torch.equal(*learned)


def test_bf16_learns_float32_weights(
    tiny: Callable[..., ModelConfig], randomize: Randomize, images: list[Tensor]
) -> None:
    sam = started(tiny(), randomize)
    errors = warmed(sam, images, precision="bf16")
    assert all(error < 0.9 for error in errors.values())
    assert all(parameter.dtype == torch.float32 for parameter in sam.parameters())


def test_each_layer_is_told_of(tiny: Callable[..., ModelConfig], randomize: Randomize, images: list[Tensor]) -> None:
    said: list[str] = []
    errors = warmed(started(tiny(), randomize), images, steps=5, say=said.append)
    assert said == [
        f"warm start: layer {layer}, error 1.000 -> {error:.3f} of the update" for layer, error in errors.items()
    ]


def test_without_photographs_there_is_nothing_to_learn_from(
    tiny: Callable[..., ModelConfig], randomize: Randomize, refused: Callable[..., Any]
) -> None:
    with refused(ValueError, "warm_start: no photograph can be used"):
        warmed(started(tiny(), randomize), [])
