"""Windows: cut and laid together, what shifted ones may look at, padding."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimkit.ops import windows

sides = st.integers(1, 9)
grids = st.tuples(sides, sides)
sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))


@st.composite
def shifted(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """grid, window, shift."""
    grid, window = draw(grids), draw(sizes)
    shift = tuple(draw(st.integers(0, side - 1)) for side in window)
    return grid, window, (shift[0], shift[1])


@given(shifted(), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_merging_gives_back_what_was_cut(case: tuple, batch: int) -> None:
    grid, window, shift = case
    x = torch.randn(batch, *grid, 2)
    pieces = windows.partition(x, window, shift)
    assert pieces.shape[1:] == (window[0] * window[1], 2)
    assert torch.equal(windows.merge(pieces, grid, window, shift), x)


def test_windows_come_in_raster_order_image_by_image() -> None:
    x = torch.arange(2 * 2 * 4).view(2, 2, 4, 1)
    pieces = windows.partition(x, (1, 2))[..., 0]
    assert pieces.tolist()[:4] == [[0, 1], [2, 3], [4, 5], [6, 7]] and pieces[4].tolist() == [8, 9]


def test_an_axis_that_one_window_covers_is_not_shifted() -> None:
    x = torch.randn(1, 3, 8, 2)
    assert torch.equal(windows.partition(x, (4, 4), (2, 2)), windows.partition(x, (4, 4), (0, 2)))
    assert windows.settled((3, 8), (4, 4), (2, 2)) == (0, 2)


def test_three_axes_are_cut_as_two_are() -> None:
    x = torch.randn(2, 3, 5, 4, 6)
    pieces = windows.partition(x, (2, 3, 2), (1, 0, 1))
    assert pieces.shape == (2 * 2 * 2 * 2, 12, 6)
    assert torch.equal(windows.merge(pieces, (3, 5, 4), (2, 3, 2), (1, 0, 1)), x)


def brute_force(
    grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], mask_padding: bool
) -> tuple[list, list]:
    """For each window, for each query: its place (None for padding) and the keys that it may look at."""
    height, width = windows.padded(grid, window)
    shift = (shift[0] * (grid[0] > window[0]), shift[1] * (grid[1] > window[1]))
    places, seen = [], []
    for top in range(0, height, window[0]):
        for left in range(0, width, window[1]):
            at = []
            for r in range(top, top + window[0]):
                for c in range(left, left + window[1]):
                    at.append(((r + shift[0]) % height, (c + shift[1]) % width))
            real = [r < grid[0] and c < grid[1] for r, c in at]
            places.append([p if ok else None for p, ok in zip(at, real, strict=True)])
            near = [
                [abs(a[0] - b[0]) < window[0] and abs(a[1] - b[1]) < window[1] for b in at] for a in at
            ]  # positions that rolling brought together are farther apart than a window
            if mask_padding:
                near = [[ok and real[k] for k, ok in enumerate(row)] for row in near]
            seen.append(near)
    return places, seen


def seen_by(
    grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], mask_padding: bool
) -> torch.Tensor:
    """What a query may look at, by pairs and keys together: bool (W, n, n)."""
    pairs = windows.pairs(grid, window, shift)
    keys = windows.keys(grid, window, shift, mask_padding=mask_padding)
    n = window[0] * window[1]
    count = torch.Size(windows.padded(grid, window)).numel() // n
    seen = torch.ones(count, n, n, dtype=torch.bool) if pairs is None else pairs
    return seen if keys is None else seen & keys[0, :, None]


@given(shifted(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_query_sees_the_neighbours_of_its_window_and_no_others(case: tuple, mask_padding: bool) -> None:
    grid, window, shift = case
    places, seen = brute_force(grid, window, shift, mask_padding)
    got = seen_by(grid, window, shift, mask_padding)
    for w, queries in enumerate(places):
        for i, place in enumerate(queries):
            if place is not None:
                assert got[w, i].tolist() == seen[w][i]


def test_positions_without_image_are_seen_by_nobody() -> None:
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[1, 3:] = False
    got = windows.keys((4, 4), (2, 2), valid=valid)
    assert got.shape == (2, 4, 4) and got[0].all()
    assert got[1].tolist() == [[True] * 4, [True] * 4, [True, True, False, False], [True, True, False, False]]


def test_padding_takes_part_where_that_is_asked_for() -> None:
    assert windows.keys((3, 3), (2, 2), mask_padding=False) is None
    assert windows.keys((4, 4), (2, 2)) is None and windows.pairs((4, 4), (2, 2)) is None
    valid = torch.ones(1, 3, 3, dtype=torch.bool)
    assert windows.keys((3, 3), (2, 2), valid=valid, mask_padding=False).all()
