"""Image classifiers by name: `timm:NAME`, or `module:function` for any torch module with its input transform.

Shapes:
    n  photographs    C  classes    H, W  input of a model
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from sam_blvit.checkpoint.custom import imported_function
from sam_blvit.system.files import first_line

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FILTERS = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}

Transform = Callable[[Image.Image], Tensor]
"""Maps an RGB photograph to a model's input (3, H, W)."""


class Classifier(NamedTuple):
    """A trained model and the transform of its input. Models of a cascade may differ in both."""

    name: str
    model: nn.Module
    """Maps inputs (n, 3, H, W) to logits or probabilities (n, C)."""
    transform: Transform


def load_classifier(name: str, device: torch.device) -> Classifier:
    """The classifier called `name`, in eval mode on `device`.

    Args:
        name: `timm:NAME`, a pretrained timm model with timm's own data config, or `module:function`, a function without
            arguments that returns a pair of a torch module and its input transform. Modules of the working directory
            are found too.
        device: Where the model runs.

    Raises:
        ValueError: If there is no such model, or the function returns anything else.
    """
    module, _, rest = name.partition(":")
    if not rest:
        raise ValueError(f"model={name} is neither timm:NAME nor module:function")
    build = imported_function(module, rest) if module != "timm" else lambda: _from_timm(rest)
    try:
        built = build()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # anybody's code: whatever it raises
        raise ValueError(f"model={name} cannot be built ({type(error).__name__}: {first_line(error)})") from error
    if not (isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], nn.Module) and callable(built[1])):
        raise ValueError(
            f"model={name} returned a {type(built).__name__}; a pair (torch module, input transform) is expected"
        )
    model, transform = built
    return Classifier(name, model.eval().to(device), transform)


def _from_timm(name: str) -> tuple[nn.Module, Transform]:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ImportError("timm is not installed; pip install 'sam_blvit[timm]'") from error
    model = timm.create_model(name, pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    return model, timm.data.create_transform(**config, is_training=False)


def input_transform(
    size: int,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    interpolation: str = "bicubic",
    crop: float = 0.875,
) -> Transform:
    """The usual transform of a classifier: resize, cut the middle square, normalise.

    Args:
        size: Side of the model's input, pixels.
        mean: Of each channel, for values from 0 to 1.
        std: Of each channel, for values from 0 to 1.
        interpolation: nearest, bilinear, bicubic or lanczos.
        crop: Share of the photograph's shorter side that the square covers.
    """
    if interpolation not in FILTERS:
        raise ValueError(f"interpolation={interpolation!r} is not one of {', '.join(FILTERS)}")
    if size < 1 or not 0 < crop <= 1:
        raise ValueError(f"size={size}, crop={crop}: a size from 1 and a crop above 0, at most 1, are expected")
    shift, scale = np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32)

    def transform(photograph: Image.Image) -> Tensor:
        side = crop * min(photograph.size)
        left, top = ((length - side) / 2 for length in photograph.size)
        square = photograph.resize((size, size), FILTERS[interpolation], box=(left, top, left + side, top + side))
        normalised = (np.asarray(square, dtype=np.float32) / 255 - shift) / scale
        return torch.from_numpy(normalised).permute(2, 0, 1)

    return transform


@torch.no_grad()
def classify(
    classifier: Classifier, photographs: Sequence[NDArray[np.uint8]], device: torch.device
) -> NDArray[np.float32]:
    """Scores (n, C) of `photographs`, each (height, width, 3), as one batch.

    Raises:
        ValueError: If the transform or the model fails, or makes anything of another shape.
    """
    try:
        inputs = [classifier.transform(Image.fromarray(photograph)) for photograph in photographs]
        scores = classifier.model(torch.stack(inputs).to(device))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # anybody's code: whatever it raises
        raise ValueError(
            f"model={classifier.name} cannot answer a photograph ({type(error).__name__}: {first_line(error)}); its "
            "transform must make tensors of one shape (3, H, W) that the model takes in batches"
        ) from error
    if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != len(inputs):
        kind = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise ValueError(f"model={classifier.name} returned {kind}; scores ({len(inputs)}, classes) are expected")
    return np.asarray(scores.float().cpu().numpy())
