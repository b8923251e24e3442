"""Relative positions: what attention adds to its scores for the offset between query and key.

Two forms. A table holds one number for each offset and head (Swin, Liu et al. 2021; BEiT, Bao et al. 2022): here
(2h - 1, 2w - 1, H), so that its shape says its grid; published files lay the first two axes end to end. Decomposed
positions hold a vector for each offset along each axis, multiplied with the unscaled query (MViTv2, Li et al. 2022;
ViTDet). Both fit any grid: a table is resampled bicubically, vectors linearly, as published. The index of offsets is
computed, never stored: for 64 x 64 positions it is 134 MB in the published files.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit.ops.positions import resize_table


def offset_index(grid: Sequence[int], device: torch.device | None = None) -> Tensor:
    """int64 (N, N): the row of a table laid end to end for each query and key of a (h, w) grid, raster order.

    (dr + h - 1)(2 w - 1) + (dc + w - 1) with (dr, dc) = query - key.
    """
    index = torch.zeros(1, 1, dtype=torch.int64, device=device)
    for side in grid:
        at = torch.arange(side, device=device)
        offset = at[:, None] - at[None] + side - 1  # (side, side), 0 .. 2 side - 2
        index = (2 * side - 1) * index[:, None, :, None] + offset[None, :, None, :]
        index = index.flatten(2, 3).flatten(0, 1)  # (positions, positions) of the axes so far
    return index


def table_grid(table: Tensor) -> tuple[int, ...]:
    """The grid of a table (2h - 1, 2w - 1, H)."""
    return tuple((side + 1) // 2 for side in table.shape[:-1])


def resize_bias_table(table: Tensor, grid: Sequence[int]) -> Tensor:
    """A table (2h - 1, 2w - 1, H) for another (h, w) grid, bicubic: an offset keeps its share of the side."""
    old, new = table.shape[:-1], [2 * side - 1 for side in grid]
    return resize_table(table.flatten(0, -2)[None], old, new).view(*new, table.shape[-1])


def table_bias(table: Tensor, grid: Sequence[int]) -> Tensor:
    """The scores' addend (1, H, N, N) of a table (2h - 1, 2w - 1, H) for a (h, w) `grid` of positions."""
    rows = resize_bias_table(table, grid).flatten(0, -2)  # (offsets, H)
    index = offset_index(grid, table.device)
    return rows.t().index_select(1, index.flatten()).view(1, -1, *index.shape)


def resize_vectors(vectors: Tensor, side: int) -> Tensor:
    """(2S - 1, D) for an axis of `side` positions, linear: (2 side - 1, D)."""
    if vectors.shape[0] == 2 * side - 1:
        return vectors
    precise = vectors if vectors.dtype == torch.float64 else vectors.float()
    resized = F.interpolate(precise.t()[None], size=2 * side - 1, mode="linear", align_corners=False)
    return resized[0].t().to(vectors.dtype)


def axis_vectors(vectors: Tensor, side: int) -> Tensor:
    """(side, side, D): for each query and key along an axis their vector of `vectors` (2S - 1, D), resampled where S is
    another side.
    """
    at = torch.arange(side, device=vectors.device)
    return resize_vectors(vectors, side)[at[:, None] - at[None] + side - 1]


def decomposed(q: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The scores' addend (B, H, N, N) of unscaled queries (B, H, h * w, D): rows (h, h, D) and columns (w, w, D) are
    what `axis_vectors` gives.
    """
    h, w = rows.shape[0], columns.shape[0]
    grid = q.unflatten(2, (h, w))  # (B, H, h, w, D)
    down = torch.einsum("bnhwd,hkd->bnhwk", grid, rows.to(q.dtype))
    across = torch.einsum("bnhwd,wkd->bnhwk", grid, columns.to(q.dtype))
    return (down[..., :, None] + across[..., None, :]).flatten(4).flatten(2, 3)


class BiasTable(nn.Module):
    """A table for one block, or for all blocks of a kind; it starts at zero, as published."""

    def __init__(self, grid: Sequence[int], heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(*(2 * side - 1 for side in grid), heads))

    def forward(self, grid: Sequence[int]) -> Tensor:
        """(1, H, N, N) for a (h, w) grid of positions."""
        return table_bias(self.table, grid)


class AxisVectors(nn.Module):
    """Decomposed positions of one block; they start at zero, as published."""

    def __init__(self, grid: Sequence[int], width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(2 * grid[0] - 1, width))
        self.columns = nn.Parameter(torch.zeros(2 * grid[1] - 1, width))

    def forward(self, q: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, H, N, N) for unscaled queries (B, H, N, D) on a (h, w) grid."""
        return decomposed(q, axis_vectors(self.rows, grid[0]), axis_vectors(self.columns, grid[1]))
