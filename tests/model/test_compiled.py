"""Compiled encoders: one graph whatever is kept, few compilations, and the same embedding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from conftest import VARIANTS
from sam_blvit.config import ModelConfig
from sam_blvit.model.build import build_sam
from sam_blvit.model.compiled import compile_encoder, compiled
from sam_blvit.model.encoder import ImageEncoder

Tiny = Callable[..., ModelConfig]


@pytest.fixture
def tiny(tiny: Tiny) -> Tiny:
    """A layer less, as every layer is traced: 1 dense, 2 global, 3 windowed, routers after 1 and 2."""
    return partial(tiny, layers=3, global_layers=(2,), routers_after=(1, 2), little_layers=(2, 3))


@pytest.fixture
def encoder(tiny: Tiny, randomize: Callable[[nn.Module], nn.Module]) -> ImageEncoder:
    return randomize(build_sam(tiny()).eval().image_encoder)


@torch.no_grad()
def test_every_keep_ratio_window_and_shape_is_one_graph(
    tiny: Tiny, randomize: Callable[[nn.Module], nn.Module], graphs: CompileCounter
) -> None:
    asked = 0
    for window, dtype in ((4, "float32"), (3, "float32"), (4, "bfloat16")):
        encoder = randomize(build_sam(tiny(window=window, compute_dtype=dtype)).eval().image_encoder)
        embed = compiled(encoder)
        for keep_ratio in (0.0, 0.25, 1.0):
            encoder.keep_ratio = keep_ratio
            photographs = (128,) if dtype == "bfloat16" else (128, 64)
            for height in {encoder.padded_size(height, 128)[0] for height in photographs}:
                images = torch.randn(1, 3, height, 128)
                torch.testing.assert_close(embed(images), encoder.forward(images))
                asked += 1
    assert graphs.frame_count == asked


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_one_graph(
    tiny: Tiny, randomize: Callable[[nn.Module], nn.Module], variant: str, graphs: CompileCounter
) -> None:
    encoder = randomize(build_sam(tiny(**VARIANTS[variant])).eval().image_encoder)
    images = torch.randn(1, 3, 128, 128)
    torch.testing.assert_close(compiled(encoder)(images), encoder.forward(images))
    assert graphs.frame_count == 1


@torch.no_grad()
@pytest.mark.parametrize("window", [3, 4])
def test_batches_of_more_than_one_share_their_code(
    tiny: Tiny, randomize: Callable[[nn.Module], nn.Module], window: int, graphs: CompileCounter
) -> None:
    encoder = randomize(build_sam(tiny(window=window)).eval().image_encoder)
    embed = compiled(encoder)
    for batch in (1, 2, 3, 5, 1):
        images = torch.randn(batch, 3, 128, 128)
        torch.testing.assert_close(embed(images), encoder.forward(images))
    assert graphs.frame_count == 2


def test_with_gradients_the_encoder_itself_runs(encoder: ImageEncoder, graphs: CompileCounter) -> None:
    compile_encoder(encoder)
    encoder(torch.randn(1, 3, 128, 128)).sum().backward()
    assert encoder.pos_embed.grad is not None
    assert graphs.frame_count == 0


@torch.no_grad()
def test_changed_weights_are_refused(encoder: ImageEncoder, graphs: CompileCounter) -> None:
    compile_encoder(encoder)
    images = torch.randn(1, 3, 128, 128)
    encoder(images)
    encoder.pos_embed.add_(1)
    with pytest.raises(RuntimeError, match="weights of a compiled encoder have changed; compile it again"):
        encoder(images)


@torch.no_grad()
def test_a_copy_of_a_compiled_encoder_is_its_own(encoder: ImageEncoder, graphs: CompileCounter) -> None:
    images = torch.randn(1, 3, 128, 128)
    compile_encoder(encoder)
    encoder(images)
    other = copy.deepcopy(encoder)
    other.pos_embed.add_(1)
    assert not torch.equal(other(images), encoder(images))
    assert graphs.frame_count == 1


@torch.no_grad()
def test_hooks_are_called(encoder: ImageEncoder, graphs: CompileCounter) -> None:
    seen: list[torch.Size] = []
    encoder.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    compile_encoder(encoder)
    encoder(torch.randn(1, 3, 128, 128))
    assert seen == [torch.Size([1, 256, 8, 8])]


@torch.no_grad()
def test_what_cannot_be_compiled_is_one_line() -> None:
    class Awkward(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return images

    with pytest.raises(ValueError, match=r"^the encoder cannot be compiled here \(.*\); leave it eager$"):
        compiled(Awkward())(torch.zeros(1, 3, 8, 8))


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inductors_code_gives_the_embedding(
    tiny: Tiny, randomize: Callable[[nn.Module], nn.Module], dtype: str
) -> None:
    encoder = randomize(build_sam(tiny(compute_dtype=dtype)).eval().image_encoder)
    images = torch.randn(1, 3, 128, 128)
    atol = 1e-4 if dtype == "float32" else 0.1
    torch.testing.assert_close(compiled(encoder)(images), encoder.forward(images), rtol=0, atol=atol)


@torch.no_grad()
def test_inductors_code_has_todays_weights(tiny_dense: Tiny, randomize: Callable[[nn.Module], nn.Module]) -> None:
    encoder = randomize(build_sam(tiny_dense(layers=1, global_layers=(1,))).eval().image_encoder)
    images = torch.randn(1, 3, 128, 128)
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-4)
    close(compiled(encoder)(images), encoder.forward(images))
    encoder.neck[0].weight.mul_(0.5)
    encoder.pos_embed.add_(0.5)
    close(compiled(encoder)(images), encoder.forward(images))  # compiled again, not with the weights of before


@pytest.mark.gpu
@torch.no_grad()
def test_cuda_graphs_do_not_write_over_an_embedding(encoder: ImageEncoder) -> None:
    compile_encoder(encoder.cuda())
    images = torch.randn(4, 1, 3, 128, 128, device="cuda")
    embeddings = [encoder(image) for image in images]
    for image, embedding in zip(images, embeddings, strict=True):
        torch.testing.assert_close(embedding, encoder.forward(image), rtol=0, atol=1e-3)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("keep_ratio", [0.0, 0.25, 1.0])
def test_many_keys_compile_on_cuda(tiny: Tiny, randomize: Callable[[nn.Module], nn.Module], keep_ratio: float) -> None:
    config = tiny(image_size=640, keep_ratio=keep_ratio, compute_dtype="bfloat16")  # 40 x 40 tokens: FlexAttention
    encoder = randomize(build_sam(config).eval().image_encoder).cuda()
    compile_encoder(encoder)
    for batch in (1, 2, 3):
        images = torch.randn(batch, 3, 640, 640, device="cuda")
        torch.testing.assert_close(encoder(images), encoder.forward(images), rtol=0, atol=0.2)
