"""Trained parameters, learning rates and the schedule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sam_blvit.config import FinetuneConfig, ModelConfig, compose
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.train.optim import MovingAverage, freeze, optimizer_for, schedule, set_rates


def config(**options: object) -> FinetuneConfig:
    return compose(FinetuneConfig, data=Path("data"), output=Path("out"), **options)  # type: ignore[arg-type]


def trained(sam: Sam, settings: FinetuneConfig) -> list[dict[str, Any]]:
    """The optimiser's groups."""
    freeze(sam, settings)
    return optimizer_for(sam, settings).param_groups


def test_every_trained_parameter_is_in_one_group_at_its_own_rate(tiny: Callable[..., ModelConfig]) -> None:
    sam = build_sam(tiny())
    groups = trained(sam, config(lr=4e-4, encoder_lr=3e-5, decoder_lr=2e-5, prompt_lr=0))
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
    groups = trained(sam, config(weight_decay=0.1))
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
    rates = [schedule(step, length=110, warmup=10) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.505)
    assert rates[110] == pytest.approx(0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_short_schedule_warms_up_for_a_tenth_of_it() -> None:
    rates = [schedule(step, length=20, warmup=1000) for step in range(3)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2] == pytest.approx(1.0)


def test_a_schedule_of_few_steps_needs_no_warm_up() -> None:
    assert schedule(0, length=3, warmup=1000) == pytest.approx(1.0)


def test_rates_are_shares_of_their_peaks(tiny: Callable[..., ModelConfig]) -> None:
    sam, settings = build_sam(tiny()), config(lr=4e-4, encoder_lr=2e-4)
    freeze(sam, settings)
    optimizer = optimizer_for(sam, settings)
    set_rates(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {2e-4, 1e-4, 2.5e-5}
    set_rates(optimizer, 1.0)
    assert {group["lr"] for group in optimizer.param_groups} == {4e-4, 2e-4, 5e-5}


def test_layer_decay_slows_performance_blocks_by_their_depth(tiny: Callable[..., ModelConfig]) -> None:
    sam = build_sam(tiny())
    groups = trained(sam, config(lr=1e-3, encoder_lr=1e-3, decoder_lr=1e-3, layer_decay=0.5))
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    encoder = sam.image_encoder
    assert rate[id(encoder.pos_embed)] == pytest.approx(1e-3 / 16)  # before the first of four layers
    for number, block in enumerate(encoder.blocks):
        assert rate[id(block.mlp.lin1.weight)] == pytest.approx(1e-3 * 0.5 ** (3 - number))
    assert rate[id(encoder.neck[0].weight)] == rate[id(sam.mask_decoder.iou_token.weight)] == 1e-3
    assert rate[id(encoder.blocks[1].little.mlp.lin1.weight)] == rate[id(encoder.blocks[1].alpha_mlp)] == 1e-3


def test_first_layers_may_stay_as_they_are(tiny: Callable[..., ModelConfig]) -> None:
    sam = build_sam(tiny(enlarge=2))
    chosen = {id(p) for group in trained(sam, config(frozen_layers=2)) for p in group["params"]}
    encoder = sam.image_encoder
    frozen = [encoder.pos_embed, encoder.patch_embed.proj.weight, encoder.blocks[1].mlp.lin1.weight]
    assert not any(id(value) in chosen or value.requires_grad for value in frozen)
    moving = [encoder.blocks[2].mlp.lin1.weight, encoder.blocks[1].little.mlp.lin1.weight, encoder.neck[0].weight]
    assert all(id(value) in chosen for value in [*moving, encoder.enlarge[0].weight, sam.mask_decoder.iou_token.weight])


def test_neck_and_enlargement_may_have_a_rate_of_their_own(tiny: Callable[..., ModelConfig]) -> None:
    sam = build_sam(tiny(enlarge=2))
    groups = trained(sam, config(encoder_lr=1e-4, neck_lr=1e-3, layer_decay=0.5))
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    encoder = sam.image_encoder
    assert rate[id(encoder.neck[0].weight)] == rate[id(encoder.enlarge[1].weight)] == 1e-3
    assert rate[id(encoder.blocks[3].mlp.lin1.weight)] == 1e-4


def test_freezing_performance_trains_what_sam_does_not_have(tiny: Callable[..., ModelConfig]) -> None:
    sam = build_sam(tiny())
    settings = config(freeze="performance", teacher=Path("sam.pth"), prompt_lr=1e-3)
    chosen = {id(p) for group in trained(sam, settings) for p in group["params"]}
    for name, parameter in sam.named_parameters():
        new = any(part in name for part in (".little.", "routers", "alpha", "gamma", "outside"))
        assert (id(parameter) in chosen) == parameter.requires_grad == new, name


def test_with_every_rate_at_zero_there_is_nothing_to_train(tiny: Callable[..., ModelConfig]) -> None:
    with pytest.raises(ValueError, match="every learning rate is 0"):
        trained(build_sam(tiny()), config(lr=0, encoder_lr=0, decoder_lr=0))


def test_a_moving_average_follows_the_weights_at_its_decay(tiny: Callable[..., ModelConfig]) -> None:
    sam = build_sam(tiny())
    trained(sam, config(decoder_lr=0))
    average = MovingAverage(sam, 0.9)
    name = "image_encoder.blocks.0.mlp.lin1.weight"
    before = sam.get_parameter(name).detach().clone()
    with torch.no_grad():
        sam.get_parameter(name).add_(1.0)
    average.update(sam)
    average.update(sam)
    torch.testing.assert_close(average.values[name], before + (1 - 0.9**2))
    assert not any(name.startswith("mask_decoder") for name in average.values)


def test_a_schedule_in_samples_is_the_one_in_steps() -> None:
    by_step = [schedule(step, length=110, warmup=10) for step in range(110)]
    by_sample = [schedule(8 * step, length=880, warmup=80, stride=8) for step in range(110)]
    assert by_sample == pytest.approx(by_step)


def test_matrices_of_the_decoder_take_weight_decay_but_for_its_tokens(tiny: Callable[..., ModelConfig]) -> None:
    sam = build_sam(tiny())
    decay = {id(p): group["weight_decay"] for group in trained(sam, config()) for p in group["params"]}
    matrices = {name for name, p in sam.mask_decoder.named_parameters() if p.dim() > 1}
    undecayed = {name for name in matrices if decay[id(sam.mask_decoder.get_parameter(name))] == 0}
    assert undecayed == {"iou_token.weight", "mask_tokens.weight"}
