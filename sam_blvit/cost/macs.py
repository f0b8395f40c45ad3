"""Multiply-adds (MACs) of a built model, counted while it runs on fake tensors: shapes only, no arithmetic.

Two conventions, always side by side:
    paper  linear and convolution layers, as `thop` counts them: attention's own products are left out, nn.LayerNorm
           costs 4 an element, a transposed convolution output elements x input channels x kernel area
    full   every matrix product, attention and relative positions included, and nothing else
Both cover the whole SAM with one image and one point prompt.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from segment_anything.modeling import Sam as OriginalSam
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sam_blvit.config import MODELS, FlopsConfig, ModelConfig, model_config, parse_options
from sam_blvit.model.attention_backends import attention_backend
from sam_blvit.model.build import build_sam
from sam_blvit.model.decoder import decode_originally
from sam_blvit.model.resize import Resize
from sam_blvit.model.sam import Sam

G = 1e9
FLOP_PER_MAC = 2

ENCODER_PARTS = {
    "patch embedding": r"ImageEncoder\.patch_embed",
    "performance blocks": r"ImageEncoder\.blocks\.\d+",  # includes the products of routing
    "efficiency blocks": r"ImageEncoder\.blocks\.\d+\.little\.(norm1|attn|norm2|mlp)",
    "routers": r"ImageEncoder\.routers\.\d+",
    "neck": r"ImageEncoder\.(neck\.\d+|laterals\.\d+|enlarge)",
}
"""Parts of the encoder and patterns of their modules. Efficiency blocks lie inside performance blocks; their share is
subtracted."""
PARTS = {
    **ENCODER_PARTS,
    "prompt encoder": r"PromptEncoder(\.pe_layer)?",  # the image's positions are computed outside `forward`
    "mask decoder": r"MaskDecoder",
}
LAYERLESS = "prompt encoder"
"""Its products with a random matrix are not a layer, so the paper's convention does not count them."""


@dataclass(frozen=True)
class Macs:
    """Multiply-adds in both conventions."""

    paper: int
    full: int

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.paper + other.paper, self.full + other.full)


@dataclass(frozen=True)
class MacCount:
    """What one model costs for one image and one point."""

    model: str
    keep_ratio: float
    """Share of the tokens that performance blocks update; 1 for a dense model."""
    input_size: tuple[int, int]
    """Height and width the encoder ran on, pixels."""
    parts: dict[str, Macs]
    """MACs by the names in PARTS."""
    parameters: int

    @property
    def encoder(self) -> Macs:
        """The image encoder's share."""
        return sum((self.parts[name] for name in ENCODER_PARTS), Macs(0, 0))

    @property
    def total(self) -> Macs:
        """Encoder, prompt encoder and mask decoder."""
        return sum(self.parts.values(), Macs(0, 0))


def count_macs(config: ModelConfig, *, input_size: tuple[int, int] | None = None) -> MacCount:
    """MACs of `config`'s model at its keep ratio.

    `input_size` is a photograph's height and width: resized and padded as the model does it. None: the
    model's whole square.
    """
    with torch.device("meta"):
        sam = build_sam(config).requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True):  # unlike meta tensors they run autocast
        sam.to_empty(device="cpu")
        height, width = _encoder_size(sam, input_size)
        paper, full = _counted_run(sam, (height, width))
    return MacCount(
        model=config.name,
        keep_ratio=sam.image_encoder.keep_ratio,
        input_size=(height, width),
        parts=_by_part(paper, full),
        parameters=sum(parameter.numel() for parameter in sam.parameters()),
    )


