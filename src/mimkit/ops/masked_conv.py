"""Depth-wise convolution where hidden units count as zeros, at the cost of the visible ones (MCMAE, section 3.2).

Masked convolution multiplies the map by the mask and convolves, so a hidden neighbour acts as the border of the image
does. In the unit layout the same numbers come without the map: each visible unit gets the window that its kernel
reaches, gathered from the visible units around it, zeros elsewhere, and is convolved without padding. The windows are
wider than the units (4 times the values at stride 4, 9 times at stride 8 with a 5 x 5 kernel), so they are made anew
in the backward pass and not kept. The gradient of the input is the same operation with the kernel turned around,
because a unit sees another exactly when it is seen by it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mimkit.ops import units


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, windows: Tensor | None = None) -> Tensor:
    """Depth-wise convolution of units x (B, K, *s, C), in that form; weight (C, 1, k, k) with odd k.

    windows: what `window_rows` gives for these units. None: each "unit" is a whole map and knows no neighbours.
    """
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if windows is None:
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        maps = x.flatten(0, 1).permute(0, 3, 1, 2)  # (B * K, C, *s), channels last in memory
        return (
            F.conv2d(maps, weight, bias, padding=padding, groups=x.shape[-1]).permute(0, 2, 3, 1).view_as(x)
        )
    return _Windowed.apply(x.flatten(0, -2), weight, bias, windows).view_as(x)


def window_rows(visible: Tensor, grid: Sequence[int], s: Sequence[int], kernel: Sequence[int]) -> Tensor:
    """Where the windows of visible units lie: int64 (B * K, s0 + k0 - 1, s1 + k1 - 1).

    visible: (B, K) raster indices of units on `grid`, s positions each. An entry is a row of the packed positions
    (B * K * s0 * s1, C), or the number of these where the window shows a hidden unit or lies outside the image.
    """
    batch, count = visible.shape
    inner = torch.arange(s[0] * s[1], device=visible.device)
    slots = torch.arange(batch * count, device=visible.device).view(batch, count)
    packed = (slots[..., None] * len(inner) + inner).view(batch, count, *s, 1) + 1
    full = units.put(packed, visible, grid[0] * grid[1])  # hidden ones hold 0
    reach = (kernel[0] // 2, kernel[1] // 2)
    rows = F.pad(
        units.join(full, grid)[..., 0], (reach[1], reach[1], reach[0], reach[0])
    )  # (B, H + 2r, W + 2r)
    nothing = batch * count * len(inner)
    rows = torch.where(rows == 0, nothing, rows - 1)
    down, right = (torch.arange(s[i] + kernel[i] - 1, device=visible.device) for i in (0, 1))
    top, left = visible // grid[1] * s[0], visible % grid[1] * s[1]  # (B, K)
    image = torch.arange(batch, device=visible.device)[:, None, None, None]
    found = rows[image, (top[..., None] + down)[..., None], (left[..., None] + right)[:, :, None]]
    return found.flatten(0, 1)


class _Windowed(torch.autograd.Function):
    """rows (M, C), weight (C, 1, k, k), bias, windows (U, W, W) -> (M, C)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, windows: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, windows)
        ctx.has_bias = bias is not None
        return _convolve(_gather(rows, windows), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        rows, weight, windows = ctx.saved_tensors
        grad = grad.contiguous()
        to_rows = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_rows = _convolve(_gather(grad, windows), weight.flip(2, 3), None)
        if ctx.needs_input_grad[1]:
            to_weight = _weight_gradient(grad, _gather(rows, windows), weight)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            to_bias = grad.sum(0)
        return to_rows, to_weight, to_bias, None


def _gather(rows: Tensor, windows: Tensor) -> Tensor:
    """(M, C) at `windows` (U, W, W) -> (U, C, W, W), channels last in memory."""
    padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return padded.index_select(0, windows.flatten()).view(*windows.shape, -1).permute(0, 3, 1, 2)


def _convolve(windows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(U, C, W, W) -> (M, C)."""
    return F.conv2d(windows, weight, bias, groups=weight.shape[0]).permute(0, 2, 3, 1).flatten(0, 2)


def _weight_gradient(grad: Tensor, windows: Tensor, weight: Tensor) -> Tensor:
    """Gradient (C, 1, k, k) of the kernel from that of the output (M, C) and the windows (U, C, W, W).

    On a CPU tap by tap: torch's own takes twice as long in float32 and five times in bf16.
    """
    kh, kw = weight.shape[2:]
    h, w = windows.shape[2] - kh + 1, windows.shape[3] - kw + 1
    cells = grad.view(-1, h, w, grad.shape[1])  # (U, *s, C)
    if not grad.is_cpu:
        maps, one = cells.permute(0, 3, 1, 2), (1, 1)
        return torch.ops.aten.convolution_backward(
            maps, windows, weight, None, one, (0, 0), one, False, (0, 0), len(weight), (False, True, False)
        )[1]
    last = windows.permute(0, 2, 3, 1)
    taps = [
        (last[:, i : i + h, j : j + w] * cells).sum((0, 1, 2)) for i in range(kh) for j in range(kw)
    ]  # k * k of (C,)
    return torch.stack(taps, dim=1).view_as(weight)
