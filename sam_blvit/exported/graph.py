"""Read an ONNX file's weights under their names in PyTorch.

PyTorch's exporter keeps the names of most parameters but folds the weight of a linear layer into an unnamed,
transposed constant. The bias added after that product keeps its name, which identifies the weight.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam_blvit.checkpoint.format import CheckpointError
from sam_blvit.system.files import first_line

WEIGHT, BIAS = ".weight", ".bias"
PASSED_OVER = ("Cast", "Identity")
"""Operations that pass a weight through."""


@dataclass
class Graph:
    """The constants of an ONNX graph, and which nodes read them."""

    path: Path
    constants: dict[str, Tensor]
    """float32, by the name in the file."""
    readers: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    """Nodes that read each value."""
    writers: dict[str, Any] = field(default_factory=dict)
    """The node that makes each value."""

    @classmethod
    def read(cls, path: str | Path) -> Graph:
        """The graph in `path`.

        Raises:
            CheckpointError: if onnx is not installed or the file is not an ONNX model.
        """
        path = Path(path)
        model = _loaded(path)
        from onnx import TensorProto, numpy_helper

        floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
        tensors = [(tensor.name, tensor) for tensor in model.graph.initializer]
        tensors += [
            (node.output[0], attribute.t)
            for node in model.graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.name == "value"
        ]
        constants = {
            name: torch.from_numpy(np.array(numpy_helper.to_array(tensor), dtype=np.float32))
            for name, tensor in tensors
            if tensor.data_type in floats
        }
        graph = cls(path, constants)
        for node in model.graph.node:
            for name in node.input:
                graph.readers[name].append(node)
            for name in node.output:
                graph.writers[name] = node
            if node.op_type in PASSED_OVER and node.input[0] in constants:
                constants[node.output[0]] = constants[node.input[0]]
        return graph

    def parameters(self) -> dict[str, Tensor]:
        """Constants that have a parameter's name, with the weights of linear layers found by their bias."""
        found = {name: value for name, value in self.constants.items() if name.endswith((WEIGHT, BIAS))}
        for name, value in self.constants.items():
            if value.dim() != 2 or name in found:
                continue
            for product in (node for node in self.readers[name] if node.op_type == "MatMul"):
                for bias in self.added_to(product):
                    if bias.endswith(BIAS):
                        found[bias.removesuffix(BIAS) + WEIGHT] = value.T
        return found

    def added_to(self, node: Any) -> list[str]:
        """Names of the constants that are added to what `node` makes."""
        additions = [reader for reader in self.readers[node.output[0]] if reader.op_type == "Add"]
        return [name for addition in additions for name in addition.input if name in self.constants]

    def read_by(self, kind: str, rank: int) -> list[str]:
        """Names of the constants of `rank` dimensions that nodes of `kind` read, in the graph's order."""
        return list(
            dict.fromkeys(
                name
                for name, nodes in self.readers.items()
                if name in self.constants and self.constants[name].dim() == rank
                for node in nodes
                if node.op_type == kind
            )
        )


def _loaded(path: Path) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise CheckpointError(f"{path}: ONNX files need the package onnx; pip install 'sam_blvit[onnx]'") from error
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; name an ONNX model")
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's exceptions, and those of external data
        raise CheckpointError(f"{path} is damaged or no ONNX model ({first_line(error)})") from error
    if not model.graph.node:
        raise CheckpointError(f"{path} is no ONNX model: its graph is empty")
    return model
