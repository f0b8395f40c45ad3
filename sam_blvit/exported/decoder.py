"""The prompt encoder and mask decoder inside an exported SAM decoder, as segment_anything's parameters.

Reads what segment_anything's exporter and those derived from it (samexporter) write. Constants without a name are
recognised by the nodes that read them: each kind occurs in one place of the graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segment_anything.modeling import Sam as OriginalSam
from torch import Tensor

from sam_blvit.checkpoint.format import check_fit, check_values
from sam_blvit.exported.graph import BIAS, WEIGHT, Graph

PARTS = ("prompt_encoder.", "mask_decoder.")
EXPORTERS_PREFIX = "model."
"""segment_anything's exporter wraps the prompt encoder in a module of this name."""
GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
NO_MASK = "prompt_encoder.no_mask_embed.weight"
IOU_TOKEN, MASK_TOKENS = "mask_decoder.iou_token.weight", "mask_decoder.mask_tokens.weight"
CONVOLUTIONS = ("Conv", "ConvTranspose")


def read_decoder(path: str | Path, sam: OriginalSam) -> dict[str, Tensor]:
    """Parameters of `sam`'s prompt encoder and mask decoder from the exported decoder in `path`, under their names.

    Raises:
        CheckpointError: if a tensor is missing, unexpected, of another shape or not finite.
    """
    graph = Graph.read(path)
    found = {name.removeprefix(EXPORTERS_PREFIX): value for name, value in graph.parameters().items()}
    found.update(_channel_norms(graph))
    found.update(_tokens(graph, found))
    for name, value in graph.constants.items():
        if name.removeprefix(EXPORTERS_PREFIX) == GAUSSIAN:
            found[GAUSSIAN] = value
    expected = {name: value for name, value in sam.state_dict().items() if name.startswith(PARTS)}
    check_fit(found, expected, what=f"{path} holds no decoder of segment_anything's shape")
    check_values(found, what=str(path))
    return found


def _channel_norms(graph: Graph) -> dict[str, Tensor]:
    """SAM's LayerNorm2d: a product with (C, 1, 1) and a sum with another, after a convolution that has its name."""
    found: dict[str, Tensor] = {}
    for name in graph.read_by("Mul", 3):
        weight = graph.constants[name]
        for product in (node for node in graph.readers[name] if node.op_type == "Mul"):
            biases = [bias for bias in graph.added_to(product) if graph.constants[bias].shape == weight.shape]
            before = _convolution_before(graph, product)
            if before is None or not biases or weight.shape[1:] != (1, 1):
                continue
            sequence, place = before.removeprefix(EXPORTERS_PREFIX).removesuffix(WEIGHT).rsplit(".", 1)
            norm = f"{sequence}.{int(place) + 1}"  # it follows its convolution
            found[norm + WEIGHT] = weight.flatten()
            found[norm + BIAS] = graph.constants[biases[0]].flatten()
    return found


def _convolution_before(graph: Graph, node: Any) -> str | None:
    """The name of the weight of the nearest convolution that leads to `node`."""
    near, seen = [node], set()
    while near:
        inputs = [name for each in near for name in each.input if name not in seen]
        seen.update(inputs)
        near = [graph.writers[name] for name in inputs if name in graph.writers]
        for each in near:
            if each.op_type in CONVOLUTIONS:
                return str(each.input[1])
    return None


def _tokens(graph: Graph, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The embedding of "no mask", and the decoder's output tokens, which the exporter joins in one constant."""
    tokens: dict[str, Tensor] = {}
    if NO_MASK not in found:
        wide = [graph.constants[name] for name in graph.read_by("Mul", 4)]
        wide += [graph.constants[name] for name in graph.read_by("Add", 4)]
        for value in wide:
            if value.shape[0] == 1 and value.shape[2:] == (1, 1):
                tokens[NO_MASK] = value.flatten(1)
    if MASK_TOKENS not in found:
        joined = [graph.constants[name] for name in graph.read_by("Expand", 3)]
        for value in joined:
            tokens |= {IOU_TOKEN: value[0, :1], MASK_TOKENS: value[0, 1:]}
    return tokens
