"""Window-major order: every way in has its way out, and every token keeps its place."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling.image_encoder import window_partition
from torch import Tensor

from sam_blvit.model.windows import GlobalScope, TokenGrid, WindowLayout, WindowScope, add_tokens, take_tokens

CPU = torch.device("cpu")
WHOLE = [((8, 8), 4), ((4, 12), 4), ((6, 4), 2)]
PADDED = [((8, 8), 3), ((5, 7), 3), ((3, 8), 4)]
LAYOUTS = pytest.mark.parametrize(("grid", "window"), WHOLE + PADDED)


def places(grid: tuple[int, int]) -> Tensor:
    """(1, Gh, Gw, 2): each token's row and column, as its features."""
    rows, cols = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack([rows, cols], dim=-1)[None].float()


@LAYOUTS
def test_raster_order_is_the_inverse_of_window_order(grid: tuple[int, int], window: int) -> None:
    layout = WindowLayout(grid, window, CPU)
    x = torch.randn(2, *grid, 5)
    assert torch.equal(layout.by_raster(layout.by_window(x)), x)


@LAYOUTS
def test_tokens_come_window_by_window_and_row_by_row_inside_one(grid: tuple[int, int], window: int) -> None:
    layout = WindowLayout(grid, window, CPU)
    expected = sorted(
        ([row, col] for row in range(grid[0]) for col in range(grid[1])),
        key=lambda place: (place[0] // window, place[1] // window, place[0], place[1]),
    )
    assert layout.by_window(places(grid))[0].tolist() == expected


@LAYOUTS
def test_windowed_groups_are_segment_anythings_windows(grid: tuple[int, int], window: int) -> None:
    layout = WindowLayout(grid, window, CPU)
    x = torch.randn(2, *grid, 5)
    theirs, _ = window_partition(x, window)
    assert torch.equal(WindowScope(layout, CPU).enter(layout.by_window(x)), theirs.flatten(1, 2))


@LAYOUTS
@pytest.mark.parametrize("kind", [WindowScope, GlobalScope])
def test_leaving_a_scope_undoes_entering_it(
    grid: tuple[int, int], window: int, kind: type[WindowScope | GlobalScope]
) -> None:
    scope = kind(WindowLayout(grid, window, CPU), CPU)
    x = torch.randn(2, grid[0] * grid[1], 5)
    assert torch.equal(scope.leave(scope.enter(x)), x)


@LAYOUTS
def test_a_global_group_stands_where_its_grid_says(grid: tuple[int, int], window: int) -> None:
    layout = WindowLayout(grid, window, CPU)
    scope = GlobalScope(layout, CPU)
    standing = scope.enter(layout.by_window(places(grid)))[0]
    assert torch.equal(standing, torch.stack([scope.grid.rows, scope.grid.cols], dim=-1).float())


@pytest.mark.parametrize(("grid", "window"), WHOLE)
@pytest.mark.parametrize("kind", [WindowScope, GlobalScope])
def test_entering_a_scope_moves_no_memory_where_the_window_divides_the_grid(
    grid: tuple[int, int], window: int, kind: type[WindowScope | GlobalScope]
) -> None:
    scope = kind(WindowLayout(grid, window, CPU), CPU)
    x = torch.randn(2, grid[0] * grid[1], 5)
    assert scope.enter(x).data_ptr() == x.data_ptr()


@LAYOUTS
def test_a_slot_names_the_token_that_stands_there(grid: tuple[int, int], window: int) -> None:
    layout = WindowLayout(grid, window, CPU)
    every_slot = torch.arange(layout.slots).expand(1, layout.num_windows, -1)
    tokens = layout.tokens_of(every_slot)[0]
    # entering numbered tokens shows each slot's token; 0 marks an empty slot
    numbered = torch.arange(1.0, layout.num_tokens + 1).view(1, -1, 1)
    shown = WindowScope(layout, CPU).enter(numbered).flatten().long()
    assert torch.equal(tokens, (shown - 1).clamp(min=0))


@LAYOUTS
def test_a_query_of_a_windowed_layer_is_the_slot_itself(grid: tuple[int, int], window: int) -> None:
    layout = WindowLayout(grid, window, CPU)
    slots = torch.randint(layout.slots, (2, layout.num_windows, 3))
    assert torch.equal(WindowScope(layout, CPU).queries(slots), slots.view(-1, 3))


@LAYOUTS
def test_a_query_of_a_global_layer_is_the_token_in_that_slot(grid: tuple[int, int], window: int) -> None:
    layout = WindowLayout(grid, window, CPU)
    scope = GlobalScope(layout, CPU)
    slots = torch.zeros(1, layout.num_windows, 2, dtype=torch.long)  # the first slot of a window is never empty
    x = torch.randn(1, layout.num_tokens, 5)
    asking = take_tokens(scope.enter(x), scope.queries(slots))
    assert torch.equal(asking, take_tokens(x, layout.tokens_of(slots)))


@LAYOUTS
def test_outer_sum_adds_each_tokens_row_and_column(grid: tuple[int, int], window: int) -> None:
    stand = GlobalScope(WindowLayout(grid, window, CPU), CPU).grid
    by_row, by_col = torch.randn(2, stand.height), torch.randn(2, stand.width)
    expected = by_row[:, stand.rows] + by_col[:, stand.cols]
    assert torch.equal(stand.outer_sum(by_row, by_col), expected)


def test_a_grid_knows_its_height_and_width() -> None:
    grid = TokenGrid.of((2, 3, 4, 5), CPU)
    assert (grid.height, grid.width) == (8, 15)


def test_take_tokens_takes_other_rows_of_each_group() -> None:
    x = torch.arange(12.0).view(2, 3, 2)
    taken = take_tokens(x, torch.tensor([[2, 0], [1, 1]]))
    assert taken.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


@pytest.mark.parametrize("in_place", [False, True])
def test_add_tokens_adds_to_the_named_rows_only(in_place: bool) -> None:
    x = torch.zeros(2, 3, 1)
    added = add_tokens(x, torch.tensor([[2], [0]]), torch.tensor([[[5.0]], [[7.0]]]), in_place=in_place)
    assert added.squeeze(-1).tolist() == [[0, 0, 5], [7, 0, 0]]


def test_add_tokens_leaves_an_input_that_others_read_alone() -> None:
    x = torch.zeros(1, 3, 1)
    add_tokens(x, torch.tensor([[2]]), torch.ones(1, 1, 1), in_place=False)
    assert torch.equal(x, torch.zeros(1, 3, 1))


def test_add_tokens_keeps_the_streams_dtype() -> None:
    added = add_tokens(
        torch.zeros(1, 3, 1), torch.tensor([[2]]), torch.ones(1, 1, 1, dtype=torch.bfloat16), in_place=False
    )
    assert added.dtype == torch.float32
