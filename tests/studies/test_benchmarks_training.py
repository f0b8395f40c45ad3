"""The benchmarks of training run, on the smallest models: what they count adds up; how fast it is, they do not say."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from conftest import TINY, with_settings
from sam_blvit.config import MODELS, compose, override
from sam_blvit.model.build import build_sam
from sam_blvit.train.loss import objective
from studies import training_estimate, training_speed
from synthetic import write_flat

pytestmark = pytest.mark.filterwarnings("ignore:blvit_tiny.*plain SAM:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def _tiny_registry() -> Iterator[None]:
    dense = override(TINY, name="vit_tiny", routed_from=None, routers_after=(), little_layers=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "blvit_tiny", TINY)
        patch.setitem(MODELS, "vit_tiny", dense)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> training_speed.SpeedConfig:
    """A step that counts of two of six photographs, at two keep ratios."""
    data = tmp_path_factory.mktemp("data")
    write_flat(data, range(6))
    return compose(
        training_speed.SpeedConfig,
        model="blvit_tiny",
        data=data,
        output=data / "run",
        batch_size=2,
        masks_per_image=2,
        mask_side=32,
        correction_rounds=0,
        keep_ratios=(0.25, 1.0, 1.0),
        random_teacher=True,
        steps=1,
        workers=0,
        device="cpu",
        peak_teraflops=1.0,
    )


@pytest.fixture(scope="module")
def rows(
    config: training_speed.SpeedConfig, tmp_path_factory: pytest.TempPathFactory
) -> list[training_speed.SpeedResult]:
    with_teacher = training_speed.with_random_teacher(config, tmp_path_factory.mktemp("teacher"))
    with training_speed.joined_processes(torch.device("cpu")) as processes:
        return training_speed.measure(with_teacher, training_speed.training_source(with_teacher.data), processes)


def test_every_keep_ratio_is_measured_once(rows: list[training_speed.SpeedResult]) -> None:
    assert [row.keep_ratio for row in rows] == [0.25, 1.0]


def test_the_pieces_of_a_step_make_it_up(rows: list[training_speed.SpeedResult]) -> None:
    for row in rows:
        assert set(row.shares) == set(training_speed.PIECES)
        assert sum(row.shares.values()) == pytest.approx(1)
        assert min(row.shares.values()) >= 0, "pieces overlap, or were not timed within their step"
        assert all(row.shares[piece] > 0 for piece in ("encoder", "teacher", "decoder", "backward", "optimiser"))


def test_more_tokens_kept_are_more_arithmetic(rows: list[training_speed.SpeedResult]) -> None:
    least, most = (row.teraflops * row.seconds for row in rows)
    assert 0 < least < most


def test_a_step_is_two_images_with_two_masks_each(rows: list[training_speed.SpeedResult]) -> None:
    assert [row.images_per_second * row.seconds for row in rows] == [pytest.approx(2)] * 2
    assert all(0 < row.masks <= 4 for row in rows)


def test_a_table_is_printed_and_neither_clocks_nor_files_are_left(
    config: training_speed.SpeedConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    before = objective.mask_losses, torch.Tensor.backward, torch.nn.utils.clip_grad_norm_
    training_speed.training_speed(config)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2, "a line for each keep ratio"
    assert len({line.count("|") for line in lines}) == 1
    assert "blvit_tiny" in lines[2]
    assert "random" in out.splitlines()[-1]
    assert not config.run.output.exists()
    assert before == (objective.mask_losses, torch.Tensor.backward, torch.nn.utils.clip_grad_norm_)


def test_on_a_gpu_every_combination_of_the_switches_is_measured(config: training_speed.SpeedConfig) -> None:
    assert training_speed.variants(config, torch.device("cpu")) == [config]
    found = training_speed.variants(config, torch.device("cuda"))
    assert len({(variant.machine.compile, variant.machine.checkpoint_layers) for variant in found}) == 4


# estimates ----------------------------------------------------------------------------------------------------------


def test_tensors_kept_for_the_backward_pass_are_counted_once_and_weights_never() -> None:
    sam = build_sam(TINY)
    scale = sam.image_encoder.pos_embed  # (1, 8, 8, 32) float32
    x = torch.ones(1, 8, 8, 32, requires_grad=True)
    assert training_estimate.kept_bytes(lambda: x * scale + x * scale, sam) == x.numel() * 4


def test_hours_follow_from_multiply_adds() -> None:
    counted = training_estimate.Arithmetic({0.0: 1.0, 1.0: 3.0}, 4.0, 0.5, masks=2, rounds=3, images=1e6)
    assert counted.image == 3 * 2.0 + 4.0 + 3 * 0.5 * 6
    seconds = 2 * counted.image * 1e9 * 1e6 / (8 * training_estimate.ASSUMED_SHARE * training_estimate.PEAK_FLOP)
    assert counted.hours(8) == pytest.approx(seconds / 3600)
    assert dataclasses.replace(counted, teacher=None).image == counted.image - 4


def test_memory_is_less_with_what_costs_less() -> None:
    config = with_settings(training_estimate.recipe("accelerate"), model="blvit_tiny", window=None, keep_ratios=(0.25,))
    frozen = training_estimate.memory(config, 1)
    assert 0 < frozen.checkpointed < frozen.image
    trained = training_estimate.memory(with_settings(config, freeze="none"), 8)
    assert trained.weights > frozen.weights
    assert trained.mask_round > frozen.mask_round, "a frozen decoder keeps no inputs of its layers"
    sharded = training_estimate.memory(with_settings(config, freeze="none", sharding="fsdp"), 8)
    assert sharded.weights < trained.weights


def test_docs_tell_what_the_estimate_of_a_recipe_prints() -> None:
    config = training_estimate.recipe("sam_b_t_paper")  # one keep ratio: the quickest
    page = (training_estimate.CONFIGS.parent / "docs" / "training.md").read_text()
    hours = training_estimate.hours_row("`sam_b_t_paper`", training_estimate.arithmetic(config), training_estimate.GPUS)
    assert hours in page
    memory = training_estimate.memory_row("`sam_b_t_paper`", training_estimate.memory(config, training_estimate.GPUS))
    assert memory in page
