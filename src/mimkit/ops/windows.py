"""Windows: a map cut into equal pieces that attend among themselves, shifted or not (Swin, Liu et al. 2021; ViTDet,
Li et al. 2022).

A map (B, *grid, C) is padded with zeros at its lower and right edge until the window divides it, rolled by -shift,
and cut: (B * W, n, C), W windows of n positions in raster order, of any sides and any number of axes. Rolling brings
positions from opposite edges into one window; they must not look at each other. An axis that one window covers is not
shifted: nothing would be gained, and offsets inside the window would be wrong. Whether padding may be looked at is
the caller's choice: published detectors let it take part, everything else here leaves it out. Nothing is stored: masks
follow from grid, window and shift.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.ops import units


def padded(grid: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
    """The smallest grid of whole windows that holds `grid`."""
    return tuple(-(-side // size) * size for side, size in zip(grid, window, strict=True))


def settled(grid: Sequence[int], window: Sequence[int], shift: Sequence[int] | None) -> tuple[int, ...]:
    """The shift that acts on `grid`: none where a single window covers an axis."""
    wanted = [0] * len(window) if shift is None else shift
    return tuple(0 if side <= size else s for side, size, s in zip(grid, window, wanted, strict=True))


def partition(x: Tensor, window: Sequence[int], shift: Sequence[int] | None = None) -> Tensor:
    """(B, *grid, C) -> (B * W, n, C)."""
    axes = x.shape[1:-1]
    missing = [whole - side for whole, side in zip(padded(axes, window), axes, strict=True)]
    if any(missing):
        x = F.pad(x, [0, 0, *(n for m in reversed(missing) for n in (0, m))])
    rolled = settled(axes, window, shift)
    if any(rolled):
        x = x.roll([-s for s in rolled], _axes(window))
    return units.cut(x, window).flatten(0, 1).flatten(1, -2)


def merge(
    x: Tensor, grid: Sequence[int], window: Sequence[int], shift: Sequence[int] | None = None
) -> Tensor:
    """The inverse of `partition`, without the padding: (B * W, n, C) -> (B, *grid, C)."""
    whole = padded(grid, window)
    cells = [side // size for side, size in zip(whole, window, strict=True)]
    count = torch.Size(cells).numel()
    x = units.join(x.reshape(-1, count, *window, x.shape[-1]), cells)  # (B, *padded grid, C)
    rolled = settled(grid, window, shift)
    if any(rolled):
        x = x.roll(rolled, _axes(window))
    return x[:, *(slice(side) for side in grid)]


def regions(
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """int64 (W, n): positions of a window are neighbours in the image where their numbers agree.

    Along each axis rolling brings the first `shift` positions behind the last ones, into the last window alone.
    """
    number = torch.zeros((), dtype=torch.int64, device=device)
    for side, offset in zip(padded(grid, window), settled(grid, window, shift), strict=True):
        came_round = torch.arange(side, device=device) >= side - offset
        number = 2 * number[..., None] + came_round  # (..., side)
    return partition(number[None, ..., None], window)[..., 0]


def pairs(
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int] | None = None,
    device: torch.device | None = None,
) -> Tensor | None:
    """Which keys of its window a query may look at, because rolling did not bring them together: bool (W, n, n); None
    where it may look at all.
    """
    if not any(settled(grid, window, shift)):
        return None
    of = regions(grid, window, shift, device)
    return of[:, :, None] == of[:, None, :]


def keys(
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int] | None = None,
    valid: Tensor | None = None,
    mask_padding: bool = True,
    device: torch.device | None = None,
) -> Tensor | None:
    """Which positions of the windows hold an image: bool (B or 1, W, n), None where all do.

    valid: bool (B, *grid), false for positions that hold none. mask_padding: those that fill up the last windows hold
    none either; else they take part. In a window without any image nothing is true.
    """
    whole = padded(grid, window)
    if valid is None and (not mask_padding or whole == tuple(grid)):
        return None
    if valid is None:
        valid = torch.ones(1, *grid, dtype=torch.bool, device=device)
    if not mask_padding:
        missing = [n for big, side in zip(whole, grid, strict=True) for n in (big - side, 0)]
        valid = F.pad(valid, missing[::-1], value=True)
    return partition(valid[..., None], window, shift)[..., 0].unflatten(0, (valid.shape[0], -1))


def _axes(window: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(1, 1 + len(window)))
