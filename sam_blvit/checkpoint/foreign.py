"""A plain ViT (DINOv2, MAE, DeiT and similar models) as the encoder of a `vit_*` of the same width.

Each family has one table of names. Layer scale is folded into the projection that it follows, positions are
interpolated to the encoder's grid, and the patch kernel is resized so that its output on a resized patch equals the
old kernel's output on the original patch.

Shapes:
    C  channels    P  side of a patch, pixels    G  tokens along a side
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_blvit.checkpoint.format import CheckpointError, check_values, read_checkpoint, some_of
from sam_blvit.config import PATCH_SIZE, ModelConfig
from sam_blvit.exported.graph import Graph
from sam_blvit.exported.sam import ONNX

ENCODER = "image_encoder."
POSITIONS, PATCHES = "pos_embed", "patch_embed.proj.weight"
LEFT_FRESH = ("neck.", "laterals.", "enlarge.")
"""Parts of an encoder that no plain ViT has."""


@dataclass(frozen=True)
class Family:
    """How a family of ViTs names what SAM's encoder has; `{i}` is a layer, counted from 0."""

    name: str
    prefixes: tuple[str, ...]
    """Any of these, or nothing, is before every name."""
    names: Mapping[str, str]
    """SAM's name within the encoder, by the family's; the same for weight and bias."""
    packed: tuple[str, str, str] | None
    """The family's names of query, key and value, which SAM joins in `attn.qkv`. None: the family joins them too."""
    scales: Mapping[str, str]
    """SAM's name of the projection that a layer scale follows, by the family's name of the scale."""
    dropped: tuple[str, ...]
    """Patterns of what SAM's encoder has no place for: class token, last norm, heads."""


HUGGING_FACE_EMBEDDINGS = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.position_embeddings": POSITIONS,
}
HUGGING_FACE_ATTENTION = tuple(f"encoder.layer.{{i}}.attention.attention.{part}" for part in ("query", "key", "value"))
HUGGING_FACE_DROPPED = (
    r"embeddings\.(cls_token|mask_token|distillation_token|register_tokens)",
    r"layernorm\..*",
    r"pooler\..*",
    r"(classifier|cls_classifier|distillation_classifier|decoder)\..*",
)
FAMILIES = (
    Family(
        name="Hugging Face's Dinov2",
        prefixes=("dinov2.", "backbone."),
        names={
            **HUGGING_FACE_EMBEDDINGS,
            "encoder.layer.{i}.norm1": "blocks.{i}.norm1",
            "encoder.layer.{i}.attention.output.dense": "blocks.{i}.attn.proj",
            "encoder.layer.{i}.norm2": "blocks.{i}.norm2",
            "encoder.layer.{i}.mlp.fc1": "blocks.{i}.mlp.lin1",
            "encoder.layer.{i}.mlp.fc2": "blocks.{i}.mlp.lin2",
        },
        packed=HUGGING_FACE_ATTENTION,  # type: ignore[arg-type]
        scales={
            "encoder.layer.{i}.layer_scale1.lambda1": "blocks.{i}.attn.proj",
            "encoder.layer.{i}.layer_scale2.lambda1": "blocks.{i}.mlp.lin2",
        },
        dropped=HUGGING_FACE_DROPPED,
    ),
    Family(
        name="Hugging Face's ViT, DeiT and ViTMAE",
        prefixes=("vit.", "deit."),
        names={
            **HUGGING_FACE_EMBEDDINGS,
            "encoder.layer.{i}.layernorm_before": "blocks.{i}.norm1",
            "encoder.layer.{i}.attention.output.dense": "blocks.{i}.attn.proj",
            "encoder.layer.{i}.layernorm_after": "blocks.{i}.norm2",
            "encoder.layer.{i}.intermediate.dense": "blocks.{i}.mlp.lin1",
            "encoder.layer.{i}.output.dense": "blocks.{i}.mlp.lin2",
        },
        packed=HUGGING_FACE_ATTENTION,  # type: ignore[arg-type]
        scales={},
        dropped=HUGGING_FACE_DROPPED,
    ),
    Family(
        name="timm and the original repositories",
        prefixes=("encoder.", "backbone."),
        names={
            "patch_embed.proj": "patch_embed.proj",
            "pos_embed": POSITIONS,
            "blocks.{i}.norm1": "blocks.{i}.norm1",
            "blocks.{i}.attn.qkv": "blocks.{i}.attn.qkv",
            "blocks.{i}.attn.proj": "blocks.{i}.attn.proj",
            "blocks.{i}.norm2": "blocks.{i}.norm2",
            "blocks.{i}.mlp.fc1": "blocks.{i}.mlp.lin1",
            "blocks.{i}.mlp.fc2": "blocks.{i}.mlp.lin2",
        },
        packed=None,
        scales={"blocks.{i}.ls1.gamma": "blocks.{i}.attn.proj", "blocks.{i}.ls2.gamma": "blocks.{i}.mlp.lin2"},
        dropped=(
            r"(cls_token|mask_token|dist_token|reg_token|register_tokens)",
            r"(norm|fc_norm)\..*",
            r"(head|head_dist|decoder_.*|mask_token.*)(\..*)?",
            r"decoder\..*",
        ),
    ),
)


