"""What is hidden from the encoder: the mask itself and the rules that draw one.

A mask lives on a grid of its own (the patches of a ViT, the 32-pixel cells of SimMIM, the stride-16 units of MCMAE) and
hides the same number of cells in every image, so that what remains has a fixed shape. The rules work on one sample with
that sample's own generator, in the loader's workers; the arithmetic behind each (`keep_by_noise`, `hide_blocks`,
`hide_off_grid`) takes the noise or the generator that the golden cases name.

Sources: random masking of MAE (He et al. 2022, section 3.1), block-wise masking of BEiT (Bao et al. 2022, as its
released masker draws it) and the grid masking of MAE's table 1(f).
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mimkit.errors import UserError, counted

MIN_ASPECT = 0.3  # BEiT: blocks between 0.3 and 1/0.3 in height over width
BLOCK_ATTEMPTS = 10


@dataclass(frozen=True)
class Mask:
    """Which cells of each image are hidden.

    hidden: bool (B, *grid). unit: pixels of one cell along each axis. visible: (B, K) raster indices of the cells that
    remain, ascending. predict: (B, P) raster indices of the hidden cells that are decoded, ascending; None means all.
    group: int64 (B, *grid), for complementary masks: each cell's group, all of one size; the mask itself shows group 0.
    """

    hidden: Tensor
    unit: tuple[int, ...]
    visible: Tensor
    predict: Tensor | None = None
    group: Tensor | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(self.hidden.shape[1:])

    @property
    def decoded(self) -> Tensor:
        """(B, P) raster indices of the cells to predict, ascending: `predict`, else every hidden cell.

        P follows from shapes alone, so no GPU is waited for and torch.compile sees no graph break.
        """
        if self.predict is not None:
            return self.predict
        flat = self.hidden.flatten(1)
        hidden_first = flat.byte().argsort(dim=1, descending=True, stable=True)
        return hidden_first[:, : flat.shape[1] - self.visible.shape[1]]

    def at(self, stride: Sequence[int]) -> Tensor:
        """`hidden` on the finer grid of a feature map with `stride`: bool (B, *finer grid).

        Raises UserError when a cell is not a whole number of strides wide.
        """
        finer = self.hidden
        for axis, (unit, step) in enumerate(zip(self.unit, stride, strict=True), start=1):
            if unit % step:
                raise UserError(f"A mask of {unit}-pixel cells does not fit a feature map of stride {step}.")
            finer = finer.repeat_interleave(unit // step, dim=axis)
        return finer

    def spread(self) -> "Mask":
        """The masks of all groups, one after the other along the batch: those of group 0 for every image, then group 1
        ...; itself where there are no groups.
        """
        if self.group is None:
            return self
        count = self.group[0].numel() // self.visible.shape[1]
        shown = torch.cat([self.group == number for number in range(count)])  # (groups * B, *grid)
        return Mask(~shown, self.unit, indices(shown))

    def to(self, device: torch.device, non_blocking: bool = False) -> "Mask":
        return self._each(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Mask":
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Mask":
        predict, group = (None if x is None else change(x) for x in (self.predict, self.group))
        return replace(
            self, hidden=change(self.hidden), visible=change(self.visible), predict=predict, group=group
        )


def indices(cells: Tensor) -> Tensor:
    """(B, n) ascending raster indices of the true cells of `cells` (B, *grid); every row must hold the same number."""
    found = cells.flatten(1).nonzero()[:, 1]
    return found.view(cells.shape[0], found.shape[0] // cells.shape[0])


def from_hidden(hidden: Tensor, unit: Sequence[int], predict: Tensor | None = None) -> Mask:
    """The mask of `hidden`, bool (B, *grid). Raises UserError unless all images hide the same number of cells, not
    all.
    """
    counts = hidden.flatten(1).sum(1)
    if not bool((counts == counts[0]).all()):
        raise UserError("All images of a batch must hide the same number of cells; these differ.")
    if int(counts[0]) == hidden[0].numel():
        raise UserError("A mask must leave at least one cell visible; lower the mask ratio.")
    return Mask(hidden, tuple(unit), indices(~hidden), predict)


def collate(masks: Sequence[Mask]) -> Mask:
    """One mask for the batch out of the masks of its samples (B = 1 each, equal grids and counts)."""
    predicts = [m.predict for m in masks if m.predict is not None]
    groups = [m.group for m in masks if m.group is not None]
    return Mask(
        torch.cat([m.hidden for m in masks]),
        masks[0].unit,
        torch.cat([m.visible for m in masks]),
        torch.cat(predicts) if predicts else None,
        torch.cat(groups) if groups else None,
    )


class Masker(Protocol):
    """A rule that draws the mask of one sample (B = 1) on `grid`.

    `valid`, bool (*grid), marks the cells that hold image and not padding: padding stays hidden and is never predicted.
    """

    @property
    def unit(self) -> tuple[int, ...]:
        """Pixels of one cell along each axis."""

    def __call__(
        self, rng: np.random.Generator, grid: tuple[int, ...], valid: np.ndarray | None = None
    ) -> Mask: ...


def kept(cells: int, ratio: float) -> int:
    """How many of `cells` the published rule keeps: truncated, in double precision (10 at 0.8 keep 1, at 0.9 none)."""
    return int(cells * (1 - ratio))


def visible_count(cells: int, ratio: float) -> int:
    """`kept`, where that leaves something to see and something to predict.

    Raises UserError where nothing would be visible or nothing hidden.
    """
    keep = kept(cells, ratio)
    if not 0 < keep < cells:
        what = "visible" if keep <= 0 else "hidden"
        highest = math.floor(1000 * (1 - 1 / cells)) / 1000 - 0.001  # a step below: 0.9 of 10 keeps none
        advice = f"use a ratio above 0 and up to {highest:.3f}" if cells > 1 else "use more cells"
        raise UserError(
            f"A mask ratio of {ratio} leaves nothing {what} of {counted(cells, 'cell')}; {advice}."
        )
    return keep


def keep_by_noise(noise: np.ndarray, keep: int) -> np.ndarray:
    """Raster indices of the `keep` cells with the smallest noise, in order of noise (MAE; ties: lower index first)."""
    return np.argsort(noise, axis=-1, kind="stable")[..., :keep]


def groups_by_noise(noise: np.ndarray, count: int) -> np.ndarray:
    """The group 0 .. count - 1 of each cell, equal shares by rank of the noise (FastConvMAE): int64, noise's shape."""
    order = keep_by_noise(noise, noise.shape[-1])
    group = np.empty(noise.shape, dtype=np.int64)
    np.put_along_axis(group, order, np.arange(noise.shape[-1]) * count // noise.shape[-1], axis=-1)
    return group


def hide_blocks(rng: random.Random, grid: tuple[int, int], count: int, min_block: int) -> np.ndarray:
    """BEiT's block-wise masking: bool (h, w) with at most `count` hidden cells; the rule often stops a few short.

    min_block: smallest area of a block in cells (BEiT: 16).
    """
    hidden = np.zeros(grid, dtype=bool)
    while (room := count - int(hidden.sum())) > 0:
        if not _add_block(rng, hidden, room, min_block):
            break
    return hidden


def _add_block(rng: random.Random, hidden: np.ndarray, room: int, min_block: int) -> bool:
    """Hide one more block that adds at least one and at most `room` cells; False when ten draws give none."""
    height, width = hidden.shape
    for _ in range(BLOCK_ATTEMPTS):
        area = rng.uniform(min_block, room)  # the bounds may be reversed near the end, as published
        aspect = math.exp(rng.uniform(math.log(MIN_ASPECT), math.log(1 / MIN_ASPECT)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            block = hidden[top : top + h, left : left + w]
            if 0 < block.size - int(block.sum()) <= room:
                block[:] = True
                return True
    return False


def hide_off_grid(grid: tuple[int, int]) -> np.ndarray:
    """Grid masking: bool (h, w), one cell of every 2 x 2 (even row, even column) stays visible."""
    hidden = np.ones(grid, dtype=bool)
    hidden[::2, ::2] = False
    return hidden


@dataclass(frozen=True)
class RandomMasker:
    """Hide a random share of the cells (MAE). decode: the share of the hidden cells that is predicted. groups: how many
    complementary masks to draw (FastConvMAE), of which each shows an equal share of the cells; `ratio` is theirs.
    """

    ratio: float
    unit: tuple[int, ...]
    decode: float = 1.0
    groups: int = 1

    def __call__(
        self, rng: np.random.Generator, grid: tuple[int, ...], valid: np.ndarray | None = None
    ) -> Mask:
        noise = rng.random(math.prod(grid))
        if self.groups > 1:
            return _grouped(noise, self.groups, grid, self.unit)
        cells = noise.size
        if valid is not None:
            noise = np.where(valid.ravel(), noise, np.inf)
            cells = int(valid.sum())
        hidden = np.ones(noise.size, dtype=bool)
        hidden[keep_by_noise(noise, visible_count(cells, self.ratio))] = False
        return _finish(rng, hidden.reshape(grid), self.unit, self.decode, valid)


def _grouped(noise: np.ndarray, groups: int, grid: tuple[int, ...], unit: tuple[int, ...]) -> Mask:
    """Complementary masks of one sample. Raises UserError unless the cells can be shared out evenly."""
    if noise.size % groups:
        raise UserError(
            f"{counted(noise.size, 'cell')} cannot be shared out evenly over {groups} complementary masks."
        )
    group = torch.from_numpy(groups_by_noise(noise, groups)).view(1, *grid)
    return Mask(group != 0, unit, indices(group == 0), group=group)


@dataclass(frozen=True)
class BlockMasker:
    """Hide rectangular blocks (BEiT), topped up with random cells to the exact count that `ratio` asks for."""

    ratio: float
    unit: tuple[int, ...]
    decode: float = 1.0
    min_block: int = 16

    def __call__(
        self, rng: np.random.Generator, grid: tuple[int, ...], valid: np.ndarray | None = None
    ) -> Mask:
        cells = math.prod(grid) if valid is None else int(valid.sum())
        count = cells - visible_count(cells, self.ratio)
        height, width = grid
        # a block of min_block cells never fits a small grid: let it be at most a quarter of what is to be hidden
        smallest = max(1, min(self.min_block, count // 4))
        hidden = hide_blocks(random.Random(int(rng.integers(2**63))), (height, width), count, smallest)
        if valid is not None:
            hidden &= valid
        open_cells = np.flatnonzero((~hidden if valid is None else ~hidden & valid).ravel())
        missing = count - int(hidden.sum())
        hidden.ravel()[rng.permutation(open_cells)[:missing]] = True
        if valid is not None:
            hidden |= ~valid
        return _finish(rng, hidden, self.unit, self.decode, valid)


@dataclass(frozen=True)
class GridMasker:
    """Keep one cell of every 2 x 2 (MAE's table 1f): the same 75 % hidden in every image of an even grid."""

    unit: tuple[int, ...]
    decode: float = 1.0

    def __call__(
        self, rng: np.random.Generator, grid: tuple[int, ...], valid: np.ndarray | None = None
    ) -> Mask:
        height, width = grid
        hidden = hide_off_grid((height, width))
        if valid is not None:
            hidden |= ~valid
        if not hidden.any() or hidden.all():
            raise UserError(f"Grid masking needs at least 2 x 2 cells; the grid is {height} x {width}.")
        return _finish(rng, hidden, self.unit, self.decode, valid)


def _finish(
    rng: np.random.Generator,
    hidden: np.ndarray,
    unit: tuple[int, ...],
    decode: float,
    valid: np.ndarray | None,
) -> Mask:
    """The mask of one sample, with the share `decode` of its hidden image cells drawn for prediction."""
    target = hidden if valid is None else hidden & valid
    predict = None
    if decode < 1 or valid is not None:
        cells = np.flatnonzero(target.ravel())
        chosen = np.sort(rng.permutation(cells)[: max(1, round(decode * cells.size))])
        predict = torch.from_numpy(chosen)[None]
    boolean = torch.from_numpy(hidden)[None]
    return Mask(boolean, unit, indices(~boolean), predict)


def build_masker(
    kind: str, ratio: float, unit: tuple[int, ...], decode: float = 1.0, complementary: bool = False
) -> Masker:
    """The masker of a recipe: kind is 'random', 'block' or 'grid'; grid masking has its own ratio. complementary:
    random masks that together show every cell once.
    """
    if kind == "random":
        return RandomMasker(ratio, unit, decode, round(1 / (1 - ratio)) if complementary else 1)
    if kind == "block":
        return BlockMasker(ratio, unit, decode)
    if kind == "grid":
        return GridMasker(unit, decode)
    raise UserError(f"Unknown mask {kind!r}; known are 'random', 'block' and 'grid'.")


def at_ratio(masker: Masker, ratio: float) -> Masker:
    """The same rule at another mask ratio. Raises UserError for grid masking, whose ratio is its own."""
    if isinstance(masker, RandomMasker):
        return replace(masker, ratio=ratio, groups=1)
    if isinstance(masker, BlockMasker):
        return replace(masker, ratio=ratio)
    raise UserError("Grid masking hides three cells of four and knows no other ratio; leave the ratio out.")


def avg_distance(hidden: np.ndarray, unit: Sequence[int] = (1, 1)) -> float:
    """AvgDist of one mask, in pixels: the mean over hidden pixels of the distance to the nearest visible one, centre to
    centre (Xie et al. 2023, section 3.1, figure 2).

    hidden: bool (h, w), cells of `unit` pixels. NaN where nothing is hidden or nothing visible.
    """
    from scipy.ndimage import distance_transform_edt

    pixels = np.asarray(hidden, dtype=bool).repeat(unit[0], 0).repeat(unit[1], 1)
    if pixels.all() or not pixels.any():
        return math.nan
    return float(distance_transform_edt(pixels)[pixels].mean())


def mean_avg_distance(masker: Masker, size: Sequence[int], samples: int = 20, seed: int = 0) -> float:
    """AvgDist in pixels of what `masker` draws for images of `size` (h, w): the mean over `samples` masks."""
    grid = tuple(-(-side // cell) for side, cell in zip(size, masker.unit, strict=True))
    rng = np.random.default_rng(seed)
    drawn = (masker(rng, grid).hidden[0].numpy() for _ in range(samples))
    return float(np.mean([avg_distance(hidden, masker.unit) for hidden in drawn]))
