"""What test files share: models small enough for any CPU, weights that leave no term at zero, and skipped marks.

The tiny model has every kind of layer: 1 dense, 2 and 4 global, 3 windowed, routers after 1 and 3. Its image
has 128 px: 8 x 8 tokens in windows of 4 x 4; `window=3` makes padded windows of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import settings
from segment_anything import modeling as sa
from torch import nn
from torch._dynamo.testing import CompileCounter

from sam_blvit.config import MODELS, ModelConfig, compose, override, settings_of
from sam_blvit.cost.macs import Macs, sam_macs
from sam_blvit.evaluate import provenance
from sam_blvit.model.sam import Sam
from sam_blvit.system.allocator import tune_allocator

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"

settings.register_profile("suite", max_examples=100, deadline=None, derandomize=True, database=None)
settings.register_profile("fuzz", max_examples=int(os.environ.get("CASES", "5000")), deadline=None, print_blob=True)
settings.load_profile("fuzz" if "CASES" in os.environ else "suite")

tune_allocator()  # as every command does: page faults would be a third of the suite's time

AnyConfig = TypeVar("AnyConfig")
AnyModule = TypeVar("AnyModule", bound=nn.Module)

TINY = override(
    MODELS["blvit_tiny"],
    dim=32,
    heads=2,
    layers=4,
    global_layers=(2, 4),
    image_size=128,
    window=4,
    rel_pos_window=4,
    routed_from=2,
    routers_after=(1, 3),
    little_layers=(2, 3, 4),
    little_dim=16,
    little_heads=2,
)


VARIANTS: dict[str, dict[str, Any]] = {
    "random": {"router": "random", "score_scaling": False},
    "unscaled": {"score_scaling": False},
    "two_class": {"router_scores": "two_class"},
    "primary_keys": {"primary_keys": "primary"},
    "pooled_keys": {"primary_keys": "pooled", "pool": 2},
    "little_windowed": {"little_windowed": True},
    "without_little": {"little_layers": ()},
    "evit": {"little_layers": (), "primary_keys": "pooled", "pool": 4},
    "evo_vit": {"little_layers": (), "primary_keys": "pooled", "pool": 4, "broadcast": True},
}
"""Fields of the big.LITTLE models that the study compares with the paper's."""


LONGEST = (
    *("test_compiled", "test_finetune", "test_loop", "test_run", "test_benchmarks_evidence", "test_overfit"),
    *("test_flops", "test_attend", "test_notebooks", "test_command", "test_ap", "test_worker", "test_state"),
)
"""Test files that take longest, the longest first."""


def with_settings(config: AnyConfig, **settings: Any) -> AnyConfig:
    """`config` with other values of some of its flat settings."""
    return compose(type(config), **settings_of(config) | settings)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, lest one process end long after the others, and skip what this machine lacks the
    data or the device for."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    absent = {}
    if not REAL_DATA.is_dir():
        absent["data"] = pytest.mark.skip(reason="../shared/data is not here")
    if not torch.cuda.is_available():
        absent["gpu"] = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        for name, skip in absent.items():
            if item.get_closest_marker(name):
                item.add_marker(skip)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Counts what torch.compile makes, which then runs as it is: no C++ compiler is waited for."""
    torch._dynamo.reset()
    counter = CompileCounter()
    compile_for = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **settings: compile_for(f, **{**settings, "backend": counter}))
    return counter


_counted: dict[tuple[ModelConfig, float], tuple[Macs, Macs]] = {}


def macs_once(sam: sa.Sam) -> tuple[Macs, Macs]:
    """`sam_macs`, once for all models of a config that have the same keep ratio: a small one takes a second."""
    if type(sam) is not Sam:
        return sam_macs(sam)
    key = sam.config, sam.image_encoder.keep_ratio
    if key not in _counted:
        _counted[key] = sam_macs(sam)
    return _counted[key]


@pytest.fixture
def counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations do not count again what another has counted, which takes most of a small one's time."""
    monkeypatch.setattr(provenance, "sam_macs", macs_once)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> Callable[..., ModelConfig]:
    """The tiny big.LITTLE config, with fields replaced."""
    return partial(override, TINY)


@pytest.fixture
def tiny_dense() -> Callable[..., ModelConfig]:
    """The dense config of the same size, with fields replaced."""
    return partial(override, TINY, name="vit_tiny", routed_from=None, routers_after=(), little_layers=())


@pytest.fixture
def randomize() -> Callable[[AnyModule], AnyModule]:
    """Give every parameter of a module a random value, so that no term of an equation can be left out unseen."""

    def randomized(module: AnyModule) -> AnyModule:
        with torch.no_grad():
            for name, value in module.named_parameters():
                is_matrix = value.dim() > 1 and "pos_embed" not in name
                value.normal_(std=math.prod(value.shape[1:]) ** -0.5 if is_matrix else 0.3)
                if ("norm" in name or "neck" in name) and name.endswith("weight") and value.dim() == 1:
                    value.add_(1)
        return module

    return randomized


@pytest.fixture
def refused() -> Callable[..., Any]:
    """A context manager: the body must raise this kind of error, with one line that matches."""

    @contextmanager
    def expecting(kind: type[Exception], match: str) -> Iterator[pytest.ExceptionInfo[Exception]]:
        with pytest.raises(kind, match=match) as error:
            yield error
        assert "\n" not in str(error.value)

    return expecting


@pytest.fixture
def original_sam(randomize: Callable[[AnyModule], AnyModule]) -> Callable[[ModelConfig], sa.Sam]:
    """segment-anything's own Sam of a config's size, its encoder random (relative positions too)."""

    def build(config: ModelConfig) -> sa.Sam:
        encoder = sa.ImageEncoderViT(
            img_size=config.image_size,
            embed_dim=config.dim,
            depth=config.layers,
            num_heads=config.heads,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=config.window,
            global_attn_indexes=tuple(layer - 1 for layer in config.global_layers),
        )
        prompt_encoder = sa.PromptEncoder(
            embed_dim=256,
            image_embedding_size=(config.grid, config.grid),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=16,
        )
        mask_decoder = sa.MaskDecoder(
            transformer_dim=256,
            transformer=sa.TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048),
        )
        return sa.Sam(randomize(encoder), prompt_encoder, mask_decoder).eval()

    return build
