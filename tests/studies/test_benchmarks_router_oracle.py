"""The oracle benchmark: each ranking chooses what it says and nothing else changes, and its tables are whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import TINY
from datasets import CROWD, EMPTY, squares, write_annotations, write_images
from sam_blvit.checkpoint.load import save_sam
from sam_blvit.cli import run
from sam_blvit.config import MODELS, ModelConfig
from sam_blvit.data.instances import find_images, read_instances
from sam_blvit.evaluate.metrics.overlap import iou
from sam_blvit.model.build import build_sam
from sam_blvit.model.encoder import Encoding
from sam_blvit.model.router import Routing
from sam_blvit.model.sam import Sam
from sam_blvit.model.windows import WindowLayout
from sam_blvit.predictor import SamPredictor
from studies import router_oracle
from studies.router_oracle import RANKINGS, Chosen, Outcome, dealt, ranked
from synthetic import write_flat

IMAGES = (3, 4)
"""A square photograph, and one that is not."""


@pytest.fixture
def sam(tiny: Callable[..., ModelConfig], randomize: Callable[[Sam], Sam]) -> Sam:
    return randomize(build_sam(tiny())).eval()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Four squares, one object without a pixel and a crowd, on two photographs."""
    write_images(tmp_path, IMAGES)
    odd = [{**one, "image_id": IMAGES[0]} for one in (EMPTY, CROWD)]
    write_annotations(tmp_path, [*squares(IMAGES), *odd], IMAGES)
    return tmp_path


@torch.no_grad()
def encoded(sam: Sam, name: str, keep_ratio: float = 0.25) -> Encoding:
    """Noise, with primary tokens by ranking `name`."""
    torch.manual_seed(1)
    sam.image_encoder.keep_ratio = keep_ratio
    layout = WindowLayout((8, 8), sam.config.window, torch.device("cpu"))
    with ranked(sam.image_encoder, RANKINGS[name], layout):
        return sam.image_encoder.encode(
            torch.randn(2, 3, 128, 128), with_benefits=True, features_of=sam.config.routers_after
        )


