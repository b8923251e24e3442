"""Where the tokens of an attention layer lie in the image: distances in pixels for whole grids and for windows.

"Revealing the Dark Secrets of Masked Image Modeling" (Xie et al. 2023, section 3.1) averages the distance between query
and key. Windows that were shifted or padded hold tokens from opposite sides of the image, so their distances are taken
from maps of true coordinates that go through the same padding, rolling and cutting as the features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.ops import windows

Pair = tuple[int, int]
BLANK = -1  # row of a padded position


@dataclass(frozen=True)
class Geometry:
    """The tokens of one layer: W windows of n positions; a grid without windows is one window.

    grid: positions of the feature map. stride: pixels per position. distance: (W, n, n) float64 pixels between centres.
    inside: bool (W, n), false where a position is padding. region: (W, n) int64; a query may look at keys of its own
    region (shifted windows are cut by a mask at the border).
    """

    grid: Pair
    stride: Pair
    distance: Tensor
    inside: Tensor
    region: Tensor

    @property
    def windows(self) -> int:
        return self.distance.shape[0]

    @property
    def keys(self) -> int:
        return self.distance.shape[1]

    @property
    def padded(self) -> bool:
        return not bool(self.inside.all())

    def uniform(self) -> tuple[float, float]:
        """Distance (px) and entropy (nats) of attention that looks at everything it may see alike."""
        seen = (self.region[:, :, None] == self.region[:, None, :]) & self.inside[:, None, :]  # (W, n, n)
        count = seen.sum(-1).clamp_min(1)
        distance = (self.distance * seen).sum(-1) / count  # (W, n)
        real = self.inside
        return float(distance[real].mean()), float(count[real].double().log().mean())


def distances(grid: Sequence[int], stride: Sequence[float] = (1, 1)) -> Tensor:
    """(N, N) Euclidean distances between the centres of the cells of `grid`, in pixels of `stride`; float64."""
    rows, columns = (torch.arange(n, dtype=torch.float64) * s for n, s in zip(grid, stride, strict=True))
    points = torch.cartesian_prod(rows, columns).view(-1, 2)  # (N, 2)
    return (points[:, None] - points[None]).norm(dim=-1)


def uniform_distance(grid: Sequence[int], stride: Sequence[float] = (1, 1)) -> float:
    """Mean distance over all ordered pairs of cells, themselves included: what attention that looks everywhere alike
    has (closed form; O(cells)).
    """
    height, width = grid
    down, right = torch.arange(1 - height, height).double(), torch.arange(1 - width, width).double()
    pairs = torch.outer(height - down.abs(), width - right.abs())
    length = ((down[:, None] * stride[0]).square() + (right * stride[1]).square()).sqrt()
    return float((pairs * length).sum()) / (height * width) ** 2


@lru_cache(maxsize=64)
def whole(grid: Pair, stride: Pair) -> Geometry:
    """Attention over the whole grid."""
    n = math.prod(grid)
    zeros = torch.zeros(1, n, dtype=torch.int64)
    return Geometry(grid, stride, distances(grid, stride)[None], zeros == 0, zeros)


@lru_cache(maxsize=64)
def windowed(
    grid: Pair, stride: Pair, window: Pair, shift: Pair = (0, 0), rolled_first: bool = False
) -> Geometry:
    """Windows, row by row, of a grid that is padded at its right and lower edge and rolled by -shift (Liu et al. 2021);
    rolled_first: the other way round (timm).
    """
    rows, columns = (torch.arange(n) for n in grid)
    at = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))  # (2, h, w)
    missing = [-n % size for n, size in zip(grid, window, strict=True)]
    back = [-s for s in windows.settled(grid, window, shift)]
    if rolled_first:
        at = at.roll(back, (1, 2))
    at = F.pad(at, (0, missing[1], 0, missing[0]), value=BLANK)
    if not rolled_first:
        at = at.roll(back, (1, 2))
    region = windows.regions(grid, window, shift)  # (W, n)
    y, x = cut(at[0], window), cut(at[1], window)
    points = torch.stack([y.double() * stride[0], x.double() * stride[1]], -1)  # (W, n, 2)
    apart = (points[:, :, None] - points[:, None]).norm(dim=-1)
    return Geometry(grid, stride, apart, y != BLANK, region)


def cut(maps: Tensor, window: Pair) -> Tensor:
    """(h, w) -> (windows, positions), row by row."""
    height, width = maps.shape[0] // window[0], maps.shape[1] // window[1]
    return maps.view(height, window[0], width, window[1]).permute(0, 2, 1, 3).reshape(height * width, -1)
