"""Every attention backend: equal to the formula, forward and backward, and chosen by what was measured."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from sam_blvit import SamPredictor, sam_model_registry
from sam_blvit.model.attention_backends import (
    BACKENDS,
    MANY_KEYS,
    _tile_by_tile,
    attend,
    attention_backend,
    fastest_backend,
)
from sam_blvit.model.windows import TokenGrid

CPU = torch.device("cpu")
RASTER, BLOCKS = (1, 1, 6, 8), (3, 2, 2, 4)  # 6 x 8 keys in two orders
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest difference from the formula in float64, for values of size one."""


def asked(
    dtype: torch.dtype,
    *,
    groups: int = 2,
    queries: int = 5,
    channels: int = 8,
    blocks: tuple[int, int, int, int] = BLOCKS,
):
    """q, k, v, by_row, by_col and the grid of keys."""
    grid = TokenGrid.of(blocks, CPU)
    keys = grid.height * grid.width
    shapes = [(queries, channels), *[(keys, channels)] * 2, (queries, grid.height), (queries, grid.width)]
    generator = torch.Generator().manual_seed(0)
    q, k, v, by_row, by_col = (torch.randn(groups, 3, *shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v, by_row, by_col, grid


def formula(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_col: Tensor, grid: TokenGrid) -> Tensor:
    """Key by key, in float64."""
    q, k, v, by_row, by_col = (x.double() for x in (q, k, v, by_row, by_col))
    logits = torch.stack(
        [
            (q * k[:, :, key : key + 1]).sum(-1) / q.shape[-1] ** 0.5
            + by_row[..., grid.rows[key]]
            + by_col[..., grid.cols[key]]
            for key in range(k.shape[2])
        ],
        dim=-1,
    )
    return torch.einsum("ghqt,ghtd->ghqd", logits.exp() / logits.exp().sum(-1, keepdim=True), v)


@pytest.mark.parametrize("blocks", [RASTER, BLOCKS])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "flex"])
def test_every_backend_equals_the_formula(backend: str, dtype: torch.dtype, blocks: tuple[int, int, int, int]) -> None:
    given = asked(dtype, blocks=blocks)
    with attention_backend(backend), torch.no_grad():
        out = attend(*given)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), formula(*given), rtol=0, atol=TOLERANCE[dtype])


def test_flex_equals_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    # as it is, without Triton
    monkeypatch.setattr("sam_blvit.model.attention_backends._compiled_flex", lambda: flex_attention)
    given = asked(torch.float32, queries=48)
    with attention_backend("flex"), torch.no_grad():
        torch.testing.assert_close(attend(*given).double(), formula(*given), rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [640, 2560])
@pytest.mark.parametrize("channels", [16, 64])
@pytest.mark.parametrize("backend", ["flex", "sdpa"])
def test_cuda_equals_the_formula(backend: str, channels: int, queries: int) -> None:
    blocks = (5, 4, 8, 16)  # 2560 keys
    *given, _ = asked(torch.bfloat16, groups=1, queries=queries, channels=channels, blocks=blocks)
    with torch.no_grad(), attention_backend("eager"):
        expected = attend(*(x.float() for x in given), TokenGrid.of(blocks, CPU))
    with torch.no_grad(), attention_backend(backend):
        out = attend(*(x.cuda() for x in given), TokenGrid.of(blocks, torch.device("cuda")))
    torch.testing.assert_close(out.cpu().float(), expected, rtol=0, atol=2e-2)


def test_flex_is_one_graph_with_the_rest(graphs: CompileCounter) -> None:
    given = asked(torch.float32, queries=48)
    with attention_backend("flex"), torch.no_grad():
        out = torch.compile(attend, fullgraph=True, dynamic=False)(*given)
    torch.testing.assert_close(out.double(), formula(*given), rtol=0, atol=1e-5)
    assert graphs.frame_count == 1


@pytest.mark.parametrize("trained", range(5))
def test_whatever_is_trained_gets_its_gradient(trained: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_blvit.model.attention_backends.MANY_KEYS", 1)  # tiles, which have none, if nothing were
    *given, grid = asked(torch.float32)
    given[trained].requires_grad_()
    attend(*given, grid).sum().backward()
    assert given[trained].grad is not None


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", ["eager", "sdpa", "widened"])
def test_gradients_equal_the_formulas(backend: str, dtype: torch.dtype) -> None:
    *tensors, grid = asked(dtype)
    weight = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(1))
    given = [x.clone().requires_grad_() for x in tensors]
    with attention_backend(backend):
        (attend(*given, grid) * weight).sum().backward()
    expected = [x.double().requires_grad_() for x in tensors]
    (formula(*expected, grid) * weight).sum().backward()
    for ours, theirs in zip(given, expected, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=5 * TOLERANCE[dtype])


