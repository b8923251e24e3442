"""How MCMAE's encoder lays out one batch: visible units packed, or whole maps with the mask multiplied in.

A packed stage is (B, K, s, s, C) with s of 4, 2 and 1 positions per side; a whole map is a single unit of its own size,
(B, 1, h, w, C). What the blocks need to know is what their depth-wise convolution may look at: `seen`, a mask that is
multiplied in (None: everything), and `windows`, where a packed unit finds its neighbours (None: whole maps). The two
ablations of the paper's table 5 are whole maps with another `seen`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.encoders.base import Features, valid_cells
from mimkit.masks import Mask
from mimkit.ops import units
from mimkit.ops.masked_conv import window_rows

UNIT = (16, 16)  # pixels
SIDES = (4, 2)  # positions per side of a unit in the two stages of convolutions
Seen = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class View:
    """size: the images' (H, W) before padding. grid: units. dropped: the mask whose hidden units the transformer never
    sees. packed: whether the convolutions leave them out too. seen, windows: one for each stage of convolutions. valid:
    bool (B, N) or (B, K), false for tokens that are all padding.
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    dropped: Mask | None
    packed: bool
    seen: Seen
    windows: Seen
    valid: Tensor | None

    def cut(self, images: Tensor) -> Tensor:
        """Padded images (B, C, H, W) -> (B, K, 16, 16, C), or (B, 1, H, W, C)."""
        if not self.packed or self.dropped is None:
            return images.permute(0, 2, 3, 1)[:, None]
        return units.patchify(images, UNIT, self.dropped.visible).unflatten(-1, (*UNIT, images.shape[1]))

    def level(self, x: Tensor, stage: int) -> Tensor:
        """The output x of a stage of convolutions in the form of `Features`."""
        if self.packed:
            return x
        if self.dropped is not None:
            return units.take(units.cut(x[:, 0], (SIDES[stage],) * 2), self.dropped.visible)
        stride = 16 // SIDES[stage]
        return x[:, 0, : -(-self.size[0] // stride), : -(-self.size[1] // stride)]

    def tokens(self, x: Tensor) -> Tensor:
        """The map behind the last merging, (B, K, 1, 1, C) or (B, 1, h, w, C) -> the tokens (B, K, C)."""
        x = x.flatten(1, -2)
        return x if self.packed or self.dropped is None else units.take(x, self.dropped.visible)

    def features(self, tokens: Tensor) -> Features:
        """Tokens (B, K, C) as the last level."""
        shape = self.grid if self.dropped is None else (-1, 1, 1)
        valid = None if self.valid is None else self.valid.unflatten(1, shape)
        return Features((tokens.unflatten(1, shape),), self.dropped, valid=valid)


def view_of(
    images: Tensor,
    mask: Mask | None,
    sizes: Tensor | None,
    masking: str,
    kernels: Sequence[tuple[int, ...]],
    pack_up_to: float,
) -> View:
    """The layout of images (B, C, H, W), not yet padded, of true `sizes` (B, 2).

    masking: see `MCMAEEncoder`. kernels: of the depth-wise convolutions of the two stages. pack_up_to: the share of
    visible units up to which these alone are computed.
    """
    size = (images.shape[2], images.shape[3])
    grid = (-(-size[0] // UNIT[0]), -(-size[1] // UNIT[1]))
    inside = _inside(images, grid, sizes)
    valid = None if sizes is None else valid_cells(sizes, grid, UNIT).flatten(1)
    if mask is None or masking == "tokens":
        shown: Seen = (None, None) if mask is None else _shown_tokens(mask, grid)
        return View(size, grid, None, False, _both(shown, inside), (None, None), valid)
    valid = None if valid is None else valid.gather(1, mask.visible)
    if masking == "leaky" or mask.visible.shape[1] > pack_up_to * math.prod(grid):
        shown = (None, None) if masking == "leaky" else tuple(~mask.at((16 // s,) * 2) for s in SIDES)
        return View(size, grid, mask, False, _both(shown, inside), (None, None), valid)
    windows = tuple(
        window_rows(mask.visible, grid, (s, s), kernel) for s, kernel in zip(SIDES, kernels, strict=True)
    )
    seen = tuple(None if x is None else _packed(x, s, mask) for x, s in zip(inside, SIDES, strict=True))
    return View(size, grid, mask, True, seen, windows, valid)


def _inside(images: Tensor, grid: tuple[int, int], sizes: Tensor | None) -> Seen:
    """Bool (B or 1, h, w) for each stage: what is no padding; None where nothing is padded."""
    size = tuple(images.shape[2:])
    if sizes is None:
        if size == (grid[0] * UNIT[0], grid[1] * UNIT[1]):
            return None, None
        sizes = torch.tensor([size], device=images.device)
    return tuple(valid_cells(sizes, (grid[0] * s, grid[1] * s), (16 // s,) * 2) for s in SIDES)


def _both(shown: Seen, inside: Seen) -> Seen:
    """What is shown and inside, for maps of one unit: bool (B or 1, 1, h, w, 1)."""
    both: list[Tensor | None] = []
    for a, b in zip(shown, inside, strict=True):
        seen = b if a is None else a if b is None else a & b
        both.append(None if seen is None else seen[:, None, ..., None])
    return tuple(both)


def _packed(inside: Tensor, s: int, mask: Mask) -> Tensor:
    """Bool (B or 1, h, w) -> that of the visible units, (B, K, s, s, 1)."""
    whole = units.cut(inside[..., None], (s, s)).expand(mask.visible.shape[0], -1, -1, -1, -1)
    return units.take(whole, mask.visible)


def _shown_tokens(mask: Mask, grid: tuple[int, int]) -> Seen:
    """A mask on stride-4 tokens (table 5, row 2): a position of stage 2 is shown where any of its four tokens is."""
    height, width = (SIDES[0] * n for n in grid)
    shown = F.pad(~mask.hidden, (0, width - mask.grid[1], 0, height - mask.grid[0]))  # (B, h, w)
    coarser = shown.unflatten(2, (-1, 2)).any(3).unflatten(1, (-1, 2)).any(2)  # (B, h / 2, w / 2)
    return shown, coarser
