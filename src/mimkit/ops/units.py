"""The unit layout: a feature map cut into the cells of a mask, so that hidden ones need not be computed.

A map (B, *axes, C) becomes (B, N, *s, C): N units of s positions along each axis, in raster order; its visible part is
(B, K, *s, C). Whatever acts on single positions (linear layers, norms, MLPs) works on either form. Two axes for images,
three for video. Pixels of an image in this form are MAE's patches: row, column, channel, channel fastest.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.ops.linear import linear


class Tiled(nn.Conv2d):
    """A convolution whose kernel is its stride, so that it stays inside units; channels last, in either layout."""

    def __init__(self, channels: int, width: int, s: int) -> None:
        super().__init__(channels, width, s, stride=s)

    def forward(self, x: Tensor) -> Tensor:
        """(..., h, w, channels) -> (..., h / s, w / s, width), as one matrix product.

        The smaller one of positions and kernel is copied into the order of the other: row, column, channel, or channel,
        row, column.
        """
        *lead, h, w, channels = x.shape
        s0, s1 = self.weight.shape[2:]
        cells = x.reshape(*lead, h // s0, s0, w // s1, s1, channels)
        cells = cells.transpose(-4, -3)  # (..., h / s, w / s, s, s, channels)
        if x.numel() < self.weight.numel():
            return linear(cells.movedim(-1, -3).flatten(-3), self.weight.flatten(1), self.bias)
        return linear(cells.flatten(-3), self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)


def cut(x: Tensor, s: Sequence[int]) -> Tensor:
    """(B, *grid * s, C) -> (B, N, *s, C)."""
    batch, *axes, channels = x.shape
    split = [n for axis, size in zip(axes, s, strict=True) for n in (axis // size, size)]
    grid_axes = range(1, 2 * len(s), 2)
    inner_axes = range(2, 2 * len(s) + 1, 2)
    x = x.reshape(batch, *split, channels)  # (B, h, s, w, s, C)
    x = x.permute(0, *grid_axes, *inner_axes, x.ndim - 1)  # (B, h, w, s, s, C)
    return x.reshape(batch, -1, *s, channels)


def join(units: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, N, *s, C) -> (B, *grid * s, C), the inverse of `cut`."""
    batch, _, *s, channels = units.shape
    n = len(s)
    x = units.reshape(batch, *grid, *s, channels)  # (B, h, w, s, s, C)
    order = [axis for i in range(n) for axis in (1 + i, 1 + n + i)]
    x = x.permute(0, *order, x.ndim - 1)  # (B, h, s, w, s, C)
    return x.reshape(batch, *(g * size for g, size in zip(grid, s, strict=True)), channels)


def rows(index: Tensor, n: int) -> Tensor:
    """(B, K) raster indices of units -> (B * K) row numbers in a batch of n units each, laid end to end."""
    offsets = torch.arange(index.shape[0], device=index.device) * n
    return (index + offsets[:, None]).flatten()


def take(units: Tensor, index: Tensor) -> Tensor:
    """The units at `index` (B, K): (B, N, ...) -> (B, K, ...)."""
    batch, n = units.shape[:2]
    taken = units.flatten(0, 1).index_select(0, rows(index, n))
    return taken.view(batch, index.shape[1], *units.shape[2:])


def put(units: Tensor, index: Tensor, n: int) -> Tensor:
    """The inverse of `take`: (B, K, ...) at `index` (B, K) of n units, zeros elsewhere -> (B, n, ...)."""
    batch, rest = units.shape[0], units.shape[2:]
    full = units.new_zeros(batch * n, *rest).index_copy(0, rows(index, n), units.flatten(0, 1))
    return full.view(batch, n, *rest)


def patchify(images: Tensor, patch: Sequence[int], index: Tensor | None = None) -> Tensor:
    """Pixels of the patches of `images` (B, C, H, W): (B, N, ph * pw * C), or (B, K, ...) of those at `index` (B, K).

    With an index only those pixels are read; the rest of the image is never copied. Raises UserError unless the patch
    divides the image.
    """
    batch, channels, height, width = images.shape
    ph, pw = patch
    if height % ph or width % pw:
        raise UserError(
            f"Images of {height} x {width} pixels are not a whole number of {ph} x {pw} patches; "
            "crop or resize them to a multiple of the patch."
        )
    grid = (height // ph, width // pw)
    cells = images.view(batch, channels, grid[0], ph, grid[1], pw).permute(
        0, 2, 4, 3, 5, 1
    )  # (B, h, w, ph, pw, C)
    if index is None:
        return cells.reshape(batch, math.prod(grid), ph * pw * channels)
    image = torch.arange(batch, device=images.device)[:, None]
    return cells[image, index // grid[1], index % grid[1]].flatten(2)


def unpatchify(patches: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """(B, N, ph * pw * C) -> (B, C, H, W), the inverse of `patchify`."""
    batch, n, _ = patches.shape
    return join(patches.view(batch, n, *patch, -1), grid).permute(0, 3, 1, 2)
