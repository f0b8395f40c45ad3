"""The process that measures, called in this one: what it times, in which order, and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from test_cells import CELL
from torch import Tensor, nn

from sam_blvit.benchmark import worker
from sam_blvit.benchmark.cells import Cell
from sam_blvit.benchmark.worker import Job, Subject, encoder_call, time_round, work
from sam_blvit.config import override
from sam_blvit.cost.macs import count_macs, sam_macs
from sam_blvit.model.sam import Sam as OurSam
from studies.rivals import mobile_sam, sam_around

OURS = replace(CELL, model="blvit_tiny", keep_ratio=0.5, side=128, allocator="default", dtype="float32")
FOREIGN = replace(OURS, model="test_worker:foreign", keep_ratio=None)
COMPILE = torch.compile
SIDE = 128
count_once = cache(count_macs)


def foreign(side: int = SIDE, dim: int = 32) -> Sam:
    """A Sam of segment_anything's own classes."""
    encoder = ImageEncoderViT(img_size=side, embed_dim=dim, depth=1, num_heads=2, out_chans=256, use_rel_pos=True)
    return sam_around(encoder)


def wider() -> Sam:
    """The same of more channels."""
    return foreign(dim=64)


def larger() -> Sam:
    """The same for larger images."""
    return foreign(side=256)


def rival() -> Sam:
    """A Sam of other classes."""
    return mobile_sam(SIDE)


