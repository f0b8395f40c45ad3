"""The look at routers: shares of tokens with a known place, choices that stay, and a whole table with its pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from datasets import annotation, write_annotations, write_images
from sam_blvit.checkpoint.load import save_sam
from sam_blvit.cli import run
from sam_blvit.config import ModelConfig
from sam_blvit.data.instances import ImageFile, Instance, find_images, read_instances
from sam_blvit.model.build import build_sam
from sam_blvit.model.measuring import measuring
from sam_blvit.model.sam import Sam
from sam_blvit.model.windows import WindowLayout
from studies import router_look
from studies.router_look import Look, Places, objects_on_tokens

SQUARE = annotation(1, 3, 4, 4, 20)
"""On a photograph of 64 x 64, which the tiny model sees as 128 x 128 in 8 x 8 tokens: pixels 8 to 47, so that tokens
0 of 0 to 2 are on the edge and 1 to 2 are inside, all of them in the first window of 4 x 4."""
EDGE = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
INSIDE = [(1, 1), (1, 2), (2, 1), (2, 2)]


class Fond(nn.Module):
    """A router that takes the tokens it likes, and of a window without enough of them the first."""

    def __init__(self, liked: list[tuple[int, int]]) -> None:
        super().__init__()
        likes = torch.zeros(1, 8, 8, 1)
        for row, column in liked:
            likes[0, row, column] = 1
        self.logits = WindowLayout((8, 8), 4, torch.device("cpu")).by_window(likes)[..., 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


@pytest.fixture
def sam(tiny: Callable[..., ModelConfig], randomize: Callable[[Sam], Sam]) -> Sam:
    return randomize(build_sam(tiny())).eval()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_images(tmp_path, (3,))
    write_annotations(tmp_path, [SQUARE, annotation(2, 3, 40, 40, 9, iscrowd=1)], (3,))
    return tmp_path


def read(root: Path) -> tuple[list[ImageFile], list[Instance]]:
    dataset = read_instances(root / "annotations.json")
    objects = [instance for instance in dataset.instances if not instance.crowd]
    return find_images(list(dataset.records.values()), root), objects


def rectangle(rows: slice, columns: slice) -> np.ndarray:
    """(64, 64)."""
    mask = np.zeros((64, 64), dtype=bool)
    mask[rows, columns] = True
    return mask


def tokens_of(masks: list[np.ndarray], input_size: tuple[int, int] = (64, 64)) -> tuple[list[Any], list[Any]]:
    """Row and column of the tokens on edges, and of those inside."""
    edge, inside = objects_on_tokens(masks, input_size=input_size, size=(64, 64))
    assert edge.shape == inside.shape == (-(-input_size[0] // 16), -(-input_size[1] // 16))
    return [tuple(place) for place in np.argwhere(edge).tolist()], [
        tuple(place) for place in np.argwhere(inside).tolist()
    ]


# places -------------------------------------------------------------------------------------------------------------


def test_a_token_is_on_an_edge_where_its_cell_is_partly_covered() -> None:
    around = [(row, column) for row in range(3) for column in range(3) if (row, column) != (1, 1)]
    assert tokens_of([rectangle(slice(8, 40), slice(8, 40))]) == (around, [(1, 1)])
    assert tokens_of([rectangle(slice(0, 1), slice(17, 18))]) == ([(0, 1)], [])


def test_an_outline_between_cells_is_in_none() -> None:
    assert tokens_of([rectangle(slice(16, 32), slice(0, 16))]) == ([], [(1, 0)])
    assert tokens_of([rectangle(slice(0, 64), slice(0, 64))])[0] == [], "the photograph's border is no edge"


def test_inside_one_object_on_the_edge_of_another_is_on_an_edge() -> None:
    large, small = rectangle(slice(0, 32), slice(0, 32)), rectangle(slice(4, 8), slice(20, 24))
    for masks in ([large, small], [small, large]):
        assert tokens_of(masks) == ([(0, 1)], [(0, 0), (1, 0), (1, 1)])


def test_cells_are_those_of_the_resized_photograph() -> None:
    mask = rectangle(slice(4, 24), slice(4, 24))
    assert tokens_of([mask], (128, 128)) == (EDGE, INSIDE)
    assert tokens_of([mask], (32, 32)) == ([(0, 0)], [])
    assert tokens_of([rectangle(slice(0, 64), slice(0, 64))], (20, 36))[1] == [
        (r, c) for r in range(2) for c in range(3)
    ]
    assert tokens_of([]) == ([], [])


@pytest.mark.parametrize(
    ("liked", "expected"),
    [(EDGE, Places(edge=4 / 16, inside=0)), (INSIDE, Places(edge=0, inside=4 / 16)), ([], Places(3 / 16, 0))],
)
def test_a_router_that_likes_known_tokens_has_known_shares(
    sam: Sam, dataset: Path, liked: list[tuple[int, int]], expected: Places
) -> None:
    """4 of 16 tokens of each of 4 windows are primary, and the object is in the first window."""
    for name in sam.image_encoder.routers:
        sam.image_encoder.routers[name] = Fond(liked)
    with measuring(sam, 0.25):
        (look,) = router_look.looks(sam, *read(dataset))
    assert look == Look(3, Places(edge=5 / 64, inside=4 / 64), {1: expected, 3: expected})


def test_tokens_on_padding_count_nowhere(sam: Sam, tmp_path: Path) -> None:
    """7 of 8 rows of tokens are on this photograph; the router likes the last row, and two tokens on the photograph."""
    write_images(tmp_path, (4,))
    write_annotations(tmp_path, [annotation(1, 4, 8, 8, 4)], (4,))
    liked = [(7, column) for column in range(8)] + [(0, 0), (0, 4)]
    sam.image_encoder.routers["0"] = Fond(liked)
    with measuring(sam, 0.25):
        (look,) = router_look.looks(sam, *read(tmp_path))
    assert look.chance == Places(edge=1 / 56, inside=0)
    assert look.primary[1] == Places(edge=1 / 8, inside=0)


def test_primary_tokens_stay_where_a_router_looks_at_nothing(sam: Sam, dataset: Path) -> None:
    sam.image_encoder.routers["0"] = Fond(EDGE)
    with measuring(sam, 0.25):
        for perturbation in router_look.PERTURBATIONS:
            stay = router_look.kept(sam, *read(dataset), perturbation)
            assert stay[1] == 1
            assert 0 < stay[3] < 1, "a router with random weights looks at the noise, which changed"


def test_lines_hold_means_and_differences_of_every_router() -> None:
    found = [
        Look(1, Places(0.25, 0.5), {4: Places(0.5, 0.25), 7: Places(0.25, 0.5)}),
        Look(2, Places(0.25, 0.5), {4: Places(1.0, 0.25), 7: Places(0.25, 0.5)}),
    ]
    fourth, seventh = router_look.lines("mine", found, [{4: 0.75, 7: 0.5}, {4: 1.0, 7: 0.25}])
    edges, insides = ["75.0", "25.0", "+50.0 [+25.0, +75.0]"], ["25.0", "50.0", "-25.0 [-25.0, -25.0]"]
    assert fourth == ["mine", "4", *edges, *insides, "75.0", "100.0"]
    assert seventh[:3] == ["mine", "7", "25.0"]
    assert seventh[-2:] == ["50.0", "25.0"]


# pictures and the command -------------------------------------------------------------------------------------------


def test_a_picture_has_a_row_for_each_photograph_and_shows_each_router(sam: Sam, dataset: Path) -> None:
    photo = dataset / "val2017" / "3.png"
    for name in sam.image_encoder.routers:
        sam.image_encoder.routers[name] = Fond(EDGE)
    with measuring(sam, 0.25):
        one, two = (router_look.picture(sam, photos) for photos in ([photo], [photo, photo]))
        np.testing.assert_array_equal(np.concatenate([one, one]), two)
        sam.image_encoder.routers["2"] = Fond(INSIDE)
        changed = (router_look.picture(sam, [photo]) != one).any(axis=(0, 2))
    assert changed.any()
    assert np.flatnonzero(changed).min() > one.shape[1] * 2 // 3, "of three panels the last is the second router's"


def command(checkpoints: list[Path], dataset: Path, *words: str) -> None:
    where = [str(dataset / "annotations.json"), str(dataset), *map(str, checkpoints)]
    run(router_look.router_look, [*where, "--output", str(dataset / "looked"), "--device", "cpu", *words])


def test_every_checkpoint_has_its_lines_and_its_picture(
    sam: Sam, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = [dataset / run_name / "last.safetensors" for run_name in ("first", "second")]
    for checkpoint in checkpoints:
        save_sam(sam, checkpoint)
    command(checkpoints, dataset, "--photos", str(dataset / "val2017" / "3.png"), "--keep-ratio", "0.5")
    printed = capsys.readouterr().out
    assert (dataset / "looked" / "router_look.md").read_text() == printed
    assert "keep ratio 0.5; 1 photographs, 1 objects" in printed
    table = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("|")]
    assert [[cell.strip() for cell in row[:2]] for row in table[2:]] == [
        [str(checkpoint), layer] for checkpoint in checkpoints for layer in ("1", "3")
    ]
    assert {len(row) for row in table} == {10}
    assert all(cell.strip() for row in table for cell in row)
    for name in ("first_last.png", "second_last.png"):
        with Image.open(dataset / "looked" / name) as picture:
            assert picture.width > 3 * router_look.SIDE


def test_the_photographs_of_the_pictures_are_there() -> None:
    data = Path(router_look.skimage.__file__).parent / "data"
    assert all((data / name).is_file() for name in router_look.PHOTOS)


def test_what_shows_nothing_is_refused(
    sam: Sam, tiny_dense: Callable[..., ModelConfig], dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, dense = dataset / "mine.safetensors", dataset / "dense.safetensors"
    save_sam(sam, mine)
    save_sam(build_sam(tiny_dense()), dense)
    for checkpoints, words, says in (
        ([dense], (), "holds the dense vit_tiny, which routes no tokens"),
        ([mine], ("--keep-ratio", "1"), "where routers choose"),
        ([mine], ("--keep-ratio", "0.01"), "at keep_ratio=0.01 routes no tokens"),
        ([mine, mine], (), "two checkpoints would have the picture"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command(checkpoints, dataset, *words)
        assert says in capsys.readouterr().err
