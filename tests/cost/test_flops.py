"""Multiply-adds: published and hand-counted numbers must come out of the built model."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from segment_anything import modeling as sa
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from conftest import VARIANTS
from sam_blvit.config import MODELS, FlopsConfig, ModelConfig, model_config
from sam_blvit.cost import macs as module
from sam_blvit.cost.macs import G, MacCount, Macs, count_macs, flops, sam_macs
from sam_blvit.model.build import build_sam

Tiny = Callable[..., ModelConfig]


@cache
def counted(name: str) -> MacCount:
    return count_macs(model_config(name))


of_config = cache(count_macs)


@pytest.mark.parametrize(("name", "gmacs"), [("vit_b", 371.99), ("vit_h", 2736.62)])
def test_dense_models_cost_what_the_paper_prints(name: str, gmacs: float) -> None:
    assert round(counted(name).total.paper / G, 2) == gmacs


@pytest.mark.parametrize(("name", "gmacs"), [("vit_b", 486.0), ("vit_h", 2980.5)])
def test_dense_encoders_cost_what_others_publish_with_attention_products(name: str, gmacs: float) -> None:
    assert round(counted(name).encoder.full / G, 1) == gmacs


@pytest.mark.parametrize(("name", "low", "high"), [("blvit_b_t", 210.4, 210.9), ("blvit_h_b", 1952.5, 1953.5)])
def test_big_little_models_cost_what_the_design_expects(name: str, low: float, high: float) -> None:
    assert low < counted(name).total.paper / G < high


def test_every_variant_costs_what_it_has(tiny: Tiny) -> None:
    counts = {name: of_config(tiny(**fields)) for name, fields in VARIANTS.items()}
    theirs = of_config(tiny())
    performance, efficiency = ("performance blocks", "efficiency blocks")
    assert counts["unscaled"].parts == counts["two_class"].parts == theirs.parts
    assert counts["random"].parts == {**theirs.parts, "routers": Macs(0, 0)}
    for name in ("without_little", "evit", "evo_vit"):
        assert counts[name].parts[efficiency] == Macs(0, 0)
    for name in ("primary_keys", "pooled_keys", "evit"):
        assert counts[name].parts[performance].paper < theirs.parts[performance].paper
    assert counts["evit"].parts[performance].full < counts["evo_vit"].parts[performance].full
    assert counts["little_windowed"].parts[efficiency].full < theirs.parts[efficiency].full
    assert counts["little_windowed"].parts[performance] == theirs.parts[performance]


def test_the_decoder_costs_what_thop_counts() -> None:
    assert round(counted("vit_b").parts["mask decoder"].paper / G, 3) == 2.983


def test_routed_layers_cost_what_their_equations_say(tiny: Tiny) -> None:
    """Layer 1 is dense; 2 and 4 are global, 3 is windowed, all three with an efficiency block."""
    count = of_config(tiny(keep_ratio=0.25))
    tokens, primary, slots, dim, inner, side, window = 64, 16, 16, 32, 16, 8, 4
    offsets, offsets_in_window = 2 * side - 1, 2 * window - 1  # a query among few is multiplied with every offset
    norms = 2 * 4 * tokens * dim
    dense = 12 * tokens * dim**2
    routed = (2 * tokens + 2 * primary) * dim**2 + 8 * primary * dim**2  # keys and values of all, the rest of primary
    gathered_norm = 4 * (tokens + primary) * dim
    performance = count.parts["performance blocks"]
    assert performance.paper == dense + norms + 3 * (routed + gathered_norm)
    products = tokens * dim * (2 * slots + 2 * window) + primary * dim * (
        2 * (2 * tokens + 2 * offsets) + (2 * slots + 2 * offsets_in_window)
    )
    assert performance.full == dense + 3 * routed + products
    little = tokens * (3 * dim * inner + inner * dim) + tokens * (2 * dim * inner + 8 * inner**2)
    efficiency = count.parts["efficiency blocks"]
    assert efficiency.paper == 3 * (little + norms)
    products = tokens * inner * (2 * (2 * tokens + 2 * side) + (2 * slots + 2 * window))
    assert efficiency.full == 3 * little + products
    assert count.parts["routers"].full == 2 * tokens * dim


@pytest.mark.parametrize("overrides", [{}, {"window": 3}, {"window": 3, "keep_ratio": 1.0}])
def test_counting_without_arithmetic_counts_what_a_real_run_does(tiny: Tiny, overrides: dict[str, Any]) -> None:
    config = tiny(**overrides)
    sam = build_sam(config).requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        embedding = sam.image_encoder(torch.zeros(1, 3, 128, 128))
        points = torch.zeros(1, 1, 2), torch.ones(1, 1)
        sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
        sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=True)
    assert 2 * count_macs(config).total.full == counter.get_total_flops()


def test_a_four_by_three_photograph_costs_a_big_little_model_less() -> None:
    photograph = count_macs(model_config("blvit_b_t"), input_size=(480, 640))
    assert photograph.input_size == (768, 1024)
    square = counted("blvit_b_t")
    assert photograph.total.paper < 0.76 * square.total.paper
    # a quarter of the tokens is away, and with it 7/16 of what grows with their square
    assert photograph.encoder.full < 0.75 * square.encoder.full


def test_a_photograph_costs_a_dense_model_its_square(tiny_dense: Tiny) -> None:
    assert of_config(tiny_dense(), input_size=(30, 40)) == of_config(tiny_dense())


def test_a_photograph_without_pixels_is_refused(tiny: Tiny, refused: Any) -> None:
    with refused(ValueError, r"input_size=\(0, 40\)"):
        of_config(tiny(), input_size=(0, 40))


def test_the_dial_lowers_the_cost(tiny: Tiny) -> None:
    costs = [of_config(tiny(keep_ratio=ratio)).total for ratio in (0.0, 0.25, 0.5)]
    assert costs[0].paper < costs[1].paper < costs[2].paper
    assert costs[0].full < costs[1].full < costs[2].full


def test_keep_ratio_one_costs_what_the_dense_model_does(tiny: Tiny, tiny_dense: Tiny) -> None:
    routed, dense = of_config(tiny(keep_ratio=1.0)), of_config(tiny_dense())
    assert routed.parts["performance blocks"] == dense.parts["performance blocks"]
    assert routed.parts["efficiency blocks"].full == 0
    assert routed.total.full - routed.parts["routers"].full == dense.total.full


def test_the_compute_dtype_changes_no_count(tiny: Tiny) -> None:
    assert of_config(tiny(compute_dtype="bfloat16")) == of_config(tiny())


def test_parameters_are_all_of_the_model(tiny: Tiny) -> None:
    assert of_config(tiny()).parameters == sum(p.numel() for p in build_sam(tiny()).parameters())


def test_counting_leaves_no_trace_in_models_built_later(tiny: Tiny) -> None:
    count_macs(tiny())
    weight = build_sam(tiny()).image_encoder.pos_embed
    assert type(weight.data) is torch.Tensor
    assert weight.device.type == "cpu"


# any built Sam -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [{}, {"keep_ratio": 0.0}, {"keep_ratio": 1.0}, {"window": 3}])
def test_a_built_models_cost_is_its_configs(tiny: Tiny, overrides: dict[str, Any]) -> None:
    count = of_config(tiny(**overrides))
    assert sam_macs(build_sam(tiny(**overrides))) == (count.encoder, count.total)


def test_a_built_dense_models_cost_is_its_configs(tiny_dense: Tiny) -> None:
    count = of_config(tiny_dense())
    assert sam_macs(build_sam(tiny_dense())) == (count.encoder, count.total)


@pytest.mark.parametrize("window", [4, 3])
def test_segment_anythings_own_sam_costs_what_our_dense_model_does(
    tiny_dense: Tiny, original_sam: Callable[[ModelConfig], sa.Sam], window: int
) -> None:
    count = of_config(tiny_dense(window=window))
    assert sam_macs(original_sam(tiny_dense(window=window))) == (count.encoder, count.total)


def test_a_built_models_cost_is_that_of_the_keep_ratio_it_is_set_to(tiny: Tiny) -> None:
    sam = build_sam(tiny())
    sam.image_encoder.keep_ratio = 0.5
    count = of_config(tiny(keep_ratio=0.5))
    assert sam_macs(sam) == (count.encoder, count.total)


def test_counting_a_built_model_leaves_it_as_it_was(tiny: Tiny) -> None:
    sam = build_sam(tiny())
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    sam_macs(sam)
    for name, value in sam.named_parameters():
        assert type(value.data) is torch.Tensor
        assert value.requires_grad, name
    after = sam.state_dict()
    assert all(value.device.type == "cpu" and torch.equal(value, before[name]) for name, value in after.items())
    assert type(sam.pixel_mean) is torch.Tensor


def test_a_counted_model_still_answers_as_before(tiny: Tiny) -> None:
    sam, image = build_sam(tiny()), torch.rand(1, 3, 128, 128)
    before = sam.image_encoder(image)
    sam_macs(sam)
    torch.testing.assert_close(sam.image_encoder(image), before, rtol=0, atol=0)


@pytest.mark.gpu
def test_a_model_on_a_gpu_is_counted_there_and_stays(tiny: Tiny) -> None:
    sam, count = build_sam(tiny()).cuda(), of_config(tiny())
    assert sam_macs(sam) == (count.encoder, count.total)
    assert {value.device.type for value in sam.state_dict().values()} == {"cuda"}


# the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_registry(monkeypatch: pytest.MonkeyPatch, tiny: Tiny, tiny_dense: Tiny) -> None:
    for config in (tiny(), tiny_dense()):
        monkeypatch.setitem(MODELS, config.name, config)
    monkeypatch.setattr(module, "MODELS", {config.name: config for config in (tiny_dense(), tiny())})


@pytest.mark.usefixtures("small_registry")
def test_json_lists_every_model_with_both_conventions() -> None:
    dense, routed = json.loads(flops((), FlopsConfig(json=True)))
    assert (dense["model"], dense["keep_ratio"]) == ("vit_tiny", 1)
    assert (routed["model"], routed["keep_ratio"], routed["input_size"]) == ("blvit_tiny", 0.25, [128, 128])
    count = count_macs(MODELS["blvit_tiny"])
    assert routed["paper_gmacs"] == round(count.total.paper / G, 2)
    assert routed["full_gmacs"] == round(count.total.full / G, 2)
    assert routed["encoder_full_gmacs"] == round(count.encoder.full / G, 2)
    assert routed["parameters"] == count.parameters
    assert routed["parts"]["neck"]["paper_gmacs"] == round(count.parts["neck"].paper / G, 2)
    assert list(routed["parts"]) == list(count.parts)


@pytest.mark.usefixtures("small_registry")
def test_a_keep_ratio_is_for_big_little_models_alone() -> None:
    dense, routed = json.loads(flops(("vit_tiny", "blvit_tiny"), FlopsConfig(json=True, keep_ratio=0.5)))
    assert (dense["keep_ratio"], routed["keep_ratio"]) == (1, 0.5)


@pytest.mark.usefixtures("small_registry")
def test_options_replace_fields_of_the_models() -> None:
    (alone,) = json.loads(flops(("blvit_tiny",), FlopsConfig(json=True, options=("little_layers=",))))
    assert alone["parts"]["efficiency blocks"] == {"paper_gmacs": 0, "full_gmacs": 0}
    with pytest.raises(ValueError, match="pool=3 does not divide window=4"):
        flops(("blvit_tiny",), FlopsConfig(options=("primary_keys=pooled", "pool=3")))
    with pytest.raises(ValueError, match="models have no field"):
        FlopsConfig(options=("keys=pooled",))


@pytest.mark.usefixtures("small_registry")
def test_the_table_has_two_aligned_lines_a_model() -> None:
    header, *rows = flops((), FlopsConfig()).split("\n\n")[0].splitlines()
    assert [row.split()[0] for row in rows] == ["vit_tiny", "full", "blvit_tiny", "full"]
    assert len({len(line) for line in (header, *rows)}) == 1
    total = count_macs(MODELS["blvit_tiny"]).total
    assert rows[2].split()[-1] == f"{total.paper / G:.2f}"
    assert rows[3].split()[-1] == f"{total.full / G:.2f}"
    assert "128x128" in rows[2]


def test_an_unknown_model_is_refused_with_the_names_there_are(refused: Any) -> None:
    with refused(ValueError, "no model named 'vit_x'; there are vit_b"):
        flops(("vit_x",), FlopsConfig())
