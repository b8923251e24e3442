"""Necks: the feature levels that a head wants, made of those that an encoder has.

A detector reads maps at strides 4 to 64, a segmenter at 4 to 32. What an encoder lacks is made here, for any encoder:
`SimplePyramid` makes all levels of the last one (ViTDet, Li et al. 2022, section 3; the successor of MCMAE's detector
uses it), `Coarser` adds one at twice the last stride (MCMAE, Gao et al. 2022, section 3.4). Both take `Features` and
give maps (B, C, h, w), finest first, channels last in memory.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from mimkit.encoders.base import Features
from mimkit.errors import UserError
from mimkit.ops.attention import LAYER_NORM_EPS

BATCH_NORM_EPS = 1e-5
HOW = ("pool", "conv")


class SimplePyramid(nn.Module):
    """Levels at strides 4, 8, 16, 32 and 64 of the last level, which is at stride 16.

    channels: of that level. out: of each map. Every map goes through a 1 x 1 and a 3 x 3 convolution without bias, each
    with a layer norm over channels; the last is the one before, every other position.
    """

    def __init__(self, channels: int, out: int = 256, eps: float = LAYER_NORM_EPS) -> None:
        super().__init__()
        self.levels = nn.ModuleList(PyramidLevel(channels, out, ups, eps) for ups in (2, 1, 0, 0))

    def forward(self, features: Features) -> tuple[Tensor, ...]:
        """Five maps (B, out, h, w)."""
        x = features.levels[-1]  # (B, h, w, C)
        coarse = F.max_pool2d(x.movedim(-1, 1), 2, ceil_mode=True).movedim(1, -1)
        sources = (x, x, x, coarse)
        maps = [
            level(source, features.valid).movedim(-1, 1)
            for level, source in zip(self.levels, sources, strict=True)
        ]
        return (*maps, F.max_pool2d(maps[-1], 1, 2))


class PyramidLevel(nn.Module):
    """One level: `ups` transposed convolutions that double the sides and halve the channels, then two convolutions."""

    def __init__(self, channels: int, out: int, ups: int, eps: float) -> None:
        super().__init__()
        widths = [channels // 2**i for i in range(ups + 1)]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 2, stride=2) for before, after in pairwise(widths)
        )
        self.norm = nn.LayerNorm(widths[1], eps=eps) if ups > 1 else nn.Identity()
        self.lateral = nn.Linear(widths[-1], out, bias=False)
        self.lateral_norm = nn.LayerNorm(out, eps=eps)
        self.output = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.output_norm = nn.LayerNorm(out, eps=eps)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, h, w, C) -> (B, h', w', out). valid: bool, (B, *grid of the last level); padding beside it counts as the
        border of the image does.
        """
        for i, up in enumerate(self.up):
            x = up(x.movedim(-1, 1)).movedim(1, -1)
            if i == 0 and len(self.up) > 1:
                x = F.gelu(self.norm(x))
        x = self.lateral_norm(self.lateral(x))
        if valid is not None:
            inside = F.adaptive_max_pool2d(valid[:, None].to(x.dtype), x.shape[1:3])  # (B, 1, h', w')
            x = x * inside.movedim(1, -1)
        return self.output_norm(self.output(x.movedim(-1, 1)).movedim(1, -1))


class Coarser(nn.Module):
    """An encoder's own levels and one more, at twice the last stride.

    how: "pool", 2 x 2 maxima (MCMAE's detector), or "conv", a 3 x 3 convolution of stride 2 without padding, batch norm
    and GELU, as the published segmenter has it: 32 positions become 15.
    """

    def __init__(self, channels: int, how: str = "pool") -> None:
        super().__init__()
        if how not in HOW:
            raise UserError(
                f"Unknown way {how!r} to a coarser level; known are {' and '.join(map(repr, HOW))}."
            )
        conv = how == "conv"
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if conv else None
        self.norm = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS) if conv else None

    def forward(self, features: Features) -> tuple[Tensor, ...]:
        """The maps of all levels and of the new one, (B, C, h, w)."""
        maps = [features.map(i) for i in range(len(features.levels))]
        return (*maps, self.coarser(maps[-1]))

    def coarser(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h / 2, w / 2), rounded up by pooling; (h - 1) / 2 rounded down by the convolution."""
        if self.conv is None or self.norm is None:
            return F.max_pool2d(x, 2, ceil_mode=True)
        if min(x.shape[2:]) < 3:
            raise UserError(
                f"A map of {x.shape[2]} x {x.shape[3]} positions is too small for a 3 x 3 convolution without padding; "
                "use larger images, or 'pool'."
            )
        return F.gelu(self.norm(self.conv(x)))
