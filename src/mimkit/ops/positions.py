"""Position tables: fixed sine-cosine ones on any grid, and resampling a table from one grid to another.

MAE's order (kept for its weights): the first half of the channels encodes the column, the second half the row; within a
half all sines come before all cosines. Computed in float64.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.errors import UserError


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
