"""An image encoder under torch.compile, for inference.

The compiler takes seconds to import, so each function imports it when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Embed = Callable[[Tensor], Tensor]
MANY_SHAPES = 128
"""Limit of compilations of one function. Torch's is 8; a few keep ratios and image sizes need more."""


def compile_encoder(encoder: nn.Module) -> None:
    """Make calls of `encoder` run compiled code, in place; see `compiled`."""
    encoder._compiled_call_impl = compiled(encoder)  # what nn.Module.compile sets; copies of a module leave it out


def compiled(encoder: nn.Module) -> Embed:
    """A function that runs `encoder` as one compiled graph; with gradients enabled it runs the encoder itself.

    It compiles at the first call, and again for another image size, another keep ratio, and the first batch of more
    than one image; all such batches share one graph. On a CPU each graph holds a copy of the weights, cast and packed.
    On CUDA kernels are replayed as CUDA graphs, which older versions of torch do in the main thread only.

    Raises:
        ValueError: by the function, if the encoder cannot be compiled on this machine.
        RuntimeError: by the function, on a CPU, if weights have changed since the first call (except through `.data`,
            which torch does not track).
    """
    import torch._dynamo
    from torch._inductor.compile_fx import compile_fx

    eager = encoder._call_impl  # with the module's hooks
    first: list[object] = []

    def inductor(graph: torch.fx.GraphModule, examples: list[Any]) -> Any:
        """The inductor backend. Torch's own would let encoders of one class share code with frozen weights in it."""
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
        return embedding.clone() if images.is_cuda else embedding  # the next replay overwrites it

    return embed


@contextmanager
def _compiling(frozen: bool) -> Iterator[None]:
    """Settings that are read while tracing, too early for options of torch.compile."""
    import torch._dynamo
    import torch._inductor.config

    try:
        with torch._dynamo.config.patch(recompile_limit=MANY_SHAPES), torch._inductor.config.patch(freezing=frozen):
            yield
    except torch._dynamo.exc.TorchDynamoException as error:
        lines = str(error).strip().splitlines() or [""]
        raise ValueError(
            f"the encoder cannot be compiled here ({type(error).__name__}: {lines[0]}); leave it eager"
        ) from error


def _versions(encoder: nn.Module) -> list[tuple[int, int]]:
    """Address and version of each weight; one of them changes when the weight does."""
    weights = [*encoder.parameters(), *encoder.buffers()]
    return [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]
