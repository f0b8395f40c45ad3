from collections.abc import Callable
from pathlib import Path

import pytest

from sam_blvit.config import FinetuneConfig, ModelConfig
from sam_blvit.model.build import build_sam
from sam_blvit.train.optim import parameter_groups, schedule


def config(**options: object) -> FinetuneConfig:
    return FinetuneConfig(data=Path("data"), output=Path("out"), **options)  # type: ignore[arg-type]


def test_every_trained_parameter_is_in_one_group_at_its_own_rate(tiny: Callable[..., ModelConfig]) -> None:
    sam = build_sam(tiny())
    groups = parameter_groups(sam, config(lr=4e-4, encoder_lr=3e-5, decoder_lr=2e-5, prompt_lr=0))
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rate) == sum(len(group["params"]) for group in groups)
    for name, parameter in sam.named_parameters():
        if name.startswith("prompt_encoder"):
            assert id(parameter) not in rate
            assert not parameter.requires_grad
            continue
        new = any(part in name for part in (".little.", "routers", "alpha", "gamma", "outside"))
        expected = 4e-4 if new else 2e-5 if name.startswith("mask_decoder") else 3e-5
        assert rate[id(parameter)] == expected, name


def test_vectors_positions_and_gates_take_no_weight_decay(tiny: Callable[..., ModelConfig]) -> None:
    sam = build_sam(tiny())
    groups = parameter_groups(sam, config(weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    encoder = sam.image_encoder
    block = encoder.blocks[1]
    for undecayed in (
        encoder.pos_embed,
        block.attn.rel_pos_h,
        block.gamma_attn,
        block.norm1.weight,
        block.attn.qkv.bias,
    ):
        assert decay[id(undecayed)] == 0
    for decayed in (block.attn.qkv.weight, block.little.mlp.lin1.weight, encoder.routers["0"].score.weight):
        assert decay[id(decayed)] == 0.1


def test_the_rate_warms_up_linearly_and_falls_to_a_hundredth() -> None:
    settings = config(steps=110, warmup_steps=10)
    rates = [schedule(step, settings) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.505)
    assert rates[110] == pytest.approx(0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)
