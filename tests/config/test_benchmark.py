"""Options of a benchmark: one line of error for each mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sam_blvit.config import BenchmarkConfig


def test_nothing_has_to_be_asked_for() -> None:
    config = BenchmarkConfig()
    assert (config.devices, config.dtypes, config.batches) == (("auto",), ("auto",), (1,))
    assert config.rounds >= 5


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"devices": ("tpu",)}, "devices: 'tpu' is not one of auto, cpu, cuda, mps"),
        ({"dtypes": ("float16",)}, "dtypes: 'float16' is not one of auto, float32, bfloat16"),
        ({"ways": ("eager", "traced")}, "ways: 'traced' is not one of eager, compiled"),
        ({"aspects": ("3:2",)}, "aspects: '3:2' is not one of square, 4:3, 16:9"),
        ({"allocators": ("jemalloc",)}, "allocators: 'jemalloc' is not one of tuned, default"),
        ({"dtypes": ()}, "dtypes is empty; name some of auto, float32, bfloat16"),
        ({"batches": ()}, "batches is empty"),
        ({"batches": (1, 0)}, "batches: 0 is not a positive number"),
        ({"threads": (-1,)}, "threads: -1 is not a positive number"),
        ({"sides": (1024, 1000)}, "sides: 1000 is not a positive multiple of 16"),
        ({"sides": (0,)}, "sides: 0 is not a positive multiple of 16"),
        ({"keep_ratios": (0.25, 2.0)}, "keep_ratio=2.0 is not a number in"),
        ({"rounds": 0}, "rounds=0 is not a positive number"),
        ({"memory_limit": 0.0}, "memory_limit=0.0 GiB is not a positive number"),
    ],
)
def test_a_mistake_is_one_line(refused: Callable[..., Any], settings: dict[str, Any], line: str) -> None:
    with refused(ValueError, line):
        BenchmarkConfig(**settings)
