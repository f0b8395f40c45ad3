"""Attention: equal to segment-anything's, for all tokens or for some, wherever they stand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention as OriginalAttention
from torch import Tensor, nn

from sam_blvit.model.attention import Attention
from sam_blvit.model.windows import TokenGrid, take_tokens

CPU = torch.device("cpu")
Randomize = Callable[[nn.Module], nn.Module]


def raster(height: int, width: int) -> TokenGrid:
    return TokenGrid.of((1, 1, height, width), CPU)


@pytest.fixture
def attention(randomize: Randomize) -> Attention:
    """16 channels, 2 heads, relative positions for 6 x 6 tokens."""
    module = Attention(16, inner_dim=16, num_heads=2, table_size=6)
    return randomize(module).double()


def test_attention_equals_segment_anythings(attention: Attention) -> None:
    theirs = OriginalAttention(16, num_heads=2, use_rel_pos=True, input_size=(6, 6)).double()
    theirs.load_state_dict(attention.state_dict(), strict=True)
    x = torch.randn(2, 6, 6, 16, dtype=torch.double)
    torch.testing.assert_close(attention(x.flatten(1, 2), raster(6, 6)), theirs(x).flatten(1, 2))


def test_a_query_gets_the_same_answer_alone_as_among_all(attention: Attention) -> None:
    x = torch.randn(2, 24, 16, dtype=torch.double)
    queries = torch.tensor([[0, 5, 23], [7, 7, 1]])  # other tokens in each group
    among_all = attention(x, raster(4, 6))
    torch.testing.assert_close(attention(x, raster(4, 6), queries), take_tokens(among_all, queries))


@pytest.mark.parametrize("queries", [None, torch.tensor([[3, 8, 20]])])
def test_attention_does_not_depend_on_the_order_tokens_come_in(attention: Attention, queries: Tensor | None) -> None:
    by_blocks = TokenGrid.of((2, 3, 2, 2), CPU)  # 4 x 6 tokens in windows of 2 x 2
    in_raster = by_blocks.rows * 6 + by_blocks.cols
    x = torch.randn(1, 24, 16, dtype=torch.double)
    out = attention(x[:, in_raster], by_blocks, queries)
    expected = attention(x, raster(4, 6))[:, in_raster]
    torch.testing.assert_close(out, expected if queries is None else expected[:, queries[0]])


def test_offsets_beyond_the_table_read_its_last_row(attention: Attention) -> None:
    wide = Attention(16, inner_dim=16, num_heads=2, table_size=9).double()
    state = attention.state_dict()
    for name in ("rel_pos_h", "rel_pos_w"):
        table = state[name]
        state[name] = torch.cat([table[:1].expand(3, -1), table, table[-1:].expand(3, -1)])
    wide.load_state_dict(state)
    x = torch.randn(1, 81, 16, dtype=torch.double)
    torch.testing.assert_close(attention(x, raster(9, 9)), wide(x, raster(9, 9)))


def test_a_smaller_grid_reads_the_rows_of_the_same_offsets(attention: Attention) -> None:
    narrow = Attention(16, inner_dim=16, num_heads=2, table_size=4).double()
    state = attention.state_dict()
    for name in ("rel_pos_h", "rel_pos_w"):
        state[name] = state[name][2:-2]  # offsets -3 to 3 of -5 to 5
    narrow.load_state_dict(state)
    x = torch.randn(1, 12, 16, dtype=torch.double)
    torch.testing.assert_close(attention(x, raster(3, 4)), narrow(x, raster(3, 4)))


def test_a_narrow_attention_enters_and_leaves_the_wide_stream() -> None:
    narrow = Attention(16, inner_dim=6, num_heads=2, table_size=4)
    assert {name: tuple(value.shape) for name, value in narrow.state_dict().items()} == {
        "qkv.weight": (18, 16),
        "qkv.bias": (18,),
        "proj.weight": (16, 6),
        "proj.bias": (16,),
        "rel_pos_h": (7, 3),
        "rel_pos_w": (7, 3),
    }
    assert narrow(torch.randn(2, 12, 16), raster(3, 4)).shape == (2, 12, 16)
