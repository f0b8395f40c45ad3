"""Milliseconds of every attention backend at the shapes of blvit_b_t and vit_b; `fastest_backend` follows them.

$ python studies/attention_speed.py [cpu|cuda]
"""

import statistics
import sys

import torch
from torch import Tensor

from sam_blvit.cost.latency import now
from sam_blvit.model.attention_backends import BACKENDS, attend, attention_backend, fastest_backend
from sam_blvit.model.windows import TokenGrid
from sam_blvit.system.allocator import tune_allocator
from sam_blvit.system.machine import processor

TURNS = 9
SHAPES = {
    "window, dense": (16, 12, 256, (1, 1, 16, 16)),
    "window, performance block": (16, 12, 64, (1, 1, 16, 16)),
    "window, efficiency block": (16, 3, 256, (1, 1, 16, 16)),
    "512 px, dense": (1, 12, 1024, (2, 2, 16, 16)),
    "512 px, performance block": (1, 12, 256, (2, 2, 16, 16)),
    "512 px, efficiency block": (1, 3, 1024, (2, 2, 16, 16)),
    "1024 px, dense": (1, 12, 4096, (4, 4, 16, 16)),
    "1024 px, performance block": (1, 12, 1024, (4, 4, 16, 16)),
    "1024 px, efficiency block": (1, 3, 4096, (4, 4, 16, 16)),
}
"""Groups, heads, queries and the blocks of the keys' grid."""
CHANNELS = 64


def asked(
    name: str, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, TokenGrid]:
    """The inputs of `attend`, in the memory layout that the projections produce."""
    groups, heads, queries, blocks = SHAPES[name]
    grid = TokenGrid.of(blocks, device)

    def heads_of(tokens: int) -> Tensor:
        return torch.randn(groups, tokens, heads, CHANNELS, dtype=dtype, device=device).transpose(1, 2)

    keys = grid.height * grid.width
    by_row, by_col = (
        torch.randn(groups, heads, queries, side, dtype=dtype, device=device) for side in (grid.height, grid.width)
    )
    return heads_of(queries), heads_of(keys), heads_of(keys), by_row, by_col, grid


@torch.no_grad()
def medians(name: str, dtype: torch.dtype, device: torch.device) -> tuple[str, dict[str, float]]:
    """The backend chosen by `fastest_backend`, and the milliseconds of each."""
    given = asked(name, dtype, device)
    backends = [backend for backend in BACKENDS if backend != ("tiles" if device.type == "cuda" else "flex")]
    spent: dict[str, list[float]] = {backend: [] for backend in backends}
    for turn in range(TURNS + 1):
        for backend in backends:
            with attention_backend(backend):
                start = now(device)
                attend(*given)
                if turn:
                    spent[backend].append(now(device) - start)
    chosen = fastest_backend(given[0], keys=given[1].shape[2], trained=False)
    return chosen, {backend: statistics.median(times) for backend, times in spent.items()}


def main(device: torch.device) -> None:
    """Print a Markdown table."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(
        f"{processor()}, {where}, torch {torch.__version__}, tuned allocator, ms, median of {TURNS} turns, * is taken"
    )
    for dtype in (torch.bfloat16, torch.float32):
        header = None
        for name in SHAPES:
            chosen, spent = medians(name, dtype, device)
            if header is None:
                header = f"\n| {str(dtype).removeprefix('torch.')} | {' | '.join(spent)} |"
                print(header, "|---" * (len(spent) + 1) + "|", sep="\n")
            cells = [f"{spent[backend]:.1f}{' *' if backend == chosen else ''}" for backend in spent]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    tune_allocator()
    main(torch.device(sys.argv[1] if len(sys.argv) > 1 else "cpu"))