def test_tiles_divide_the_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_blvit.model.attention_backends.TILE_BYTES", 1)
    monkeypatch.setattr("sam_blvit.model.attention_backends.LEAST_TILE", 4)
    given = asked(torch.float32, queries=11)  # tiles of 4, 4 and 3
    with attention_backend("tiles"), torch.no_grad():
        torch.testing.assert_close(attend(*given).double(), formula(*given), rtol=0, atol=1e-5)


def test_tiles_never_hold_a_number_for_every_query_and_key() -> None:
    queries = keys = 48 * 48
    *given, grid = asked(torch.bfloat16, groups=1, queries=queries, blocks=(1, 1, 48, 48))
    sizes: list[int] = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (out if isinstance(out, (list, tuple)) else [out]))
            return out

    with Sizes():
        _tile_by_tile(*given, grid.blocks)
    assert queries * grid.height <= max(sizes) < queries * keys


@pytest.mark.parametrize(
    ("dtype", "keys", "trained", "backend"),
    [
        (torch.bfloat16, 256, False, "widened"),
        (torch.bfloat16, MANY_KEYS + 1, False, "tiles"),
        (torch.bfloat16, MANY_KEYS + 1, True, "widened"),
        (torch.float32, 256, False, "sdpa"),
        (torch.float32, MANY_KEYS + 1, False, "tiles"),
        (torch.float32, MANY_KEYS + 1, True, "eager"),
    ],
)
def test_a_cpu_takes_the_backend_that_was_measured(dtype: torch.dtype, keys: int, trained: bool, backend: str) -> None:
    assert fastest_backend(torch.zeros(1, dtype=dtype), keys=keys, trained=trained) == backend


def test_other_devices_take_sdpa() -> None:
    assert fastest_backend(torch.zeros(1, device="meta"), keys=4096, trained=False) == "sdpa"


def test_a_backend_holds_for_its_context_alone() -> None:
    seen: list[str] = []
    given = asked(torch.float32)
    for backend in ("eager", "tiles"):
        BACKENDS[f"noted {backend}"] = lambda *a, backend=backend: (seen.append(backend), BACKENDS[backend](*a))[1]
    try:
        with attention_backend("noted eager"):
            with attention_backend("noted tiles"):
                attend(*given)
            attend(*given)
        attend(*given)
    finally:
        for backend in ("eager", "tiles"):
            del BACKENDS[f"noted {backend}"]
    assert seen == ["tiles", "eager"]


def test_an_unknown_backend_is_named() -> None:
    with (
        pytest.raises(ValueError, match="backend='fast' is not one of eager, sdpa, widened, tiles, flex"),
        attention_backend("fast"),
    ):
        pass


@pytest.fixture(scope="module")
def photographs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Three photographs and a box on each: those of `make demo`."""
    boxes = {"coffee": (160, 15, 420, 300), "rocket": (305, 105, 345, 415), "chelsea": (130, 20, 330, 250)}
    return [(getattr(skimage.data, name)(), np.array(box)) for name, box in boxes.items()]


def masks_of(photographs: list[tuple[np.ndarray, np.ndarray]], backend: str, dtype: str) -> list[np.ndarray]:
    predictor = SamPredictor(sam_model_registry["blvit_s_t"](compute_dtype=dtype))
    masks = []
    with attention_backend(backend):
        for photograph, box in photographs:
            predictor.set_image(photograph)
            masks.append(predictor.predict(box=box, multimask_output=False)[0][0])
    return masks


@pytest.fixture(scope="module")
def expected(photographs: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Masks by plain float32 attention."""
    return masks_of(photographs, "eager", "float32")


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.99), ("bfloat16", 0.98)])
@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "flex"])
def test_every_backend_masks_photographs_as_plain_float32_attention_does(
    photographs: list[tuple[np.ndarray, np.ndarray]], expected: list[np.ndarray], backend: str, dtype: str, least: float
) -> None:
    pairs = list(zip(masks_of(photographs, backend, dtype), expected, strict=True))
    assert all(other.any() for _, other in pairs)
    # the median: where a mask is a close call between an object and its part, any rounding decides
    assert np.median([(mask & other).sum() / (mask | other).sum() for mask, other in pairs]) >= least
