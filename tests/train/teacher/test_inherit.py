"""Initial weights of a smaller encoder: which channels, heads and layers of a larger one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from sam_blvit.checkpoint.format import is_big_little
from sam_blvit.config import ModelConfig
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.train.teacher.inherit import inherit

Config = Callable[..., ModelConfig]
ENCODER = "image_encoder."
LARGE = {"dim": 48, "heads": 3, "layers": 6, "global_layers": (3, 6)}
SMALL = {"dim": 32, "heads": 2, "layers": 3, "global_layers": (3,)}
CHANNELS = [place for place in range(48) if place % 3 != 1]
UNITS = [place for place in range(192) if place % 3 != 1]
"""The first and the third of every three."""
HEADS = [*range(16), *range(32, 48)]
"""Channels of the first and the third of three heads of 16."""


@pytest.fixture
def teacher(tiny_dense: Config, randomize: Callable[[Sam], Sam]) -> Sam:
    return randomize(build_sam(tiny_dense(**LARGE)))


def started(config: ModelConfig, teacher: Sam) -> Sam:
    student = build_sam(config)
    inherit(student, teacher)
    return student


def encoder(sam: Sam) -> dict[str, np.ndarray]:
    return {name.removeprefix(ENCODER): value.numpy() for name, value in sam.state_dict().items() if ENCODER in name}


def picked(source: np.ndarray, *places: Sequence[int]) -> np.ndarray:
    """`source` at `places` of each dimension, element by element."""
    part = np.zeros([len(along) for along in places], dtype=source.dtype)
    for at in np.ndindex(*part.shape):
        part[at] = source[tuple(along[i] for along, i in zip(places, at, strict=True))]
    return part


def test_of_a_teacher_of_its_own_size_a_student_takes_all(tiny_dense: Config, teacher: Sam) -> None:
    student, theirs = encoder(started(tiny_dense(**LARGE), teacher)), encoder(teacher)
    assert all(np.array_equal(value, theirs[name]) for name, value in student.items())


def test_every_weight_of_a_smaller_student_is_the_stated_part(tiny_dense: Config, teacher: Sam) -> None:
    student, theirs = encoder(started(tiny_dense(**SMALL), teacher)), encoder(teacher)
    packed = [*HEADS, *(48 + place for place in HEADS), *(96 + place for place in HEADS)]
    every = {size: range(size) for size in (1, 3, 8, 16, 256)}
    expected = {
        "patch_embed.proj.weight": (CHANNELS, every[3], every[16], every[16]),
        "patch_embed.proj.bias": (CHANNELS,),
        "pos_embed": (every[1], every[8], every[8], CHANNELS),
        "neck.0.weight": (every[256], CHANNELS, every[1], every[1]),
    }
    parts = {name: picked(theirs[name], *places) for name, places in expected.items()}
    parts |= {name: theirs[name] for name in theirs if name.startswith("neck") and name != "neck.0.weight"}
    for block in range(3):  # layers 1 and 2 are windowed, 3 is global
        of_block = {name.split(".", 2)[2]: value for name, value in theirs.items() if f"blocks.{block}." in name}
        places = {
            "norm1.weight": (CHANNELS,),
            "norm1.bias": (CHANNELS,),
            "attn.qkv.weight": (packed, CHANNELS),
            "attn.qkv.bias": (packed,),
            "attn.proj.weight": (CHANNELS, HEADS),
            "attn.proj.bias": (CHANNELS,),
            "attn.rel_pos_h": tuple(range(size) for size in of_block["attn.rel_pos_h"].shape),
            "attn.rel_pos_w": tuple(range(size) for size in of_block["attn.rel_pos_w"].shape),
            "norm2.weight": (CHANNELS,),
            "norm2.bias": (CHANNELS,),
            "mlp.lin1.weight": (UNITS, CHANNELS),
            "mlp.lin1.bias": (UNITS,),
            "mlp.lin2.weight": (CHANNELS, UNITS),
            "mlp.lin2.bias": (CHANNELS,),
        }
        parts |= {f"blocks.{block}.{name}": picked(of_block[name], *along) for name, along in places.items()}
    assert student.keys() == parts.keys()
    assert [name for name, value in student.items() if not np.array_equal(value, parts[name])] == []


@pytest.mark.parametrize(
    ("layers", "global_layers", "taken"),
    [
        (4, (2, 4), [1, 3, 2, 6]),
        (4, (4,), [1, 2, 4, 3]),  # three of the windowed layers 1 2 4 5
        (5, (3, 5), [1, 2, 3, 4, 6]),
        (2, (1, 2), [3, 6]),
        (2, (), [1, 2]),
    ],
)
def test_a_shallower_student_takes_the_first_layers_of_each_kind(
    tiny_dense: Config, teacher: Sam, layers: int, global_layers: tuple[int, ...], taken: list[int]
) -> None:
    student = started(tiny_dense(**{**LARGE, "layers": layers, "global_layers": global_layers}), teacher)
    for block, layer in zip(student.image_encoder.blocks, taken, strict=True):
        theirs = teacher.image_encoder.blocks[layer - 1].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in block.state_dict().items())
    whole = ("patch_embed", "pos_embed", "neck")
    theirs = teacher.image_encoder.state_dict()
    mine = {name: value for name, value in student.image_encoder.state_dict().items() if name.startswith(whole)}
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_routers_and_efficiency_blocks_stay_as_they_are(tiny: Config, tiny_dense: Config, teacher: Sam) -> None:
    student = build_sam(tiny())
    student.image_encoder.outside.data.normal_()
    before = {name: value.clone() for name, value in student.state_dict().items() if is_big_little(name)}
    inherit(student, teacher_of_four := build_sam(tiny_dense(dim=48, heads=3)))
    assert before
    assert all(torch.equal(student.state_dict()[name], value) for name, value in before.items())
    dense = encoder(started(tiny_dense(), teacher_of_four))
    assert all(np.array_equal(encoder(student)[name], value) for name, value in dense.items())


def test_prompt_encoder_and_mask_decoder_stay_as_they_are(tiny_dense: Config, teacher: Sam) -> None:
    student = build_sam(tiny_dense(**SMALL))
    before = {name: value.clone() for name, value in student.state_dict().items() if not name.startswith(ENCODER)}
    inherit(student, teacher)
    assert all(torch.equal(student.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"heads": 4}, "channels a head 8 against 16"),
        ({"rel_pos_window": 8}, "rel_pos_window 8 against 4"),
        ({"dim": 64, "heads": 4}, "channels 64 against 48"),
        ({"layers": 6}, "windowed layers 5 against 4"),
        ({"global_layers": (1, 2, 3)}, "global layers 3 against 2"),
        (
            {"dim": 64, "heads": 2, "layers": 6},
            "channels a head 32 against 16, channels 64 against 48, windowed",
        ),
    ],
)
def test_what_is_not_smaller_is_refused(
    tiny_dense: Config, teacher: Sam, refused: Callable[..., Any], other: dict[str, Any], told: str
) -> None:
    student = build_sam(tiny_dense(**{**SMALL, **other}))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with refused(ValueError, rf"vit_tiny does not fit into teacher vit_tiny .*\({told}.*\); name weights of its"):
        inherit(student, teacher)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