def read_plain_vit(path: str | Path, config: ModelConfig) -> dict[str, Tensor]:
    """Parameters of the encoder of a dense model of `config` from the plain ViT in `path`, under SAM's names.

    `path` is a .pth, .safetensors or .onnx of one of `FAMILIES`. Relative positions are zero. Neck and enlargement,
    which no plain ViT has, are not among them; class and register tokens, the last norm and heads are dropped.

    Raises:
        CheckpointError: if a tensor is missing, unexpected, of another width or not finite.
    """
    if str(path).endswith(ONNX):
        theirs = _of_graph(Path(path))
        check_values(theirs, what=str(path))
    else:
        theirs, ours = read_checkpoint(path)
        if ours is not None:
            raise CheckpointError(f"{path} is a sam_blvit checkpoint, a {ours.name}; name it with checkpoint instead")
    family, theirs = _recognised(theirs, path)
    found = _renamed(theirs, family, path)
    if PATCHES in found:
        found[PATCHES] = resize_patches(found[PATCHES], PATCH_SIZE)
    if POSITIONS in found:
        found[POSITIONS] = _grid_positions(found[POSITIONS], config.grid, path)
    _add_relative_positions(found, config)
    return {f"{ENCODER}{name}": value for name, value in found.items()}


def resize_patches(kernel: Tensor, side: int) -> Tensor:
    """A patch kernel (C, 3, P, P) for patches of `side` pixels.

    On a patch that was resized bilinearly it answers what `kernel` answers on the patch itself, where that is possible
    (Beyer et al., "FlexiViT", CVPR 2023, section 3.4: the pseudo-inverse of the resizing).
    """
    old = kernel.shape[-1]
    if old == side:
        return kernel
    basis = torch.eye(old * old, dtype=torch.float64).view(old * old, 1, old, old)
    resize = F.interpolate(basis, (side, side), mode="bilinear", antialias=side < old).flatten(
        1
    )  # (P * P, side * side)
    resized = kernel.double().flatten(2) @ torch.linalg.pinv(resize).T
    return resized.unflatten(2, (side, side)).to(kernel.dtype)


def _of_graph(path: Path) -> dict[str, Tensor]:
    """Parameters in an ONNX file; the table of positions, which loses its name, is the widest of its kind."""
    graph = Graph.read(path)
    found = graph.parameters()
    tokens = {name: value for name, value in graph.constants.items() if name.endswith(("token", "tokens"))}
    scales = {name: v for name, v in graph.constants.items() if name.endswith((".lambda1", ".gamma"))}
    named = [name for name in graph.constants if name.endswith(("position_embeddings", "pos_embed"))]
    if named:
        return {**found, **scales, **tokens, named[0]: graph.constants[named[0]]}
    patches = next((name for name in found if name.endswith("projection.weight") or name.endswith(PATCHES)), None)
    if patches is None:
        return {**found, **scales, **tokens}
    width = len(found[patches])
    tables = [
        value
        for name, value in graph.constants.items()
        if value.dim() == 3 and value.shape[0] == 1 and value.shape[2] == width and value.shape[1] > 1
    ]
    if not tables:
        raise CheckpointError(f"{path} holds no table of positions (1, tokens, {width})")
    prefix = patches.partition("patch_embed")[0]
    name = "position_embeddings" if "embeddings." in prefix else POSITIONS
    return {**found, **scales, **tokens, prefix + name: max(tables, key=lambda table: table.shape[1])}


