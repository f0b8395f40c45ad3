"""Router statistics, against counting token by token."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sam_blvit.config import ModelConfig
from sam_blvit.model.encoder import Encoding, ImageEncoder
from sam_blvit.model.windows import WindowLayout
from sam_blvit.train.loss.router_health import relative_entropy, router_health

VALID_SIZES = [(8, 8), (6, 8), (7, 3)]
"""Rows and columns of tokens that each photograph of the batch covers."""


def encoded(config: ModelConfig, randomize: Callable[[ImageEncoder], ImageEncoder], size: tuple[int, int]) -> Encoding:
    encoder = randomize(ImageEncoder(config))
    with torch.no_grad():
        return encoder.encode(torch.randn(len(VALID_SIZES), 3, *size))


def photographs(grid: int) -> Tensor:
    valid = torch.zeros(len(VALID_SIZES), grid, grid)
    for i, (rows, cols) in enumerate(VALID_SIZES):
        valid[i, :rows, :cols] = 1
    return valid


def window_major(grid: tuple[int, int], window: int) -> list[tuple[int, int]]:
    """Row and column of each token, in the order of tokens."""
    places = [(row, col) for row in range(grid[0]) for col in range(grid[1])]
    return sorted(places, key=lambda place: (place[0] // window, place[1] // window, *place))


def counted(encoding: Encoding, valid: Tensor, window: int) -> dict[str, float]:
    places = window_major(encoding.layout.grid, window)
    health: dict[str, float] = {}
    sides_before: dict[tuple[int, int], bool] = {}
    for layer in sorted(encoding.routings):
        sides: dict[tuple[int, ...], bool] = {}
        names = [f"region_{i}_{j}" for i in range(3) for j in range(3)] + ["padding"]
        primary = dict.fromkeys(names, 0)
        entropies = []
        for image, (rows, cols) in enumerate(VALID_SIZES):
            windows: dict[tuple[int, int], list[float]] = {}
            for token, (row, col) in enumerate(places):
                windows.setdefault((row // window, col // window), []).append(
                    math.exp(encoding.logits[layer][image, token])
                )
                chosen = bool(encoding.routings[layer].primary[image, token])
                inside = bool(valid[image, row, col])
                if inside:
                    sides[image, row, col] = chosen
                if chosen:
                    primary[f"region_{3 * row // rows}_{3 * col // cols}" if inside else "padding"] += 1
            for weights in windows.values():
                if len(weights) > 1:
                    shares = [weight / sum(weights) for weight in weights]
                    entropies.append(-sum(s * math.log(s) for s in shares) / math.log(len(weights)))
        health |= {f"router_{layer}/{name}": count / sum(primary.values()) for name, count in primary.items()}
        health[f"router_{layer}/entropy"] = sum(entropies) / len(entropies)
        if sides_before:
            health[f"router_{layer}/change"] = sum(sides[p] != sides_before[p] for p in sides) / len(sides)
        sides_before = sides  # type: ignore[assignment]
    return health


@pytest.mark.parametrize("window", [3, 4])
def test_health_is_what_counting_token_by_token_gives(
    tiny: Callable[..., ModelConfig], randomize: Callable[[ImageEncoder], ImageEncoder], window: int
) -> None:
    encoding = encoded(tiny(window=window), randomize, (128, 128))
    assert list(encoding.routings) == [1, 3]
    expected = counted(encoding, photographs(8), window)
    assert expected["router_1/padding"] > 0
    assert expected["router_3/change"] > 0
    assert router_health(encoding, photographs(8)) == pytest.approx(expected, abs=1e-5)


def test_what_the_encoder_did_not_get_to_see_does_not_count(
    tiny: Callable[..., ModelConfig], randomize: Callable[[ImageEncoder], ImageEncoder]
) -> None:
    encoding = encoded(tiny(), randomize, (64, 128))
    valid = torch.zeros(3, 8, 8)
    valid[:, :4] = 1
    health = router_health(encoding, valid)
    assert health["router_1/padding"] == 0
    assert sum(share for name, share in health.items() if name.startswith("router_1/region")) == pytest.approx(1)


@pytest.mark.parametrize("keep_ratio", [0.0, 1.0])
def test_where_no_router_runs_nothing_is_said(
    tiny: Callable[..., ModelConfig], randomize: Callable[[ImageEncoder], ImageEncoder], keep_ratio: float
) -> None:
    assert router_health(encoded(tiny(keep_ratio=keep_ratio), randomize, (128, 128)), photographs(8)) == {}


def test_entropy_is_1_for_uniform_scores_and_0_for_a_sure_router() -> None:
    layout = WindowLayout((8, 8), 4, torch.device("cpu"))
    assert relative_entropy(torch.zeros(2, 64), layout).item() == pytest.approx(1)
    sure = torch.zeros(2, 64)
    sure[:, ::16] = 1000
    assert relative_entropy(sure, layout).item() == pytest.approx(0)
