"""An image encoder under torch.compile, for inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch._dynamo
import torch._inductor.config
from torch import Tensor, nn

Embed = Callable[[Tensor], Tensor]
MANY_SHAPES = 128
"""Compilations of one function; torch gives up after 8, and a dial with a few keep ratios and rectangles has more."""


def compile_encoder(encoder: nn.Module) -> None:
    """From now on calling `encoder` runs compiled code; `compiled` says what that means."""
    encoder._compiled_call_impl = compiled(encoder)  # what nn.Module.compile sets; copies of a module leave it out


def compiled(encoder: nn.Module) -> Embed:
    """`encoder`'s forward as one graph, compiled when it is first called, and anew for another image size, keep ratio,
    or a batch after single images; any batch of more than one shares its code.

    On a CPU, weights are cast and packed once; on CUDA, kernels are replayed as CUDA graphs. With gradients enabled
    the encoder itself runs. RuntimeError if a weight has changed since the first call: compiled code would not see it.
    """
    eager = encoder.forward
    call = torch.compile(eager, fullgraph=True, dynamic=False)
    on_cuda = torch.compile(eager, fullgraph=True, dynamic=False, mode="reduce-overhead")
    first: list[tuple[int, ...]] = []

    def embed(images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return eager(images)
        versions = tuple(parameter._version for parameter in encoder.parameters())
        if first and versions != first[0]:
            raise RuntimeError("weights of a compiled encoder have changed; compile it after loading them")
        first[:] = [versions]
        if len(images) > 1:
            torch._dynamo.mark_dynamic(images, 0)
        with _settings(images.device):
            if images.device.type != "cuda":
                return call(images)
            torch.compiler.cudagraph_mark_step_begin()
            return on_cuda(images).clone()  # the next replay writes over it

    return embed


@contextmanager
def _settings(device: torch.device) -> Iterator[None]:
    freezing = device.type == "cpu"  # as an option of torch.compile it comes too late: tracing asks for it
    with torch._dynamo.config.patch(recompile_limit=MANY_SHAPES), torch._inductor.config.patch(freezing=freezing):
        yield
