"""An exported SAM encoder, run by onnxruntime on the CPU in place of a PyTorch encoder.

Shapes:
    B  images    S  side of the input, pixels    E  cells along a side of the embedding
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sam_blvit.checkpoint.format import CheckpointError
from sam_blvit.config import EMBEDDING_CHANNELS
from sam_blvit.exported.graph import Graph
from sam_blvit.system.files import first_line

PROVIDER = "CPUExecutionProvider"


class ExportedEncoder(nn.Module):
    """Embeds normalised images with the graph in an ONNX file.

    The session is opened at the first call, with as many threads as PyTorch has then, and is kept.
    """

    def __init__(self, path: str | Path) -> None:
        """Open `path`.

        Raises:
            CheckpointError: if onnxruntime is not installed, or the graph is not an encoder of square images of a fixed
                side with an embedding (B, 256, E, E).
        """
        super().__init__()
        self.path = Path(path)
        self._session: Any = None
        self._threads = 0
        session = self._opened(threads=1)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        shape, out = inputs[0].shape, outputs[0].shape
        square = len(shape) == 4 and shape[1] == 3 and isinstance(shape[2], int) and shape[2] == shape[3]
        if len(inputs) != 1 or not square:
            named = ", ".join(f"{each.name} {each.shape}" for each in inputs)
            raise CheckpointError(f"{path} takes {named}; an encoder of images (B, 3, S, S) of one side S is expected")
        if len(out) != 4 or out[1] != EMBEDDING_CHANNELS or not isinstance(out[2], int) or out[2] != out[3]:
            raise CheckpointError(f"{path} returns {outputs[0].name} {out}; an embedding (B, 256, E, E) is expected")
        self.img_size: int = shape[2]
        """Side of the square input, pixels; SAM's name."""
        self.embedding_grid: int = out[2]
        """Cells along a side of the embedding."""
        self._input, self._output = inputs[0].name, outputs[0].name
        self._one_by_one = shape[0] == 1

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Embed normalised `images` (B, 3, S, S) as (B, 256, E, E) float32, on their device."""
        session = self._opened(threads=torch.get_num_threads())
        pixels = images.float().cpu().numpy()
        parts = np.split(pixels, len(pixels)) if self._one_by_one else [pixels]
        embeddings = [session.run([self._output], {self._input: part})[0] for part in parts]
        return torch.from_numpy(np.concatenate(embeddings)).float().to(images.device)

    @property
    def parameter_count(self) -> int:
        """Numbers in the weights of the graph."""
        return sum(value.numel() for value in Graph.read(self.path).constants.values() if value.dim() > 0)

    @property
    def provider(self) -> str:
        """The execution provider that really runs the graph."""
        return str(self._opened(threads=self._threads).get_providers()[0])

    def _opened(self, *, threads: int) -> Any:
        if self._session is None or self._threads != threads:
            self._session, self._threads = _session(self.path, threads), threads
        return self._session


def _session(path: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise CheckpointError(
            f"{path}: exported encoders need the package onnxruntime; pip install 'sam_blvit[onnx]'"
        ) from error
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; name an exported SAM encoder")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: warnings about constants concern the exporter
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
    except Exception as error:  # onnxruntime has its own exception types
        raise CheckpointError(f"{path} cannot be run by onnxruntime ({first_line(error)})") from error
