"""Position tables: fixed sine-cosine ones on any grid, learned ones, and a table of one grid fitted to another.

MAE's order (kept for its weights): the first half of the channels encodes the column, the second half the row; within a
half all sines come before all cosines. Computed in float64.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.ops import units


def sincos_axis(width: int, positions: Tensor, temperature: float = 10000.0) -> Tensor:
    """(N,) positions along one axis -> (N, width): sines, then cosines, of width / 2 frequencies."""
    frequencies = temperature ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.double()[:, None] * frequencies  # (N, width / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos(width: int, grid: Sequence[int], class_row: bool = False) -> Tensor:
    """Fixed table of a (h, w) grid, float64 (1, h * w, width), raster order; `class_row` puts a row of zeros in front.

    Raises UserError unless 4 divides `width`.
    """
    if width % 4:
        raise UserError(f"Sine-cosine positions need a width that 4 divides; {width} is none.")
    height, columns = grid
    row_of = torch.arange(height).repeat_interleave(columns)
    column_of = torch.arange(columns).repeat(height)
    table = torch.cat([sincos_axis(width // 2, column_of), sincos_axis(width // 2, row_of)], dim=1)
    if class_row:
        table = torch.cat([table.new_zeros(1, width), table])
    return table[None]


def new_table(kind: str, width: int, grid: Sequence[int], class_row: bool = False) -> nn.Parameter:
    """A position table (1, h * w, width) of `grid`: "sincos", fixed, or "learned", normal with deviation 0.02.

    class_row: one more row in front. Raises UserError for another kind.
    """
    if kind == "sincos":
        return nn.Parameter(sincos(width, grid, class_row).to(torch.get_default_dtype()), requires_grad=False)
    if kind == "learned":
        table = nn.Parameter(torch.zeros(1, int(class_row) + math.prod(grid), width))
        nn.init.normal_(table, std=0.02)
        return table
    raise UserError(f"Unknown positions {kind!r}; known are 'sincos' and 'learned'.")


def fitted(
    table: Tensor,
    old: Sequence[int],
    new: Sequence[int],
    prefix: int = 0,
    index: Tensor | None = None,
    own: Sequence[tuple[int, ...]] | None = None,
) -> Tensor:
    """The rows of grid `new` from a `table` of grid `old` with `prefix` rows in front: (1, N, C), or (B, K, C) of those
    at `index` (B, K).

    own: the grids of padded images, in the upper left corner of `new`. Each has the rows of its own grid then,
    (B, N, C), with zeros outside: the table fitted to the padded grid would let the padding move every position.
    """
    if own is None:
        rows = resize_table(table, old, new, prefix)[:, prefix:]
        return rows if index is None else rows[0][index]
    corners = {
        small: F.pad(
            fitted(table, old, small, prefix)[0].unflatten(0, small),  # (h, w, C)
            (0, 0, 0, new[1] - small[1], 0, new[0] - small[0]),
        ).flatten(0, 1)
        for small in set(own)
    }
    padded = torch.stack([corners[small] for small in own])
    return padded if index is None else units.take(padded, index)


def resize_table(table: Tensor, old: Sequence[int], new: Sequence[int], prefix: int = 0) -> Tensor:
    """Resample the patch rows of `table` (1, prefix + h * w, C) from grid `old` to `new`; `prefix` rows stay as
    they are.

    Bicubic (a = -0.75), no antialias, as published. Decided by (h, w), never by the count: 2 x 8 is not 4 x 4.
    """
    if tuple(old) == tuple(new):
        return table
    channels = table.shape[-1]
    picture = table[:, prefix:].reshape(1, *old, channels).permute(0, 3, 1, 2)  # (1, C, h, w)
    precise = picture if picture.dtype == torch.float64 else picture.float()
    resized = F.interpolate(precise, size=tuple(new), mode="bicubic", align_corners=False).to(table.dtype)
    patches = resized.permute(0, 2, 3, 1).reshape(1, math.prod(new), channels)
    return torch.cat([table[:, :prefix], patches], dim=1)
