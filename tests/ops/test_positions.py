"""Position tables: what each channel encodes, and resampling that is decided by the grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimkit.errors import UserError
from mimkit.ops.positions import resize_table, sincos, sincos_axis

grids = st.tuples(st.integers(1, 12), st.integers(1, 12))
few = settings(max_examples=40, deadline=None)


@few
@given(grids, st.booleans())
def test_the_first_half_of_the_channels_is_the_column_and_the_second_the_row(
    grid: tuple[int, int], row: bool
) -> None:
    table = sincos(16, grid, class_row=row)
    assert table.dtype == torch.float64 and table.shape == (1, row + grid[0] * grid[1], 16)
    assert not table[0, :row].any()
    picture = table[0, int(row) :].view(*grid, 16)
    assert torch.equal(picture[..., :8], sincos_axis(8, torch.arange(grid[1])).expand(*grid, 8))
    assert torch.equal(picture[..., 8:], sincos_axis(8, torch.arange(grid[0]))[:, None].expand(*grid, 8))


def test_sines_come_before_cosines() -> None:
    axis = sincos_axis(6, torch.tensor([0.0, 2.5]))
    assert axis[0].tolist() == [0, 0, 0, 1, 1, 1]
    frequencies = 10000 ** -(torch.arange(3, dtype=torch.float64) / 3)
    assert torch.allclose(axis[1], torch.cat([(2.5 * frequencies).sin(), (2.5 * frequencies).cos()]))


def test_a_width_that_four_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="10"):
        sincos(10, (2, 2))


@few
@given(grids, grids, st.integers(0, 2))
def test_resizing_keeps_the_rows_in_front_and_gives_the_new_grid(
    old: tuple[int, int], new: tuple[int, int], prefix: int
) -> None:
    table = torch.randn(1, prefix + old[0] * old[1], 4)
    resized = resize_table(table, old, new, prefix)
    assert resized.shape == (1, prefix + new[0] * new[1], 4)
    assert torch.equal(resized[:, :prefix], table[:, :prefix])
    if old == new:
        assert resized is table


def test_a_grid_with_as_many_cells_is_another_grid() -> None:
    table = torch.randn(1, 17, 4)
    resized = resize_table(table, (4, 4), (2, 8), prefix=1)
    assert resized.shape == table.shape and not torch.allclose(resized, table)


def test_a_constant_table_stays_constant_and_bf16_stays_bf16() -> None:
    resized = resize_table(torch.full((1, 12, 4), 0.5, dtype=torch.bfloat16), (3, 4), (7, 5))
    assert resized.dtype == torch.bfloat16 and (resized == 0.5).all()