class Awkward(nn.Module):
    """An encoder that raises what it is told to, or leaves the graph."""

    img_size = SIDE
    error: Exception | None = None

    def forward(self, images: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error
        print("a graph breaks here")
        return images.new_zeros(len(images), 256, SIDE // 16, SIDE // 16)


def awkward() -> Sam:
    """Its encoder cannot be compiled as one graph."""
    return sam_around(Awkward())


def greedy() -> Sam:
    """Its encoder wants more memory than there is."""
    sam = sam_around(Awkward())
    sam.image_encoder.error = torch.OutOfMemoryError("CUDA out of memory")
    return sam


def starved() -> Sam:
    """As a CPU says it."""
    sam = sam_around(Awkward())
    sam.image_encoder.error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
    return sam


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(worker, "MATMUL", {"cpu": (8, 8, 8)})
    monkeypatch.setattr(worker, "count_macs", count_once)
    compile_with(monkeypatch, "eager")
    yield
    torch._dynamo.reset()


def compile_with(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """Have encoders compiled for `backend`, which waits for no C++ compiler."""
    monkeypatch.setattr(torch, "compile", lambda f, **settings: COMPILE(f, **{**settings, "backend": backend}))


def said(*cells: Cell, rounds: int = 1, cold: bool = True) -> list[dict[str, Any]]:
    """What the worker says of `cells`."""
    events: list[dict[str, Any]] = []
    work(Job(list(cells), rounds=rounds, cold=cold), lambda **event: events.append(event))
    return events


def of(events: list[dict[str, Any]], cell: int) -> dict[str, Any]:
    """All that was said of one cell, the last where it was said more than once."""
    return {name: value for event in events if event.get("cell") == cell for name, value in event.items()}


def test_a_job_survives_its_way_to_another_process() -> None:
    job = Job([OURS, FOREIGN], rounds=3, cold=False)
    assert Job.from_json(job.to_json()) == job
    assert "\n" not in job.to_json()


def test_each_model_is_timed_once_a_round_and_another_one_first_in_each() -> None:
    called = []
    subjects = {
        index: Subject(lambda i=index: called.append(f"e{i}"), lambda i=index: called.append(f"d{i}"))
        for index in (0, 2, 3)
    }
    for turn in range(4):
        time_round([OURS] * 4, subjects, turn, lambda **event: called.append(event))
    order = [word[1] for word in called if isinstance(word, str) and word[0] == "e"]
    assert "".join(order) == "023" + "230" + "302" + "023"
    assert called[:2] == ["e0", "d0"]
    assert called[2].keys() == {"cell", "encoder_ms", "decoder_ms"}


def test_a_model_that_fails_in_a_round_is_not_timed_again() -> None:
    events: list[dict[str, Any]] = []

    def fail() -> None:
        raise MemoryError

    subjects = {0: Subject(fail, fail), 1: Subject(lambda: None, lambda: None)}
    for turn in range(2):
        time_round([OURS] * 2, subjects, turn, lambda **event: events.append(event))
    assert [event.get("problem", "timed") for event in events] == ["does not fit", "timed", "timed"]


def test_ours_and_foreign_models_are_timed_beside_each_other() -> None:
    events = said(OURS, FOREIGN, replace(FOREIGN, model="test_worker:rival"), rounds=2)
    assert "threads" in events[0]["machine"]
    for cell in range(3):
        seen = of(events, cell)
        assert seen["input_size"] == (SIDE, SIDE)
        assert seen["encoder_ms"] > 0
        assert seen["decoder_ms"] > 0
        assert seen["first_seconds"] > 0
        assert sum(event.get("cell") == cell and "encoder_ms" in event for event in events) == 2
    assert [of(events, cell)["segment_anything"] for cell in range(3)] == [False, True, False]
    assert [of(events, cell)["weights"] for cell in range(3)] == ["random", "function", "function"]
    rates = [event for event in events if "macs_per_second" in event]
    assert [rate["dtype"] for rate in rates] == ["float32"] * 2
    assert min(rate["macs_per_second"] for rate in rates) > 0
    assert json.loads(json.dumps(events))


def test_macs_are_the_encoders_every_product_counted() -> None:
    events = said(OURS, FOREIGN, replace(OURS, model="vit_tiny", keep_ratio=None), rounds=0)
    config = override(worker.build(OURS).config, keep_ratio=0.5)
    assert of(events, 0)["macs"] == count_macs(config).encoder.full
    assert of(events, 1)["macs"] == sam_macs(foreign())[0].full
    assert of(events, 2)["weights"] == "random"


def test_only_a_cold_process_tells_of_first_calls() -> None:
    assert "first_seconds" not in of(said(OURS, rounds=0, cold=False), 0)


def test_a_photograph_that_is_not_square_is_padded_as_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = replace(OURS, side=256, aspect="16:9")
    dense = replace(wide, model="vit_tiny", keep_ratio=None)
    events = said(wide, dense, replace(wide, model="test_worker:foreign", keep_ratio=None, side=None), rounds=1)
    assert [of(events, cell)["input_size"] for cell in range(3)] == [(256, 256), (256, 256), (SIDE, SIDE)]
    small_windows = said(replace(wide, side=512), rounds=0)
    assert of(small_windows, 0)["input_size"] == (384, 512)


def test_a_foreign_model_of_another_side_says_which_it_takes() -> None:
    events = said(replace(FOREIGN, side=1024), OURS)
    assert of(events, 0)["problem"] == f"takes a side of {SIDE} pixels only"
    assert "encoder_ms" in of(events, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ours_compute_in_their_dtype_and_foreign_ones_under_autocast(dtype: str) -> None:
    ours = worker.build(replace(OURS, dtype=dtype))
    assert isinstance(ours, OurSam)
    assert ours.config.compute_dtype == dtype
    sam, inside = foreign(), []
    sam.image_encoder.register_forward_hook(lambda *_: inside.append(torch.is_autocast_enabled("cpu")))
    encoder_call(sam, replace(FOREIGN, dtype=dtype), (SIDE, SIDE))()
    assert inside == [dtype == "bfloat16"]


def test_the_whole_batch_is_encoded() -> None:
    sam = foreign()
    assert encoder_call(sam, replace(FOREIGN, batch=3), (SIDE, SIDE))().shape[0] == 3


def test_models_of_one_class_are_compiled_each_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        inputs.append(examples)
        return graph.forward

    compile_with(monkeypatch, backend)
    models = [f"test_worker:{name}" for name in ("foreign", "wider", "larger")]
    with torch._dynamo.config.patch(recompile_limit=2):  # the encoders share their code
        events = said(*(replace(FOREIGN, model=model, side=None, way="compiled") for model in models))
    assert not [event for event in events if "problem" in event]
    assert len(inputs) == len(models)
    assert not any(isinstance(example, torch.SymInt) for examples in inputs for example in examples)


def test_what_cannot_be_compiled_is_said_in_one_line_and_the_others_go_on() -> None:
    model = "test_worker:awkward"
    events = said(replace(FOREIGN, model=model, way="compiled"), replace(FOREIGN, model=model), FOREIGN)
    problem = of(events, 0)["problem"]
    assert problem.startswith("does not compile: ")
    assert "\n" not in problem
    assert "encoder_ms" in of(events, 1)
    assert "encoder_ms" in of(events, 2)


@pytest.mark.parametrize("model", ["greedy", "starved"])
def test_what_does_not_fit_says_so_and_the_others_go_on(model: str) -> None:
    events = said(replace(FOREIGN, model=f"test_worker:{model}"), OURS)
    assert of(events, 0)["problem"] == "does not fit"
    assert "encoder_ms" in of(events, 1)


def test_what_cannot_be_counted_is_timed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def uncounted(sam: Sam) -> None:
        raise NotImplementedError

    monkeypatch.setattr(worker, "sam_macs", uncounted)
    seen = of(said(FOREIGN), 0)
    assert seen["macs"] is None
    assert seen["encoder_ms"] > 0


def test_bad_input_ends_the_process_with_one_line() -> None:
    events: list[dict[str, Any]] = []
    job = Job([replace(FOREIGN, model="test_worker:nothing")], rounds=1, cold=True)
    with pytest.raises(SystemExit):
        work(job, lambda **event: events.append(event))
    assert "test_worker:nothing cannot be imported" in events[-1]["error"]
    assert "\n" not in events[-1]["error"]


@pytest.mark.parametrize(("allocator", "tuned"), [("tuned", True), ("default", False)])
def test_the_allocator_is_tuned_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, allocator: str, tuned: bool
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(worker, "tune_allocator", lambda: calls.append(True))
    said(replace(OURS, allocator=allocator), rounds=0)
    assert bool(calls) == tuned


def test_threads_are_as_many_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    said(replace(OURS, threads=3), OURS, rounds=0)
    said(OURS, rounds=0)
    assert asked == [3]


def test_a_rival_answers_by_its_own_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noting(name: str) -> None:
        ask = getattr(worker, name)
        monkeypatch.setattr(worker, name, lambda *args, **kwargs: (asked.append(name), ask(*args, **kwargs))[1])

    noting("decode")
    noting("decode_originally")
    said(FOREIGN, rounds=0)
    assert set(asked) == {"decode_originally"}
    asked.clear()
    said(OURS, rounds=0)
    assert set(asked) == {"decode"}
