"""What `sam-blvit benchmark` takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_blvit.config.commands import DEVICES
from sam_blvit.config.model import COMPUTE_DTYPES, PATCH_SIZE, check_keep_ratio

ASPECTS = {"square": (1, 1), "4:3": (4, 3), "16:9": (16, 9)}
"""Shapes of a photograph, width to height."""
BENCHMARK_CHOICES = {
    "devices": DEVICES,
    "dtypes": ("auto", *COMPUTE_DTYPES),
    "ways": ("eager", "compiled"),
    "aspects": tuple(ASPECTS),
    "allocators": ("tuned", "default"),
}
"""Settings of a benchmark, and the words that each is a list of."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What models are measured under: every combination of the lists."""

    devices: tuple[str, ...] = ("auto",)
    """auto, cpu, cuda or mps. auto takes the first of cuda, mps, cpu that there is."""
    dtypes: tuple[str, ...] = ("auto",)
    """float32 or bfloat16, of the encoder: our own models' compute_dtype, autocast around others. auto: bfloat16 where
    the device multiplies it, else float32."""
    ways: tuple[str, ...] = ("eager",)
    """eager or compiled (torch.compile; on CUDA with CUDA graphs)."""
    batches: tuple[int, ...] = (1,)
    """Images that the encoder is given at once."""
    sides: tuple[int, ...] = ()
    """Longest side of the image, pixels. Default: each model's own."""
    aspects: tuple[str, ...] = ("square",)
    """square, 4:3 or 16:9. Models that take only their square are given that."""
    keep_ratios: tuple[float, ...] = ()
    """Keep ratios at which big.LITTLE models are measured. Default: each model's own."""
    threads: tuple[int, ...] = ()
    """Threads on a CPU. Default: as many as PyTorch takes."""
    allocators: tuple[str, ...] = ("tuned",)
    """On a CPU: tuned (large blocks are kept, as our commands do) or default (glibc's settings)."""
    rounds: int = 7
    """Times that each model is timed, after warm-up."""
    memory_limit: float | None = None
    """GiB of memory that a process may take. Default: nine tenths of what is available."""
    output: Path = Path("runs/benchmark")
    """Directory for benchmark.md, benchmark.json and the charts."""

    def __post_init__(self) -> None:
        for name, words in BENCHMARK_CHOICES.items():
            if not (given := getattr(self, name)):
                raise ValueError(f"{name} is empty; name some of {', '.join(words)}")
            for word in given:
                if word not in words:
                    raise ValueError(f"{name}: {word!r} is not one of {', '.join(words)}")
        if not self.batches:
            raise ValueError("batches is empty; 1 is the usual one")
        for name in ("batches", "threads"):
            if few := [number for number in getattr(self, name) if number < 1]:
                raise ValueError(f"{name}: {few[0]} is not a positive number")
        if odd := [side for side in self.sides if side < PATCH_SIZE or side % PATCH_SIZE]:
            raise ValueError(f"sides: {odd[0]} is not a positive multiple of {PATCH_SIZE}")
        for keep_ratio in self.keep_ratios:
            check_keep_ratio(keep_ratio)
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds} is not a positive number")
        if self.memory_limit is not None and self.memory_limit <= 0:
            raise ValueError(f"memory_limit={self.memory_limit} GiB is not a positive number")