def sam_macs(sam: OriginalSam) -> tuple[Macs, Macs]:
    """MACs of the encoder, and of the whole, of any segment_anything Sam on its whole square, without running it."""
    side = sam.image_encoder.img_size
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        with FakeCopyMode(mode):
            fake = copy.deepcopy(sam).requires_grad_(False)
        paper, full = _counted_run(fake, (side, side))
    encoder, decoder = (re.escape(type(part).__name__) for part in (sam.image_encoder, sam.mask_decoder))
    of_encoder = Macs(_macs(paper, encoder), _macs(full, encoder))
    return of_encoder, Macs(of_encoder.paper + _macs(paper, decoder), full.get_total_flops() // FLOP_PER_MAC)


@torch.no_grad()
def module_macs(module: nn.Module, inputs: torch.Tensor) -> int:
    """MACs of one call of any module in the full convention. The module is run on `inputs`."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernels are not counted
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // FLOP_PER_MAC


def flops(models: tuple[str, ...], config: FlopsConfig) -> str:
    """What `sam-blvit flops` prints: a table or JSON of `models`, by default all of the registry.

    A keep ratio in `config` applies to big.LITTLE models; a dense model's is always 1. ValueError for an unknown name.
    """
    named = [model_config(name, **parse_options(config.options)) for name in models or MODELS]
    if config.keep_ratio is not None:
        named = [dataclasses.replace(model, keep_ratio=config.keep_ratio) for model in named]
    counts = [count_macs(model) for model in named]
    return json.dumps([as_json(count) for count in counts], indent=2) if config.json else table(counts)


def as_json(count: MacCount) -> dict[str, Any]:
    """`count` as plain JSON values, MACs in G (1e9) to two decimals."""
    return {
        "model": count.model,
        "keep_ratio": count.keep_ratio,
        "input_size": list(count.input_size),
        "parameters": count.parameters,
        "paper_gmacs": round(count.total.paper / G, 2),
        "full_gmacs": round(count.total.full / G, 2),
        "encoder_paper_gmacs": round(count.encoder.paper / G, 2),
        "encoder_full_gmacs": round(count.encoder.full / G, 2),
        "parts": {
            name: {"paper_gmacs": round(macs.paper / G, 2), "full_gmacs": round(macs.full / G, 2)}
            for name, macs in count.parts.items()
        },
    }


def table(counts: Sequence[MacCount]) -> str:
    """`counts` as aligned text: two lines a model, one a convention, MACs in G (1e9)."""
    columns = [*ENCODER_PARTS, "encoder", *(name for name in PARTS if name not in ENCODER_PARTS), "total"]
    rows = [["model", "keep", "input", "params (M)", "MACs (G)", *columns]]
    for count in counts:
        macs = {**count.parts, "encoder": count.encoder, "total": count.total}
        height, width = count.input_size
        what = [count.model, f"{count.keep_ratio:g}", f"{height}x{width}", f"{count.parameters / 1e6:.1f}"]
        rows.append([*what, "paper", *(f"{macs[name].paper / G:.2f}" for name in columns)])
        rows.append(["", "", "", "", "full", *(f"{macs[name].full / G:.2f}" for name in columns)])
    return "\n".join([*_aligned(rows), "", *_LEGEND])


_LEGEND = (
    "One image, one point prompt; input: height x width; keep: share of the tokens that performance blocks update (a "
    "dense model: 1).",
    "paper: linear and convolution layers as thop counts them, LayerNorm 4 an element, no attention products.",
    "full: every matrix product, attention and relative positions included.",
)


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def _encoder_size(sam: Sam, photograph: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the encoder's input for a photograph of that height and width."""
    side = sam.image_encoder.img_size
    if photograph is None:
        return side, side
    if min(photograph) < 1:
        raise ValueError(f"input_size={photograph}: height and width are pixels, 1 or more")
    return sam.image_encoder.padded_size(*Resize.get_preprocess_shape(*photograph, side))


def _counted_run(sam: OriginalSam, size: tuple[int, int]) -> tuple[FlopCounterMode, FlopCounterMode]:
    """What one image of `size` and one point cost: counters of the paper's convention and of every product."""
    full, paper = FlopCounterMode(display=False), FlopCounterMode(display=False, custom_mapping=_PAPER_RULES)
    # attention as plain products, whichever backend is fastest on this machine
    with attention_backend("eager"), sdpa_kernel(SDPBackend.MATH), _MaskedRows(), full, paper:
        embedding = sam.image_encoder(torch.empty(1, 3, *size, device=sam.device))
        point = torch.empty(1, 1, 2, device=sam.device), torch.ones(1, 1, device=sam.device)
        decode_originally(sam, embedding, points=point, multimask_output=True)
    return paper, full


def _by_part(paper: FlopCounterMode, full: FlopCounterMode) -> dict[str, Macs]:
    parts = {
        name: Macs(0 if name == LAYERLESS else _macs(paper, pattern), _macs(full, pattern))
        for name, pattern in PARTS.items()
    }
    whole, little = parts["performance blocks"], parts["efficiency blocks"]
    parts["performance blocks"] = Macs(whole.paper - little.paper, whole.full - little.full)
    counted = sum(macs.full for macs in parts.values())
    assert counted * FLOP_PER_MAC == full.get_total_flops(), "a module belongs to no part, or to two"
    return parts


def _macs(counter: FlopCounterMode, pattern: str) -> int:
    modules = counter.get_flop_counts()
    return sum(sum(ops.values()) for name, ops in modules.items() if re.fullmatch(pattern, name)) // FLOP_PER_MAC


def _thop_convolution(x: Sequence[int], weight: Sequence[int], *args: Any, out_shape: Sequence[int], **_: Any) -> int:
    groups = args[-1]
    return FLOP_PER_MAC * prod(out_shape) * (x[1] // groups) * prod(weight[2:])


def _thop_layer_norm(x: Sequence[int], *_: Any, **__: Any) -> int:
    return FLOP_PER_MAC * 4 * prod(x)


def _uncounted(*_: Any, **__: Any) -> int:
    return 0


_PAPER_RULES: dict[Any, Callable[..., int]] = {
    torch.ops.aten.convolution: _thop_convolution,
    torch.ops.aten.native_layer_norm: _thop_layer_norm,
    torch.ops.aten.bmm: _uncounted,
    torch.ops.aten.baddbmm: _uncounted,
}


class _MaskedRows(TorchDispatchMode):
    """Makes boolean masks select all rows, since fake tensors cannot know how many they select.

    Only the prompt encoder has such masks, of points by label, and only sums depend on them.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
            x, (mask,) = args
            return x.new_empty(mask.numel(), *x.shape[mask.dim() :])
        return func(*args, **(kwargs or {}))
