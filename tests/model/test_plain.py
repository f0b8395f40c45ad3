"""Modules that stand where ours stood are called: adapters, int8 layers, parametrisations and hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sam_blvit.config import ModelConfig
from sam_blvit.model.encoder import ImageEncoder
from sam_blvit.model.plain import is_plain

pytestmark = pytest.mark.filterwarnings("ignore:.*quanti:DeprecationWarning", "ignore:.*quanti:UserWarning")

Randomize = Callable[[nn.Module], nn.Module]
KEEP_RATIOS = pytest.mark.parametrize("keep_ratio", [0.0, 0.25, 1.0])
KEYS = pytest.mark.parametrize("keys", ["all", "primary", "pooled"])


class LoRA(nn.Module):
    """A Linear and a low-rank update of it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, 2, bias=False)
        self.up = nn.Linear(2, linear.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.up(self.down(x))

    def merged(self) -> nn.Linear:
        linear = copy.deepcopy(self.linear)
        linear.weight.data += self.up.weight @ self.down.weight
        return linear


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.fixture
def encoder(tiny: Callable[..., ModelConfig], randomize: Randomize, request: pytest.FixtureRequest) -> ImageEncoder:
    keys = request.node.callspec.params.get("keys", "all")
    pool = {"pool": 2} if keys == "pooled" else {}
    encoder = ImageEncoder(tiny(primary_keys=keys, **pool))
    randomize(encoder)
    return encoder.eval().requires_grad_(False)


def images() -> Tensor:
    return torch.randn(2, 3, 128, 128)


@KEYS
@KEEP_RATIOS
def test_a_wrapped_adapter_equals_a_merged_one(encoder: ImageEncoder, keep_ratio: float, keys: str) -> None:
    encoder.keep_ratio = keep_ratio
    wrapped, merged = encoder, copy.deepcopy(encoder)
    for ours, theirs in zip(wrapped.blocks, merged.blocks, strict=True):
        adapter = LoRA(ours.attn.qkv)
        theirs.attn.qkv = adapter.merged()
        ours.attn.qkv = adapter
    x = images()
    torch.testing.assert_close(wrapped(x), merged(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("keep_ratio", [0.25, 1.0])
def test_hooks_on_every_projection_and_the_neck_are_called(encoder: ImageEncoder, keep_ratio: float) -> None:
    encoder.keep_ratio = keep_ratio
    x = images()
    expected = encoder(x)
    called = []
    watched = [block.attn.qkv for block in encoder.blocks] + [encoder.neck]
    if keep_ratio < 1:
        watched += [router.score for router in encoder.routers.values()]
    for part in watched:
        part.register_forward_hook(lambda part, given, out: called.append(part))
    torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-5)
    assert len(called) == len(set(called)) == len(watched)


@pytest.mark.parametrize("keep_ratio", [0.25, 1.0])
def test_a_parametrised_weight_is_the_one_that_counts(encoder: ImageEncoder, keep_ratio: float) -> None:
    encoder.keep_ratio = keep_ratio
    plain = copy.deepcopy(encoder)
    for ours, theirs in zip(encoder.blocks, plain.blocks, strict=True):
        nn.utils.parametrize.register_parametrization(ours.attn.qkv, "weight", Doubled())
        theirs.attn.qkv.weight.data *= 2
    x = images()
    torch.testing.assert_close(encoder(x), plain(x), rtol=1e-4, atol=1e-5)


@KEEP_RATIOS
def test_an_int8_encoder_comes_near_the_float_one(encoder: ImageEncoder, keep_ratio: float) -> None:
    encoder.keep_ratio = keep_ratio
    x = images()
    expected = encoder(x)
    # the routers stay in float, or other tokens might be primary
    layers = {name for name, part in encoder.named_modules() if type(part) is nn.Linear and "routers" not in name}
    settings = dict.fromkeys(layers, torch.ao.quantization.default_dynamic_qconfig)
    quantized = torch.ao.quantization.quantize_dynamic(encoder, settings, dtype=torch.qint8)
    assert type(quantized.blocks[1].attn.qkv) is not nn.Linear
    assert (quantized(x) - expected).norm() < 0.2 * expected.norm()


@KEEP_RATIOS
def test_a_model_whose_routers_are_int8_too_runs(encoder: ImageEncoder, keep_ratio: float) -> None:
    encoder.keep_ratio = keep_ratio
    quantized = torch.ao.quantization.quantize_dynamic(encoder, {nn.Linear}, dtype=torch.qint8)
    assert quantized(images()).isfinite().all()


def test_only_a_module_that_nobody_changed_or_watches_is_plain() -> None:
    class Special(nn.Linear):
        pass

    assert is_plain(nn.Linear(2, 2), (nn.Linear,))
    hooked, replaced, parametrised = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    hooked.register_forward_pre_hook(lambda part, given: None)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    nn.utils.parametrize.register_parametrization(parametrised, "weight", Doubled())
    others = [hooked, replaced, parametrised, Special(2, 2), nn.Linear(2, 2, bias=False)]
    assert not any(is_plain(part, (nn.Linear,)) for part in others)
