"""Devices by name, and the processes that torchrun starts: real ones, over gloo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from processes import run_in_two
from sam_blvit.config import MachineConfig
from sam_blvit.system.distributed import Processes, joined_processes, pick_device, pick_dtype
from sam_blvit.train.precision import with_precision

ROOT = Path(__file__).parents[2]
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _not_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def have_cuda(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


# devices -------------------------------------------------------------------------------------------------------------


def test_cpu_is_always_there() -> None:
    assert pick_device("cpu") == torch.device("cpu")


def test_auto_prefers_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")


def test_auto_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device=cuda: not available here; there are .*cpu"):
        pick_device("cuda")


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize(("local_rank", "index"), [("0", 0), ("2", 2), ("5", 1)])
def test_each_process_takes_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, name: str, local_rank: str, index: int
) -> None:
    have_cuda(monkeypatch, 4)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert pick_device(name) == torch.device("cuda", index)


def test_on_the_cpu_every_process_takes_the_same_device(monkeypatch: pytest.MonkeyPatch) -> None:
    have_cuda(monkeypatch, 4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert pick_device("cpu") == torch.device("cpu")


def test_without_a_gpu_a_process_of_many_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    have_cuda(monkeypatch, 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == torch.device("cpu")


# dtypes --------------------------------------------------------------------------------------------------------------


def multiplies(monkeypatch: pytest.MonkeyPatch, *, avx512_bf16: bool, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(("avx512_bf16", "amx"), [(True, False), (False, True)])
def test_auto_is_bfloat16_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, avx512_bf16: bool, amx: bool
) -> None:
    multiplies(monkeypatch, avx512_bf16=avx512_bf16, amx=amx)
    assert pick_dtype("auto", torch.device("cpu")) == torch.bfloat16


def test_auto_is_float32_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    multiplies(monkeypatch, avx512_bf16=False, amx=False)
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_a_gpu_before_ampere_multiplies_no_bfloat16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert pick_dtype("auto", torch.device("cuda")) == dtype


def test_a_dtype_that_is_named_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    multiplies(monkeypatch, avx512_bf16=False, amx=False)
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


@pytest.mark.parametrize(("has_it", "precision"), [(True, "bf16"), (False, "fp32")])
def test_training_prints_what_auto_stands_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], has_it: bool, precision: str
) -> None:
    multiplies(monkeypatch, avx512_bf16=has_it, amx=False)
    config = MachineConfig(device="cpu")
    assert config.precision == "auto"
    assert with_precision(config).precision == precision
    assert capsys.readouterr().out.startswith(f"precision: {precision} (")


def test_a_precision_that_is_named_is_kept_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    config = MachineConfig(device="cpu", precision="bf16")
    assert with_precision(config) is config
    assert capsys.readouterr().out == ""


# processes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_without_others_a_process_is_the_first_and_waits_for_none(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with joined_processes() as processes:
        assert processes == Processes(rank=0, count=1)
        assert processes.first
        processes.wait()
        assert not torch.distributed.is_initialized()


def test_only_rank_0_is_the_first() -> None:
    assert [Processes(rank, 3).first for rank in range(3)] == [True, False, False]


TOGETHER = """
import json, sys, time
from pathlib import Path
import torch
from torch import distributed
from sam_blvit.system.distributed import joined_processes

directory, seen = Path(sys.argv[1]), {}
with joined_processes() as processes:
    seen |= {"rank": processes.rank, "count": processes.count, "first": processes.first}
    if processes.rank == 1:
        time.sleep(0.5)
        (directory / "from 1").touch()
    processes.wait()
    seen["waited"] = (directory / "from 1").exists()
    mine = torch.tensor([1.0 + processes.rank, 10.0])
    seen["total"], seen["mine"] = processes.total(mine).tolist(), mine.tolist()
    seen["gathered"] = processes.gathered({"of": processes.rank, "words": ["any", "thing"]})
    processes.from_first(mine)
    seen["from first"] = mine.tolist()
    if processes.first:
        start = time.monotonic()
        try:
            processes.wait()  # rank 1 has left
        except ValueError as error:
            seen |= {"told": str(error), "told after": time.monotonic() - start}
seen["left"] = not distributed.is_initialized()
(directory / f"{seen['rank']}.json").write_text(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes saw of each other, by rank."""
    directory = tmp_path_factory.mktemp("two")
    run_in_two(TOGETHER, directory)
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(2)]


def test_processes_of_torchrun_join_and_one_is_the_first(two: list[dict[str, Any]]) -> None:
    assert [(seen["rank"], seen["count"], seen["first"]) for seen in two] == [(0, 2, True), (1, 2, False)]


def test_nobody_goes_on_before_everybody_is_there(two: list[dict[str, Any]]) -> None:
    assert all(seen["waited"] for seen in two)


def test_a_sum_is_over_all_processes_and_the_same_in_each(two: list[dict[str, Any]]) -> None:
    assert [seen["total"] for seen in two] == [[3.0, 20.0]] * 2


def test_a_sum_leaves_what_was_summed_as_it_was(two: list[dict[str, Any]]) -> None:
    assert [seen["mine"] for seen in two] == [[1.0, 10.0], [2.0, 10.0]]


def test_what_is_gathered_is_everybodys_in_the_order_of_ranks(two: list[dict[str, Any]]) -> None:
    assert [seen["gathered"] for seen in two] == [[{"of": rank, "words": ["any", "thing"]} for rank in range(2)]] * 2


def test_values_from_the_first_process_overwrite_everybodys(two: list[dict[str, Any]]) -> None:
    assert [seen["from first"] for seen in two] == [[1.0, 10.0]] * 2


def test_alone_a_process_sums_gathers_and_takes_over_its_own() -> None:
    alone, values = Processes(), torch.tensor([1.0, 2.0])
    assert alone.total(values).tolist() == [1.0, 2.0]
    assert alone.gathered("mine") == ["mine"]
    alone.from_first(values)
    assert values.tolist() == [1.0, 2.0]


def test_who_waits_for_one_that_ended_is_told_soon_in_one_line(two: list[dict[str, Any]]) -> None:
    assert two[0]["told after"] < 10
    assert two[0]["told"].startswith("another process of this run has ended")
    assert "\n" not in two[0]["told"]


def test_processes_part_in_the_end(two: list[dict[str, Any]]) -> None:
    assert all(seen["left"] for seen in two)
