"""Relative positions: the index by its formula, tables and vectors against loops, other grids."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mimkit.ops import relative
from mimkit.ops.attention import Attention

grids = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(grids)
@settings(max_examples=30, deadline=None)
def test_the_index_is_that_of_the_published_formula(grid: tuple[int, int]) -> None:
    h, w = grid
    got = relative.offset_index(grid)
    for query in range(h * w):
        for key in range(h * w):
            dr, dc = query // w - key // w, query % w - key % w
            assert got[query, key] == (dr + h - 1) * (2 * w - 1) + dc + w - 1


def test_the_index_works_along_three_axes_too() -> None:
    got = relative.offset_index((2, 2, 3))
    t, h, w = 2, 2, 3
    places = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w))
    offset = places[:, None] - places[None] + torch.tensor([t - 1, h - 1, w - 1])
    want = (offset[..., 0] * (2 * h - 1) + offset[..., 1]) * (2 * w - 1) + offset[..., 2]
    assert torch.equal(got, want)


@given(grids)
@settings(max_examples=20, deadline=None)
def test_a_table_gives_each_pair_the_number_of_its_offset(grid: tuple[int, int]) -> None:
    h, w = grid
    table = torch.randn(2 * h - 1, 2 * w - 1, 3, dtype=torch.float64)
    assert relative.table_grid(table) == grid
    bias = relative.table_bias(table, grid)
    assert bias.shape == (1, 3, h * w, h * w)
    for query, key in ((0, h * w - 1), (h * w - 1, 0), (h * w // 2, h * w // 3)):
        dr, dc = query // w - key // w, query % w - key % w
        assert torch.equal(bias[0, :, query, key], table[dr + h - 1, dc + w - 1])


def test_a_table_for_another_grid_keeps_centre_and_ends() -> None:
    ramp = torch.arange(-3.0, 4)[:, None, None].expand(7, 5, 1)  # of a 4 x 3 grid, grows with the row
    resized = relative.resize_bias_table(ramp, (8, 5))
    assert resized.shape == (15, 9, 1)
    assert resized[7, 4].item() == pytest.approx(0, abs=1e-5)
    assert torch.allclose(resized[:, 0], -resized.flip(0)[:, 0], atol=1e-5)


def by_loops(q: Tensor, rows: Tensor, columns: Tensor, grid: tuple[int, int]) -> Tensor:
    h, w = grid
    out = q.new_zeros(*q.shape[:2], h * w, h * w)
    for query in range(h * w):
        for key in range(h * w):
            dr, dc = query // w - key // w, query % w - key % w
            vector = rows[dr + h - 1] + columns[dc + w - 1]
            out[:, :, query, key] = (q[:, :, query] * vector).sum(-1)
    return out


def test_decomposed_positions_are_products_with_the_query_along_each_axis() -> None:
    vectors = relative.AxisVectors((3, 4), 5).double()
    for parameter in vectors.parameters():
        torch.nn.init.normal_(parameter)
    q = torch.randn(2, 3, 12, 5, dtype=torch.float64)
    assert torch.allclose(vectors(q, (3, 4)), by_loops(q, vectors.rows, vectors.columns, (3, 4)))


def test_vectors_of_another_grid_are_resampled_linearly() -> None:
    ramp = torch.arange(-2.0, 3)[:, None]  # of 3 positions
    found = relative.axis_vectors(ramp, 5)
    assert found.shape == (5, 5, 1)
    assert found[0, 0].item() == pytest.approx(0, abs=1e-6)
    assert torch.allclose(found[..., 0], -found[..., 0].t(), atol=1e-6)


def test_a_table_that_is_zero_changes_nothing() -> None:
    attention, x = Attention(8, 2).double(), torch.randn(2, 6, 8, dtype=torch.float64)
    bias = relative.BiasTable((2, 3), 2).double()
    assert torch.allclose(attention(x, bias=bias((2, 3))), attention(x))
