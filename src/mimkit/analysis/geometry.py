"""Where the tokens of an attention layer lie in the image: distances in pixels for whole grids and for windows.

"Revealing the Dark Secrets of Masked Image Modeling" (Xie et al. 2023, section 3.1) averages the distance between query
and key. Windows that were shifted or padded hold tokens from opposite sides of the image, so their distances are taken
from maps of true coordinates that go through the same padding, rolling and cutting as the features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from mimkit.ops import windows

Pair = tuple[int, int]
BLANK = -1  # place of a padded position


@dataclass(frozen=True)
class Geometry:
    """The tokens of one layer: W windows of n positions; a grid without windows is one window.

    grid: positions of the feature map. stride: pixels per position. index: (W, n) int64, place in the grid, row by row;
    -1 for padding. distance: (W, n, n) float64 pixels between centres. region: (W, n) int64; a query may look at keys
    of its own region (shifted windows are cut by a mask at the border).
    """

    grid: Pair
    stride: Pair
    index: Tensor
    distance: Tensor
    region: Tensor

    @cached_property
    def inside(self) -> Tensor:
        """Bool (W, n): false where a position is padding."""
        return self.index != BLANK

    @property
    def windows(self) -> int:
        return self.distance.shape[0]

    @property
    def keys(self) -> int:
        return self.distance.shape[1]

    @cached_property
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
    points = centres(grid, stride)
    return (points[:, None] - points[None]).norm(dim=-1)


def centres(grid: Sequence[int], stride: Sequence[float] = (1, 1)) -> Tensor:
    """(N, 2) float64: row and column of the cells' centres in pixels, up to a common offset."""
    rows, columns = (torch.arange(n, dtype=torch.float64) * s for n, s in zip(grid, stride, strict=True))
    return torch.cartesian_prod(rows, columns).view(-1, 2)


def uniform_distance(grid: Sequence[int], stride: Sequence[float] = (1, 1), with_self: bool = True) -> float:
    """Mean distance over all ordered pairs of cells: what attention that looks everywhere alike has (closed form).

    with_self: a cell and itself are a pair, too; without, a single cell has 0.
    """
    height, width = grid
    down, right = torch.arange(1 - height, height).double(), torch.arange(1 - width, width).double()
    pairs = torch.outer(height - down.abs(), width - right.abs())
    length = ((down[:, None] * stride[0]).square() + (right * stride[1]).square()).sqrt()
    cells = height * width
    return float((pairs * length).sum()) / (cells**2 if with_self else max(1, cells * (cells - 1)))


@lru_cache(maxsize=64)
def whole(grid: Pair, stride: Pair) -> Geometry:
    """Attention over the whole grid."""
    n = math.prod(grid)
    places = torch.arange(n)[None]
    return Geometry(grid, stride, places, distances(grid, stride)[None], torch.zeros_like(places))


@lru_cache(maxsize=64)
def windowed(
    grid: Pair, stride: Pair, window: Pair, shift: Pair = (0, 0), rolled_first: bool = False
) -> Geometry:
    """Windows, row by row, of a grid that is padded at its right and lower edge and rolled by -shift (Liu et al. 2021);
    rolled_first: the other way round (timm).
    """
    numbers = torch.arange(1, 1 + math.prod(grid)).view(1, *grid, 1)  # padding becomes 0
    if rolled_first:
        numbers = numbers.roll((-shift[0], -shift[1]), (1, 2))
    index = windows.partition(numbers, window, None if rolled_first else shift)[..., 0] - 1  # (W, n)
    points = centres(grid, stride)[index.clamp_min(0)]  # (W, n, 2)
    apart = (points[:, :, None] - points[:, None]).norm(dim=-1)
    return Geometry(grid, stride, index, apart, windows.regions(grid, window, shift))
