"""What lies in checkpoint files: wrappings come off aloud, and code, damage and other files are refused."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sam_blvit.checkpoint.format import CheckpointError, read_checkpoint
from sam_blvit.checkpoint.load import save_plain_sam, save_sam
from sam_blvit.config import ModelConfig
from sam_blvit.model.build import build_sam

Config = Callable[..., ModelConfig]
Refused = Callable[..., Any]
Plain = tuple[dict[str, Tensor], Path]


@pytest.fixture
def plain(tmp_path: Path) -> Plain:
    """A state dict and its file."""
    state, path = {"encoder.weight": torch.randn(3, 4), "decoder.bias": torch.randn(3)}, tmp_path / "sam.pth"
    torch.save(state, path)
    return state, path


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(state) == set(expected)
    assert [name for name, value in expected.items() if not torch.equal(state[name], value)] == []


# wrapped -------------------------------------------------------------------------------------------------------------


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda state: {"model": state}, "unwrapped 'model'"),
        (lambda state: {"state_dict": state, "epoch": 3}, "unwrapped 'state_dict'"),
        (prefixed, "unwrapped 'module.'"),
        (lambda state: {"model": {"state_dict": prefixed(state)}}, "unwrapped 'model' and 'state_dict' and 'module.'"),
    ],
)
def test_a_wrapped_checkpoint_is_unwrapped_aloud(
    plain: Plain, wrap: Callable[[dict[str, Tensor]], dict[str, Any]], said: str
) -> None:
    expected, path = plain
    torch.save(wrap(expected), path)
    with pytest.warns(UserWarning, match=said):
        state, config = read_checkpoint(path)
    assert config is None
    assert_same(state, expected)


def test_a_plain_checkpoint_is_read_without_a_word(plain: Plain) -> None:
    expected, path = plain
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state, _ = read_checkpoint(path)
    assert_same(state, expected)


# damage and malice ---------------------------------------------------------------------------------------------------


class Hostile:
    """Pickles as a call that makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    "write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_code_in_a_checkpoint_is_refused_and_never_run(
    tmp_path: Path, refused: Refused, write: Callable[[object, Path], object]
) -> None:
    target = tmp_path / "touched"
    write({"weight": torch.zeros(1), "evil": Hostile(target)}, tmp_path / "evil.pth")
    with refused(CheckpointError, match=r"evil\.pth is refused"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not target.exists()


def test_a_hostile_checkpoint_would_do_harm_if_it_were_trusted(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    torch.save({"evil": Hostile(target)}, tmp_path / "evil.pth")
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert target.exists()  # so the test above tests something


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path: Path, refused: Refused) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "ring.pth")
    with refused(CheckpointError, match=r"ring\.pth holds no state dict"):
        read_checkpoint(tmp_path / "ring.pth")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_checkpoint_cut_short_is_refused(tiny: Config, tmp_path: Path, refused: Refused, suffix: str) -> None:
    sam, path = build_sam(tiny()), tmp_path / f"whole.{suffix}"
    save_sam(sam, path) if suffix == "safetensors" else save_plain_sam(sam, path)
    content = path.read_bytes()
    for length in (9, 100, 5000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with refused(CheckpointError, match=str(path)):
            read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_garbage_is_refused_whatever_it_is(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "garbage.pth"
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        path.write_bytes(bytes(torch.randint(256, (seed,), generator=generator).tolist()))
        with refused(CheckpointError, match=r"garbage\.pth"):
            read_checkpoint(path)


def test_a_damaged_pickle_is_refused_wherever_it_is_damaged(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "damaged.pth"
    torch.save({"weight": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with refused(CheckpointError, match=r"damaged\.pth"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [{}, [torch.zeros(1)], {"epoch": 3}, {"model": {}}, {1: torch.zeros(1)}, {"state_dict": torch.zeros(1), "n": 1}],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, refused: Refused, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with refused(CheckpointError, match="holds no state dict of tensors"):
        read_checkpoint(tmp_path / "other.pth")


def test_of_a_long_reason_the_first_line_is_told(
    plain: Plain, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("archive is corrupted\nframe #0: c10::Error")  # some versions of torch add their stack

    monkeypatch.setattr(torch, "load", fail)
    with refused(CheckpointError, match=r"sam\.pth is damaged or no checkpoint \(archive is corrupted\)$"):
        read_checkpoint(plain[1])


@pytest.mark.parametrize("name", ["nowhere.pth", "."])
def test_a_path_without_a_file_is_refused(tmp_path: Path, refused: Refused, name: str) -> None:
    with refused(CheckpointError, match="is not a file"):
        read_checkpoint(tmp_path / name)


# values --------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # PyTorch's, about quantized and sparse tensors
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.tensor([1.0, float("nan")]), "holds NaN, infinity"),
        (torch.tensor([1.0, -float("inf")]), "holds NaN, infinity"),
        (torch.tensor([float("inf"), -float("inf")], dtype=torch.bfloat16), "holds NaN, infinity"),
        (torch.tensor([1e300], dtype=torch.float64), "holds NaN, infinity or a number beyond float32"),
        (torch.ones(3, dtype=torch.int64), "is torch.int64, which holds no weights; save it as float32"),
        (torch.ones(3, dtype=torch.bool), "is torch.bool"),
        (torch.ones(3, dtype=torch.complex64), "is torch.complex64"),
        (torch.eye(3).to_sparse(), "is not a dense tensor; save it as value.to_dense"),
        (torch.eye(3).to_sparse_csr(), "is not a dense tensor"),
        (torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "is quantized; save it as value.dequantize"),
        (torch.empty(3, device="meta"), "has no values"),
    ],
)
def test_a_tensor_that_can_be_no_weight_is_refused_by_name(
    plain: Plain, refused: Refused, value: Tensor, told: str
) -> None:
    state, path = plain
    torch.save({**state, "encoder.bias": value}, path)
    with refused(CheckpointError, match=rf"sam\.pth: encoder\.bias {told}"):
        read_checkpoint(path)


def test_large_numbers_whose_sum_is_beyond_float32_are_finite(plain: Plain) -> None:
    state, path = plain
    state["encoder.weight"] = torch.full((3, 4), 3e38)
    torch.save(state, path)
    assert_same(read_checkpoint(path)[0], state)


@pytest.mark.filterwarnings("ignore:.*unwrapped")
def test_scores_and_an_optimizers_state_may_lie_beside_the_weights(plain: Plain) -> None:
    state, path = plain
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    beside = {"best": np.float64(61.5), "step": np.int64(3), "history": np.arange(4.0)}
    torch.save({"model": state, "optimizer": optimizer.state_dict(), **beside}, path)
    assert_same(read_checkpoint(path)[0], state)


def test_an_object_beside_the_weights_is_named_with_the_remedy(plain: Plain, refused: Refused) -> None:
    state, path = plain
    torch.save({"model": state, "optimizer": torch.optim.SGD(torch.nn.Linear(1, 1).parameters())}, path)
    with refused(CheckpointError, match=r"it holds a torch\.optim\.sgd\.SGD.*torch\.save\(model\.state_dict\(\), FILE"):
        read_checkpoint(path)


def test_what_is_no_tensor_in_a_state_dict_is_named(plain: Plain, refused: Refused) -> None:
    state, path = plain
    torch.save({**state, "epoch": 3}, path)
    with refused(CheckpointError, match="'epoch' is a int"):
        read_checkpoint(path)


def test_a_tensor_with_and_without_the_mark_of_compilation_is_refused(plain: Plain, refused: Refused) -> None:
    state, path = plain
    torch.save({**state, "encoder._orig_mod.weight": state["encoder.weight"]}, path)
    with refused(CheckpointError, match="holds a tensor twice"):
        read_checkpoint(path)


def test_a_name_that_only_some_share_is_no_prefix(plain: Plain) -> None:
    state, path = plain
    state["model.weight"] = torch.ones(2)
    torch.save(state, path)
    assert_same(read_checkpoint(path)[0], state)
