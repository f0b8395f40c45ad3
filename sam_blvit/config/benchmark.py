"""Options of `sam-blvit benchmark`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_blvit.config.commands import DEVICES
from sam_blvit.config.model import COMPUTE_DTYPES, PATCH_SIZE, check_keep_ratio

ASPECTS = {"square": (1, 1), "4:3": (4, 3), "16:9": (16, 9)}
"""Aspect ratios by name: width, height."""
BENCHMARK_CHOICES = {
    "devices": DEVICES,
    "dtypes": ("auto", *COMPUTE_DTYPES),
    "ways": ("eager", "compiled"),
    "aspects": tuple(ASPECTS),
    "allocators": ("tuned", "default"),
}
"""Settings that are lists of words, and the words allowed in each."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Conditions of a benchmark. Models are measured under every combination of the lists."""

    devices: tuple[str, ...] = ("auto",)
    """auto, cpu, cuda or mps. auto uses the first available of cuda, mps and cpu."""
    dtypes: tuple[str, ...] = ("auto",)
    """dtype of the encoder: float32 or bfloat16. Sets compute_dtype of this package's models; other models run under
    autocast. auto: bfloat16 if the device has matrix products in it, else float32."""
    ways: tuple[str, ...] = ("eager",)
    """eager or compiled (torch.compile, on CUDA with CUDA graphs)."""
    batches: tuple[int, ...] = (1,)
    """Images per batch."""
    sides: tuple[int, ...] = ()
    """Longest side of the input, pixels. Default: each model's own."""
    aspects: tuple[str, ...] = ("square",)
    """square, 4:3 or 16:9. Models with a fixed square input are measured on the square."""
    keep_ratios: tuple[float, ...] = ()
    """Keep ratios at which big.LITTLE models are measured. Default: each model's own."""
    threads: tuple[int, ...] = ()
    """Threads on a CPU. Default: PyTorch's own choice."""
    allocators: tuple[str, ...] = ("tuned",)
    """On a CPU: tuned (freed large blocks are kept for reuse, as in all commands) or default (glibc's settings)."""
    rounds: int = 7
    """Timed runs of each model, after warm-up."""
    memory_limit: float | None = None
    """Memory limit of a process, GiB. Default: nine tenths of the available memory."""
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
            raise ValueError("batches is empty; 1 is usual")
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
