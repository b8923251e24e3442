"""The contract of an encoder, and what it returns.

Methods, tasks and analyses know an encoder through this page alone. Features are channels-last inside the house:
(B, *grid, C) when the whole image was seen, (B, K, *s, C) in the unit layout (`ops.units`) when hidden cells were
dropped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit.errors import UserError, counted
from mimkit.masks import Mask
from mimkit.ops import units


class Level(NamedTuple):
    """A feature level: pixels per position along each axis, and channels."""

    stride: tuple[int, ...]
    channels: int


@dataclass(frozen=True)
class Features:
    """What an encoder made of a batch.

    levels: finest first, each (B, *grid, C), or (B, K, *s, C) where hidden cells were dropped (`mask` says which).
    prefix: (B, n, C) class token and registers, or None. layers: the outputs of the inner layers that were asked for.
    valid: bool, the last level's shape without C, false where a position is all padding; None when nothing was padded.
    """

    levels: tuple[Tensor, ...]
    mask: Mask | None = None
    prefix: Tensor | None = None
    layers: dict[int, "Features"] = field(default_factory=dict)
    valid: Tensor | None = None

    def map(self, level: int = -1) -> Tensor:
        """Feature map (B, C, *grid); positions of dropped cells hold zeros."""
        x = self.levels[level]
        if self.mask is not None:
            full = units.put(x, self.mask.visible, self.mask.hidden[0].numel())
            x = units.join(full, self.mask.grid)
        return x.movedim(-1, 1)

    def pooled(self, how: str = "mean") -> Tensor:
        """(B, C): the mean over the positions of the last level that are no padding ("mean") or the class token
        ("cls").
        """
        if how == "mean":
            x = self.levels[-1].flatten(1, -2)  # (B, N, C)
            if self.valid is None:
                return x.mean(1)
            inside = self.valid.flatten(1)[..., None]
            return x.masked_fill(~inside, 0).sum(1) / inside.sum(1)
        if how != "cls":
            raise UserError(f"Unknown pooling {how!r}; known are 'mean' and 'cls'.")
        if self.prefix is None:
            raise UserError("This encoder has no class token to pool; use 'mean'.")
        return self.prefix[:, 0]


class AttentionSite(NamedTuple):
    """One attention module for the analyses: its name, the module, and its geometry in tokens.

    window: None for global attention over the whole image, else its (h, w). shift: offset of the windows, by which the
    padded map is rolled (`rolled_first`: the map is rolled and then padded, as timm does it). prefix: tokens in front
    that are no positions of the image. stride: pixels per token.
    """

    name: str
    module: nn.Module
    stride: tuple[int, ...]
    prefix: int = 0
    window: tuple[int, ...] | None = None
    shift: tuple[int, ...] | None = None
    rolled_first: bool = False


class Encoder(nn.Module):
    """Base of all encoders; see the class attributes for what a family states about itself."""

    levels: tuple[Level, ...]
    """Stride and channels of each feature level, finest first."""
    unit: tuple[int, ...]
    """Pixels per axis of the smallest block that can be dropped alone."""
    hides_by: frozenset[str] = frozenset()
    """How it can hide cells: "drop" (not computed), "replace" (by a mask token), both or neither."""
    token_width: int = 0
    """Channels at the place where a mask token replaces a hidden token."""
    channels: int
    """Channels of the images."""
    heads: tuple[str, ...] = ()
    """Modules by name that published files hold besides the encoder: the classification heads of foreign networks."""
    stem: str | None = None
    """The kernel by name that sees the channels of the images, where a foreign network has its own name for it."""
    depth: int
    """Number of layers that `forward(layers=...)` can return, counted from 1."""
    ends_raw: bool = False
    """Whether the last level has no norm behind it, so that whoever reads it has to bring one."""

    def forward(
        self,
        images: Tensor,
        mask: Mask | None = None,
        mask_token: Tensor | None = None,
        sizes: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        """Features of images (B, C, H, W), float, normalised.

        mask alone drops the hidden cells before the first layer; with mask_token (token_width,) they are replaced
        by it. sizes: (B, 2) true height and width of padded images; padding never influences a valid output.
        layers: which inner layers (1..depth) to return too.
        """
        raise NotImplementedError

    def depth_of(self, name: str) -> int:
        """Layer of a parameter for layer-wise learning rates and partial fine-tuning: 0 for what comes before the
        blocks .. `deepest` behind them.
        """
        raise NotImplementedError

    @property
    def deepest(self) -> int:
        """What `depth_of` gives to what lies behind the blocks, and to heads on the encoder."""
        return self.depth + 1

    def attentions(self) -> Iterator[AttentionSite]:
        """The attention modules, in order of computation."""
        return iter(())

    def drop_norm(self) -> bool:
        """Leave the norm behind the last layer out from now on, for a task that normalises behind its pooling.

        False, and nothing changes, where the encoder has none that can be left out.
        """
        return False

    def check(self, images: Tensor, mask: Mask | None, mask_token: Tensor | None) -> None:
        """Raise UserError where images or mask do not go with this encoder."""
        if images.ndim != 2 + len(self.unit) or images.shape[1] != self.channels:
            raise UserError(
                f"The encoder takes images of {counted(self.channels, 'channel')}, (B, {self.channels}, H, W); "
                f"these are {tuple(images.shape)}. Set data.channels to what the images have."
            )
        if mask is None:
            return
        way = "drop" if mask_token is None else "replace"
        if way not in self.hides_by:
            able = " or ".join(sorted(self.hides_by)) or "nothing of the kind"
            raise UserError(f"This encoder cannot {way} hidden cells; it can {able}.")
        self._check_grid(tuple(images.shape[2:]), mask, way)

    def _check_grid(self, size: tuple[int, ...], mask: Mask, way: str) -> None:
        """The mask must cover the padded image; indices into another grid would name the wrong cells unnoticed."""
        if way == "drop" and mask.unit != self.unit:
            raise UserError(
                f"Hidden cells are dropped in units of {self.unit} pixels; this mask has cells of {mask.unit}."
            )
        covering = tuple(-(-side // cell) for side, cell in zip(size, mask.unit, strict=True))
        if mask.grid != covering:
            raise UserError(
                f"A mask of {mask.grid} cells does not belong to images of {size} pixels; "
                f"with cells of {mask.unit} pixels it must be {covering}."
            )


def pad_to(images: Tensor, multiple: Sequence[int]) -> Tensor:
    """Zeros at the right and lower edge of images (B, C, *axes) until `multiple` divides every axis."""
    missing = [-size % m for size, m in zip(images.shape[2:], multiple, strict=True)]
    if not any(missing):
        return images
    return F.pad(images, [n for m in reversed(missing) for n in (0, m)])


def blank_padding(images: Tensor, sizes: Tensor) -> Tensor:
    """Zeros wherever images (B, C, H, W) lie outside their true `sizes` (B, 2), so that padding is the same
    everywhere.
    """
    inside = valid_cells(sizes, tuple(images.shape[2:]), (1, 1))
    return images * inside[:, None].to(images.dtype)


def valid_cells(sizes: Tensor, grid: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Bool (B, h, w): the cells of `grid` that hold at least one pixel of an image of its true size."""
    per_axis = [
        torch.arange(n, device=sizes.device)[None] * s < sizes[:, i, None]
        for i, (n, s) in enumerate(zip(grid, stride, strict=True))
    ]
    return per_axis[0][:, :, None] & per_axis[1][:, None, :]


def own_grids(sizes: Tensor, unit: Sequence[int]) -> list[tuple[int, ...]]:
    """The grid of units of each image by its true size: `sizes` (B, 2) in pixels."""
    return [tuple(-(-side // cell) for side, cell in zip(size, unit, strict=True)) for size in sizes.tolist()]
