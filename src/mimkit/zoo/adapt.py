"""Fits a file's tensors to a model of another resolution, patch or number of channels.

Position tables are resampled from the file's grid to the model's (bicubic without antialias, MAE's rule), tables of
relative positions likewise, their vectors along an axis linearly (ViTDet). Patch
kernels are resampled by the pseudo-inverse rule of FlexiViT (Beyer et al. 2023, section 3.4): the new kernel answers a
resized patch as the old one answered the patch, exactly when the patch grows, in the least-squares sense when it
shrinks. Kernels for another number of channels are summed (to one) or repeated in turn and scaled by old / new (to
others): a grey image is then answered as its RGB form was, and a stack of any bands about as strongly.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.errors import DataError, counted
from mimkit.ops import relative
from mimkit.ops.positions import resize_table
from mimkit.zoo.report import Change

Grid = tuple[int, ...]  # (h, w)


def fit_table(
    name: str, table: Tensor, grid: Grid, prefix: int, file_grid: Grid | None
) -> tuple[Tensor, list[Change]]:
    """The position table (1, n, C) of a file for a model of `grid` with `prefix` rows in front, and what was done.

    file_grid: None when the file does not say; published tables are square then. A class row that only the file has is
    left out, one that only the model has is zero.
    """
    rows, width = table.shape[1:]
    old, extra = _grid_of(name, rows, prefix, grid, file_grid)
    patches = table[:, extra:]
    front = table[:, :extra] if extra >= prefix else table.new_zeros(1, prefix, width)
    whole = torch.cat([front[:, :prefix], patches], dim=1)
    changes = [] if old == grid else [Change(name, _by(old), _by(grid), "bicubic")]
    return resize_table(whole, old, grid, prefix), changes


def fit_offsets(
    name: str, table: Tensor, wanted: Sequence[int], file_grid: Grid | None
) -> tuple[Tensor, list[Change]]:
    """The relative positions of a file for the shape `wanted`, and what was done: a table (2h - 1, 2w - 1, H), or one
    laid end to end, ((2h - 1)(2w - 1), H), whose grid file or model know; or the vectors of an axis (2S - 1, D).
    """
    if len(wanted) == 2:
        side = (wanted[0] + 1) // 2
        if table.ndim != 2 or table.shape[0] == wanted[0]:
            return table, []
        change = Change(name, f"{(table.shape[0] + 1) // 2}", f"{side}", "linear")
        return relative.resize_vectors(table, side), [change]
    grid = tuple((side + 1) // 2 for side in wanted[:-1])
    if table.ndim == 2:
        shapes = [[2 * n - 1 for n in known] for known in (file_grid, grid) if known is not None]
        fitting = [shape for shape in shapes if math.prod(shape) == table.shape[0]]
        if not fitting:
            raise DataError(f"{name} has {table.shape[0]} rows in the file; its grid cannot be told.")
        table = table.unflatten(0, fitting[0])
    old = relative.table_grid(table)
    if old == grid:
        return table, []
    return relative.resize_bias_table(table, grid), [Change(name, _by(old), _by(grid), "bicubic")]


def _grid_of(name: str, rows: int, prefix: int, wanted: Grid, file_grid: Grid | None) -> tuple[Grid, int]:
    """(the grid of a file's table, rows in front of its patches)."""
    for extra in (prefix, 1 - prefix) if prefix <= 1 else (prefix,):
        count = rows - extra
        if file_grid is not None and math.prod(file_grid) == count:
            return file_grid, extra
        if file_grid is None and (side := exact_root(count)):
            return (side, side), extra
        if file_grid is None and count == math.prod(wanted):
            return wanted, extra
    of = "a square grid" if file_grid is None else f"the file's grid {_by(file_grid)}"
    raise DataError(f"{name} has {rows} rows in the file, which is not {of}; its grid cannot be told.")


def exact_root(count: int) -> int | None:
    """The side of a square of `count` cells, None when it is no square."""
    return next((side for side in range(1, count + 1) if side * side == count), None)


def fit_kernel(name: str, kernel: Tensor, wanted: Sequence[int]) -> tuple[Tensor, list[Change]]:
    """The patch kernel (C_out, C, h, w) of a file for the shape `wanted`, and what was done."""
    changes = []
    if kernel.shape[1] != wanted[1]:
        rule = "summed" if wanted[1] == 1 else "repeated in turn and scaled"
        changes.append(Change(name, counted(kernel.shape[1], "channel"), f"{wanted[1]}", rule))
        kernel = adapt_channels(kernel, wanted[1])
    if tuple(kernel.shape[2:]) != tuple(wanted[2:]):
        rule = "pseudo-inverse, FlexiViT section 3.4"
        changes.append(Change(name, f"{_by(kernel.shape[2:])} pixels", _by(wanted[2:]), rule))
        kernel = resize_kernel(kernel, (wanted[2], wanted[3]))
    return kernel, changes


def adapt_channels(kernel: Tensor, channels: int) -> Tensor:
    """(C_out, C, h, w) -> (C_out, channels, h, w): summed to one channel, else repeated in turn and scaled."""
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    old = kernel.shape[1]
    return kernel[:, torch.arange(channels) % old] * (old / channels)


def resize_kernel(kernel: Tensor, patch: Grid) -> Tensor:
    """(C_out, C, h, w) -> (C_out, C, *patch) by the pseudo-inverse of bicubic resizing with antialias."""
    height, width = kernel.shape[2:]
    unit = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)  # each pixel alone
    resized = F.interpolate(unit, size=patch, mode="bicubic", antialias=True, align_corners=False)
    # The patch x becomes R x; <R x, new> = <x, old> for every x wants R^T new = old. `resized` is R^T: (h w, h' w')
    inverse = torch.linalg.pinv(resized.flatten(1))  # (h' w', h w)
    new = kernel.double().flatten(2) @ inverse.T
    return new.view(*kernel.shape[:2], *patch).to(kernel.dtype)


def _by(grid: Sequence[int]) -> str:
    return " x ".join(map(str, grid))