def windows_of(layout: WindowLayout) -> list[list[int]]:
    """The window-major tokens of each window, by plain loops over rows and columns."""
    rows, columns = layout.grid
    raster = layout.by_window(torch.arange(rows * columns).reshape(1, rows, columns, 1)).flatten().tolist()
    side = layout.window
    of_place: dict[tuple[int, int], list[int]] = {}
    for token, place in enumerate(raster):
        of_place.setdefault((place // columns // side, place % columns // side), []).append(token)
    return list(of_place.values())


def best(values: Tensor, layout: WindowLayout, routing: Routing) -> Tensor:
    """(B, N) 1 for the tokens of highest `values` (B, N) of each window, as many as `routing` chose."""
    number = routing.slots.shape[-1]
    expected = torch.zeros_like(values)
    for image, of_image in enumerate(values.tolist()):
        for tokens in windows_of(layout):
            expected[image, sorted(tokens, key=lambda t: -of_image[t])[:number]] = 1
    return expected


@pytest.mark.parametrize(("grid", "window"), [((8, 8), 4), ((4, 8), 4), ((8, 8), 3), ((8, 6), 5)])
def test_logits_are_dealt_by_worth_within_each_window(grid: tuple[int, int], window: int) -> None:
    layout = WindowLayout(grid, window, torch.device("cpu"))
    logits, worth = torch.randn(2, 2, layout.num_tokens)
    new = dealt(logits, worth, layout)
    for image in range(2):
        for tokens in windows_of(layout):
            by_worth = sorted(tokens, key=lambda t: -worth[image, t].item())
            assert new[image, by_worth].tolist() == sorted(logits[image, tokens].tolist(), reverse=True)


@pytest.mark.parametrize("window", [3, 4])
def test_the_oracle_chooses_exactly_the_tokens_of_highest_benefit(
    tiny: Callable[..., ModelConfig], randomize: Callable[[Sam], Sam], window: int
) -> None:
    encoding = encoded(randomize(build_sam(tiny(window=window))).eval(), "oracle")
    assert list(encoding.routings) == [1, 3]
    for layer, routing in encoding.routings.items():
        expected = best(encoding.benefits[layer], encoding.layout, routing)
        torch.testing.assert_close(routing.primary[..., 0], expected, rtol=0, atol=0)
        assert router_oracle.chosen(encoding, layer).of_best == 1


def test_the_anti_oracle_chooses_the_others_and_less_benefit(sam: Sam) -> None:
    for keep_ratio in (0.25, 0.5):
        worst, top = encoded(sam, "anti-oracle", keep_ratio), encoded(sam, "oracle", keep_ratio)
        for layer in (1, 3):
            low, high = (router_oracle.chosen(encoding, layer) for encoding in (worst, top))
            assert low.of_best == 0
            assert low.of_benefit < keep_ratio < high.of_benefit
        first = (router_oracle.chosen(encoding, 1).of_benefit for encoding in (worst, top))
        assert keep_ratio != 0.5 or sum(first) == pytest.approx(1), "at the first router both see the same tokens"


def test_the_norm_chooses_the_longest_tokens(sam: Sam) -> None:
    encoding = encoded(sam, "norm")
    for layer, routing in encoding.routings.items():
        norms = encoding.layout.by_window(encoding.features[layer]).norm(dim=-1)
        torch.testing.assert_close(routing.primary[..., 0], best(norms, encoding.layout, routing), rtol=0, atol=0)


def test_fixed_noise_chooses_the_same_scattered_tokens_everywhere(sam: Sam) -> None:
    encoding = encoded(sam, "fixed noise")
    first, second = (encoding.routings[layer].slots for layer in (1, 3))
    assert torch.equal(first[0], first[1])
    assert torch.equal(first, second)
    assert not torch.equal(first[0, 0], first[0, 1]), "windows differ"


def test_random_tokens_are_others_in_each_image_and_after_each_router(sam: Sam) -> None:
    encoding = encoded(sam, "random")
    first, second = (encoding.routings[layer].primary for layer in (1, 3))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("keep_ratio", "cell"), [(0.25, 2), (0.0625, 4)])
def test_the_grid_has_one_token_in_every_square_and_is_the_same_everywhere(
    sam: Sam, keep_ratio: float, cell: int
) -> None:
    encoding = encoded(sam, "fixed grid", keep_ratio)
    for routing in encoding.routings.values():
        chosen = encoding.layout.by_raster(routing.primary)[..., 0]  # (2, 8, 8)
        assert torch.equal(chosen[0], chosen[1])
        in_cells = chosen.unflatten(2, (-1, cell)).unflatten(1, (-1, cell))
        assert (in_cells == in_cells[:, :1, :, :1]).all()
        assert (in_cells.sum((2, 4)) == 1).all()


def test_the_grid_of_half_the_tokens_is_a_chessboard(sam: Sam) -> None:
    encoding = encoded(sam, "fixed grid", 0.5)
    chosen = encoding.layout.by_raster(encoding.routings[1].primary)[0, :, :, 0]
    torch.testing.assert_close(chosen, 1 - torch.arange(8).add(torch.arange(8)[:, None]).remainder(2).float())


def test_the_learned_router_is_the_model_as_it_is_and_every_ranking_leaves_it_so(sam: Sam) -> None:
    routers = dict(sam.image_encoder.routers.items())
    torch.manual_seed(1)
    sam.image_encoder.keep_ratio = 0.25
    with torch.no_grad():
        plain = sam.image_encoder(torch.randn(2, 3, 128, 128))
    torch.testing.assert_close(encoded(sam, "learned router").embedding, plain, rtol=0, atol=0)
    for name in RANKINGS:
        encoded(sam, name)
        assert dict(sam.image_encoder.routers.items()) == routers


def test_all_rankings_give_the_same_scores_to_other_tokens(sam: Sam) -> None:
    routings = {name: encoded(sam, name).routings[1] for name in RANKINGS}
    own = routings["learned router"]
    for name, routing in routings.items():
        scores, expected = (one.scores.unflatten(1, one.slots.shape[1:]).sort(2).values for one in (routing, own))
        torch.testing.assert_close(scores, expected)
        assert (name == "learned router") == torch.equal(routing.tokens, own.tokens)


# measuring ----------------------------------------------------------------------------------------------------------


def measured(sam: Sam, root: Path, keep_ratios: tuple[float, ...] = (0.25,)) -> dict[tuple[float, str], list[Outcome]]:
    data = read_instances(root / "annotations.json")
    images = find_images(list(data.records.values()), root)
    usable = [instance for instance in data.instances if not instance.crowd]
    return router_oracle.measure(sam, images, usable, keep_ratios=keep_ratios, rankings=RANKINGS)


def test_every_way_is_measured_on_every_photograph(sam: Sam, dataset: Path) -> None:
    outcomes = measured(sam, dataset, (0.25, 0.5))
    assert set(outcomes) == {(0.0, ""), (1.0, ""), *((ratio, name) for ratio in (0.25, 0.5) for name in RANKINGS)}
    for (ratio, name), found in outcomes.items():
        assert [one.image_id for one in found] == list(IMAGES)
        assert [len(one.ious) for one in found] == [2, 2], "the object without a pixel is left out"
        assert all(list(one.chosen) == ([1, 3] if name else []) for one in found)
        exact = ratio == 1
        assert all((one.cosine == pytest.approx(1)) == (one.error == 0) == exact for one in found)
    assert all(share.of_best == 1 for one in outcomes[0.25, "oracle"] for share in one.chosen.values())


@torch.no_grad()
def test_a_way_is_compared_with_the_dense_embedding_on_the_photographs_own_tokens(sam: Sam, dataset: Path) -> None:
    found = measured(sam, dataset)[0.25, "learned router"][1]
    data = read_instances(dataset / "annotations.json")
    image = find_images([data.records[4]], dataset)[0]
    predictor, embeddings = SamPredictor(sam), []
    for keep_ratio in (1, 0.25):
        sam.image_encoder.keep_ratio = keep_ratio
        predictor.set_image(image.pixels())
        embeddings.append(predictor.features[0, :, :7].double())  # 100 of 128 pixels: 7 of 8 rows of tokens
    dense, mine = embeddings
    cosines = (dense * mine).sum(0) / dense.norm(dim=0) / mine.norm(dim=0)
    assert found.cosine == pytest.approx(cosines.mean().item())
    assert found.error == pytest.approx(100 * ((dense - mine).norm() / dense.norm()).item() ** 2)
    for expected, instance in zip(found.ious, [one for one in data.instances if one.image_id == 4], strict=True):
        x, y, width, height = instance.box
        masks, predicted, _ = predictor.predict(box=np.array([x, y, x + width, y + height]))
        assert expected == pytest.approx(iou(masks[predicted.argmax()], instance.mask(100, 128)))


def test_a_keep_ratio_of_no_token_is_refused(sam: Sam, dataset: Path, refused: Any) -> None:
    with refused(ValueError, r"keep_ratio=0\.01 of a window of 16 tokens"):
        measured(sam, dataset, (0.01,))


def test_differences_are_those_of_the_same_photographs_and_objects() -> None:
    found = [Outcome(image_id, 0.9, 4.0 + image_id, [50.0, 60.0][:image_id]) for image_id in (1, 2)]
    random = [Outcome(image_id, 0.9, 6.0, [40.0, 80.0][:image_id]) for image_id in (1, 2)]
    error, box = router_oracle.differences(found, random)
    assert (error.mean, error.low, error.high) == (-0.5, -1, 0)
    assert (box.mean, box.low, box.high) == (0, -5, 10)


def test_the_tables_hold_means_and_differences() -> None:
    half, whole = Chosen(0.5, 0.25), Chosen(1.0, 0.75)
    outcomes = {
        (0.0, ""): [Outcome(1, 0.5, 9.0, [10.0])],
        (0.25, "oracle"): [Outcome(1, 0.75, 2.0, [40.0, 50.0], {1: whole, 3: half})],
        (0.25, "random"): [Outcome(1, 0.7, 3.0, [40.0, 40.0], {1: half, 3: half})],
        (1.0, ""): [Outcome(1, 1.0, 0.0, [60.0])],
    }
    lines = [line for line in router_oracle.tables(outcomes).splitlines() if line.startswith("|")]
    assert lines[2:6] == [
        "| 0 | no primary tokens | 0.5000 | 9.0000 |  | 10.00 |  |",
        "| 0.25 | oracle | 0.7500 | 2.0000 | -1.00 [-1.00, -1.00] | 45.00 | +5.00 [+5.00, +5.00] |",
        "| 0.25 | random | 0.7000 | 3.0000 |  | 40.00 |  |",
        "| 1 | dense | 1.0000 | 0.0000 |  | 60.00 |  |",
    ]
    assert lines[8:] == [
        "| 0.25 | oracle | 100.0 / 75.0 | 50.0 / 25.0 |",
        "| 0.25 | random | 50.0 / 25.0 | 50.0 / 25.0 |",
    ]


# the command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(dataset: Path) -> Callable[..., None]:
    """The benchmark of a checkpoint on the dataset, with further words of its command line."""

    def called(checkpoint: Path, *words: str) -> None:
        where = [str(checkpoint), str(dataset / "annotations.json"), str(dataset)]
        run(router_oracle.router_oracle, [*where, "--device", "cpu", *words])

    return called


@pytest.fixture
def _tiny_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(MODELS, "blvit_tiny", TINY)
    return


def rows_of(text: str) -> list[list[str]]:
    """Cells of the lines of tables."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_a_trained_checkpoint_gives_whole_tables(
    sam: Sam, tmp_path: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    save_sam(sam, tmp_path / "mine.safetensors")
    command(tmp_path / "mine.safetensors", "--keep-ratios", "0.25,0.5", "--output", str(tmp_path / "told.md"))
    printed = capsys.readouterr().out
    assert (tmp_path / "told.md").read_text() == printed
    assert "2 photographs, 4 objects (1 without a pixel and all crowds left out)" in printed
    rows = rows_of(printed)
    ways = [[ratio, name] for ratio in ("0.25", "0.5") for name in RANKINGS]
    assert [row[:2] for row in rows[2:]] == [
        ["0", "no primary tokens"],
        *ways,
        ["1", "dense"],
        ["keep ratio", "primary tokens by"],
        ["---", "---"],
        *ways,
    ]
    assert rows[0][2:] == ["cosine", "squared error, %", "to random's", "box mIoU", "to random's"]
    assert rows[4 + len(ways)][2:] == ["after layer 1", "after layer 3"]
    assert all(
        bool(row[4]) == bool(row[6]) == (row[1] not in ("random", "dense", "no primary tokens"))
        for row in rows[2 : 4 + len(ways)]
    )


@pytest.mark.usefixtures("_tiny_registry")
@pytest.mark.filterwarnings("ignore:.*plain SAM:UserWarning")
def test_a_dense_checkpoint_is_fitted_first_and_its_fresh_routers_are_left_out(
    tiny_dense: Callable[..., ModelConfig],
    randomize: Callable[[Sam], Sam],
    tmp_path: Path,
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_sam(randomize(build_sam(tiny_dense())), tmp_path / "dense.safetensors")
    fit = ["--model", "blvit_tiny", "--data", str(write_flat(tmp_path / "data", range(5)))]
    short = ["--keep-ratios", "0.5", "--limit", "1", "--warm-start-images", "4", "--warm-start-steps", "2"]
    command(tmp_path / "dense.safetensors", *fit, *short)
    printed = capsys.readouterr().out
    assert "fitted to 4 photographs" in printed
    assert "1 photographs" in printed
    assert "by layer: 2: " in printed
    names = [row[1] for row in rows_of(printed) if row[0] == "0.5"]
    assert names == 2 * [name for name in RANKINGS if name != "learned router"]


def test_what_cannot_be_compared_is_refused(
    tiny_dense: Callable[..., ModelConfig], tmp_path: Path, command: Callable[..., None], capsys: Any
) -> None:
    dense = tmp_path / "dense.safetensors"
    save_sam(build_sam(tiny_dense()), dense)
    for words, says in {
        (): "vit_tiny is dense; name the big.LITTLE model to make of",
        ("--model", "blvit_tiny"): "model=blvit_tiny and data=None go together",
        ("--keep-ratios", "0.5,1"): "where routers choose",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            command(dense, *words)
        assert says in capsys.readouterr().err
