"""An image encoder under torch.compile, for inference.

The compiler takes seconds to import, so it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Embed = Callable[[Tensor], Tensor]
MANY_SHAPES = 128
"""Compilations of one function; torch gives up after 8, and a dial with a few keep ratios and rectangles has more."""


def compile_encoder(encoder: nn.Module) -> None:
    """From now on calling `encoder` runs compiled code; `compiled` says what that means."""
    encoder._compiled_call_impl = compiled(encoder)  # what nn.Module.compile sets; copies of a module leave it out


def compiled(encoder: nn.Module) -> Embed:
    """`encoder` as one graph, compiled when it is first called, and anew for another image size, keep ratio, or a batch
    after single images; any batch of more than one shares its code.

    On a CPU each graph has a copy of the weights, cast and packed; RuntimeError if they have changed since the first
    call (in any way but through `.data`, which torch does not see). On CUDA kernels are replayed as CUDA graphs, which
    older torch does in the first thread alone. With gradients enabled the encoder itself runs. ValueError if it cannot
    be compiled here.
    """
    import torch._dynamo
    from torch._inductor.compile_fx import compile_fx

    eager = encoder._call_impl  # with the module's hooks
    first: list[object] = []

    def inductor(graph: torch.fx.GraphModule, examples: list[Any]) -> Any:
        """Not torch's own "inductor", by which encoders of one class would share code with frozen weights in it."""
        on_cuda = any(isinstance(x, Tensor) and x.is_cuda for x in examples)
        return compile_fx(graph, examples, config_patches={"triton.cudagraphs": True} if on_cuda else None)

    call = torch.compile(eager, fullgraph=True, dynamic=False, backend=inductor)

    def embed(images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return eager(images)
        frozen = images.device.type == "cpu"
        if frozen:
            weights = _versions(encoder)
            if first and weights != first[0]:
                raise RuntimeError("weights of a compiled encoder have changed; compile it again")
            first[:] = [weights]
        if len(images) > 1:
            torch._dynamo.mark_dynamic(images, 0)
        with _compiling(frozen):
            if images.is_cuda:
                torch.compiler.cudagraph_mark_step_begin()
            embedding = call(images)
        return embedding.clone() if images.is_cuda else embedding  # the next replay writes over it

    return embed


@contextmanager
def _compiling(frozen: bool) -> Iterator[None]:
    """Settings that tracing asks for, for which an option of torch.compile comes too late."""
    import torch._dynamo
    import torch._inductor.config

    try:
        with torch._dynamo.config.patch(recompile_limit=MANY_SHAPES), torch._inductor.config.patch(freezing=frozen):
            yield
    except torch._dynamo.exc.TorchDynamoException as error:
        said = str(error).strip().splitlines() or [""]
        raise ValueError(
            f"the encoder cannot be compiled here ({type(error).__name__}: {said[0]}); leave it eager"
        ) from error


def _versions(encoder: nn.Module) -> list[tuple[int, int]]:
    """What changes when a weight does."""
    weights = [*encoder.parameters(), *encoder.buffers()]
    return [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]