def _recognised(theirs: dict[str, Tensor], path: str | Path) -> tuple[Family, dict[str, Tensor]]:
    """The family whose names most of `theirs` are, and `theirs` without its prefix."""
    best: tuple[int, Family, dict[str, Tensor]] | None = None
    for family in FAMILIES:
        known = [_pattern(name) for name in (*family.names, *(family.packed or ()), *family.scales)]
        for prefix in (*family.prefixes, ""):
            inside = {n.removeprefix(prefix): v for n, v in theirs.items() if n.startswith(prefix)}
            hits = sum(any(pattern.fullmatch(name) for pattern in known) for name in inside)
            if best is None or hits > best[0]:
                best = (hits, family, inside)
    assert best is not None
    if not best[0]:
        families = "; ".join(family.name for family in FAMILIES)
        raise CheckpointError(f"{path} names no part of a plain ViT ({some_of(list(theirs))}); known are {families}")
    return best[1], best[2]


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{i\}", r"(\d+)") + r"(\.weight|\.bias)?")


def _renamed(theirs: dict[str, Tensor], family: Family, path: str | Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    scales: dict[str, Tensor] = {}
    left_over: list[str] = []
    for name, value in theirs.items():
        if target := _target(name, family.names):
            found[target] = value.float()
        elif scaled := _target(name, family.scales):
            scales[scaled] = value.float()
        elif (place := _packed_place(name, family)) is not None:
            part, layer, suffix = place
            parts.setdefault(f"blocks.{layer}.attn.qkv{suffix}", {})[part] = value.float()
        elif not any(re.fullmatch(pattern, name) for pattern in family.dropped):
            left_over.append(name)
    if left_over:
        raise CheckpointError(
            f"{path} (names of {family.name}) has {len(left_over)} tensors that have no place in SAM's encoder: "
            f"{some_of(left_over)}; remove them if they do not belong to the ViT"
        )
    for target, of_part in parts.items():
        if len(of_part) == 3:  # else it is missing, and named as such
            found[target] = torch.cat([of_part[part] for part in range(3)])
    for target, scale in scales.items():
        for suffix, shape in ((".weight", (-1, 1)), (".bias", (-1,))):
            if target + suffix in found:
                found[target + suffix] = found[target + suffix] * scale.view(shape)
    return found


def _target(name: str, names: Mapping[str, str]) -> str | None:
    for theirs, ours in names.items():
        if matched := _pattern(theirs).fullmatch(name):
            groups = matched.groups(default="")
            return ours.replace("{i}", groups[0]) + groups[-1]
    return None


def _packed_place(name: str, family: Family) -> tuple[int, str, str] | None:
    """Which of query, key and value `name` is, of which layer, and whether weight or bias."""
    for part, theirs in enumerate(family.packed or ()):
        if matched := _pattern(theirs).fullmatch(name):
            return part, matched[1], matched[2] or ""
    return None


def _grid_positions(table: Tensor, grid: int, path: str | Path) -> Tensor:
    """A table (1, tokens, C) as (1, G, G, C): without class and other tokens before the patches, interpolated."""
    extra = next((count for count in range(3) if isqrt(table.shape[1] - count) ** 2 == table.shape[1] - count), None)
    if table.dim() != 3 or extra is None:
        raise CheckpointError(f"{path}: positions of shape {tuple(table.shape)} are not those of a square of patches")
    side = isqrt(table.shape[1] - extra)
    square = table[:, extra:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if side != grid:
        square = F.interpolate(square, (grid, grid), mode="bicubic", antialias=grid < side)
    return square.permute(0, 2, 3, 1).contiguous()


def _add_relative_positions(found: dict[str, Tensor], config: ModelConfig) -> None:
    """Zero: a plain ViT has none."""
    for layer in range(1, config.layers + 1):
        side = config.grid if config.attends_globally(layer) else config.rel_pos_window
        for table in ("rel_pos_h", "rel_pos_w"):
            found[f"blocks.{layer - 1}.attn.{table}"] = torch.zeros(2 * side - 1, config.dim // config.heads)
