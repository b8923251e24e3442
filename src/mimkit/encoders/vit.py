"""The plain vision transformer (Dosovitskiy et al. 2021), as MAE pre-trains it (He et al. 2022, section 3 and
appendix A).

Order of computation: patches -> linear embedding -> positions -> hidden tokens dropped -> class token in front ->
blocks -> norm. Because embedding acts on each patch alone, hidden patches are left out before it: their pixels are
never read. Parameter names are those of the published files. Any (h, w): the table is resampled when the grid
differs.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mimkit.encoders.base import (
    AttentionSite,
    Encoder,
    Features,
    Level,
    blank_padding,
    own_grids,
    pad_to,
    valid_cells,
)
from mimkit.errors import UserError
from mimkit.masks import Mask
from mimkit.ops import positions as tables
from mimkit.ops import units
from mimkit.ops.attention import LAYER_NORM_EPS, Attention, Block, drop_path_rates
from mimkit.ops.linear import linear


class Variant(NamedTuple):
    """One row of the family: channels, blocks, heads, and the usual patch."""

    width: int
    depth: int
    heads: int
    patch: int
    paper: str


VARIANTS = {
    "vit_tiny": Variant(192, 12, 3, 16, "Touvron et al. 2021 (DeiT), table 1"),
    "vit_small": Variant(384, 12, 6, 16, "Touvron et al. 2021 (DeiT), table 1"),
    "vit_base": Variant(768, 12, 12, 16, "Dosovitskiy et al. 2021, table 1"),
    "vit_large": Variant(1024, 24, 16, 16, "Dosovitskiy et al. 2021, table 1"),
    "vit_huge": Variant(1280, 32, 16, 14, "Dosovitskiy et al. 2021, table 1"),
}
CUSTOM = re.compile(r"vit:(\d+)x(\d+)x(\d+)(?:x(\d+))?")  # width, depth, heads, and the MLPs' hidden channels


def build(
    name: str,
    channels: int = 3,
    size: Sequence[int] = (224, 224),
    patch: Sequence[int] | None = None,
    positions: str = "sincos",
    class_token: bool = True,
    drop_path: float = 0.0,
    layer_scale: float | None = None,
    checkpointing: bool = False,
) -> "ViT":
    """The encoder `name` of VARIANTS, or `vit:WIDTHxDEPTHxHEADS` with numbers of one's own, for images of `channels`
    and usually of `size` (its grid sets the position table).

    A fourth number is the hidden channels of the MLPs; 4 times the width where there is none. Raises UserError for
    numbers that make no ViT.
    """
    row, mlp_ratio = _row(name)
    return ViT(
        row.width,
        row.depth,
        row.heads,
        patch=tuple(patch or (row.patch, row.patch)),
        channels=channels,
        size=size,
        mlp_ratio=mlp_ratio,
        positions=positions,
        class_token=class_token,
        drop_path=drop_path,
        layer_scale=layer_scale,
        checkpointing=checkpointing,
    )


def custom(width: int, depth: int, heads: int, hidden: int | None = None) -> str:
    """The name under which `build` knows a ViT of these numbers: that of VARIANTS where it has one."""
    if hidden in (None, 4 * width):
        named = (name for name, row in VARIANTS.items() if row[:3] == (width, depth, heads))
        return next(named, f"vit:{width}x{depth}x{heads}")
    return f"vit:{width}x{depth}x{heads}x{hidden}"


def _row(name: str) -> tuple[Variant, float]:
    """(row, hidden over outer channels of the MLPs)."""
    if name in VARIANTS:
        return VARIANTS[name], 4.0
    found = CUSTOM.fullmatch(name)
    width, depth, heads, hidden = (int(n or 0) for n in found.groups()) if found else (0, 0, 0, 0)
    if not (width and depth and heads) or width % heads:
        raise UserError(
            f"The encoder {name!r} is no ViT; write vit:WIDTHxDEPTHxHEADS with heads that divide the width, "
            "as vit:192x12x3."
        )
    return Variant(width, depth, heads, 16, "numbers of one's own"), hidden / width if hidden else 4.0


class PatchEmbed(nn.Module):
    """One linear layer on the pixels of a patch; held as a convolution kernel, as in the published files."""

    def __init__(self, channels: int, width: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, N, width), or (B, K, width) for the patches at `index` (B, K)."""
        pixels = units.patchify(images, self.patch, index)  # (B, K, ph * pw * C)
        kernel = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (width, ph * pw * C)
        return linear(pixels, kernel, self.proj.bias)


class ViT(Encoder):
    """A plain ViT; see `build` for the named sizes and `Encoder` for the contract.

    positions: "sincos" (fixed, MAE) or "learned". eps: of all norms.
    """

    hides_by = frozenset({"drop", "replace"})

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        patch: tuple[int, ...] = (16, 16),
        channels: int = 3,
        size: Sequence[int] = (224, 224),
        mlp_ratio: float = 4.0,
        positions: str = "sincos",
        class_token: bool = True,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        checkpointing: bool = False,
        eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        ph, pw = patch
        self.channels, self.depth, self.token_width = channels, depth, width
        self.unit = (ph, pw)
        self.levels = (Level((ph, pw), width),)
        self.grid = (math.ceil(size[0] / ph), math.ceil(size[1] / pw))  # of the position table
        self.prefix_tokens = int(class_token)
        self.checkpointing = checkpointing
        self.patch_embed = PatchEmbed(channels, width, (ph, pw))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.pos_embed = tables.new_table(positions, width, self.grid, class_token)
        rates = drop_path_rates(drop_path, depth)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, rate, layer_scale, eps) for rate in rates)
        self.norm: nn.Module = nn.LayerNorm(width, eps=eps)
        self._initialise()

    def _initialise(self) -> None:
        """MAE's start: Xavier-uniform matrices (qkv as one), zero biases, tokens normal with deviation 0.02."""
        xavier_linears(self.blocks)
        kernel = self.patch_embed.proj.weight
        nn.init.xavier_uniform_(kernel.data.view(kernel.shape[0], -1))
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)

    def forward(
        self,
        images: Tensor,
        mask: Mask | None = None,
        mask_token: Tensor | None = None,
        sizes: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        """Features of images (B, C, H, W); see `Encoder.forward`. One level: (B, h, w, C), or (B, K, 1, 1, C)
        dropped.
        """
        self.check(images, mask, mask_token)
        if sizes is not None:
            images = blank_padding(images, sizes)
        images = pad_to(images, self.unit)
        grid = (images.shape[2] // self.unit[0], images.shape[3] // self.unit[1])
        dropped = mask if mask_token is None else None
        index = None if dropped is None else dropped.visible
        tokens = self.patch_embed(images, index)  # (B, K, C)
        if mask is not None and mask_token is not None:
            hidden = mask.at(self.unit).flatten(1)[..., None]
            tokens = torch.where(hidden, mask_token.to(tokens.dtype), tokens)
        valid = None if sizes is None else self._valid(sizes, grid, index)  # (B, K)
        key_mask = None if valid is None else F.pad(valid, (self.prefix_tokens, 0), value=True)
        tokens, inner = self.run(tokens, self.positions(grid, index, sizes), key_mask, layers)
        # a dropped level is in the unit layout, with units of one token
        shape = grid if dropped is None else (-1, 1, 1)
        inside = None if valid is None else valid.unflatten(1, shape)
        each = {layer: self._features(x, shape, dropped, inside) for layer, x in inner.items()}
        return replace(self._features(tokens, shape, dropped, inside), layers=each)

    def positions(
        self, grid: Sequence[int], index: Tensor | None = None, sizes: Tensor | None = None
    ) -> Tensor:
        """Position rows of the patches: (1, N, C), or (B, K, C) of those at `index` (B, K).

        With the true `sizes` (B, 2) of padded images each has the rows of its own grid, (B, N, C).
        """
        own = None if sizes is None else own_grids(sizes, self.unit)
        return tables.fitted(self.pos_embed, self.grid, grid, self.prefix_tokens, index, own)

    def run(
        self, tokens: Tensor, positions: Tensor, key_mask: Tensor | None = None, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Embedded patches (B, K, C) and their position rows -> (B, prefix + K, C) behind the norm, and the `layers`.

        Any subset of the patches in any order. key_mask: bool (B, prefix + K), false for padding.
        """
        tokens = tokens + positions
        if self.cls_token is not None:
            first = self.cls_token + self.pos_embed[:, :1]
            tokens = torch.cat([first.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)
        inner = {}
        for number, block in enumerate(self.blocks, start=1):
            if self.checkpointing and self.training:
                tokens = checkpoint(block, tokens, None, key_mask, use_reentrant=False)
            else:
                tokens = block(tokens, None, key_mask)
            if number in layers:
                inner[number] = tokens
        return self.norm(tokens), inner

    def _features(
        self, tokens: Tensor, shape: Sequence[int], mask: Mask | None, valid: Tensor | None
    ) -> Features:
        """Split (B, prefix + K, C) into prefix and level."""
        prefix = tokens[:, : self.prefix_tokens] if self.prefix_tokens else None
        level = tokens[:, self.prefix_tokens :].unflatten(1, tuple(shape))
        return Features((level,), mask, prefix, valid=valid)

    def _valid(self, sizes: Tensor, grid: tuple[int, int], index: Tensor | None) -> Tensor:
        """Bool (B, K): false where a patch is all padding."""
        valid = valid_cells(sizes, grid, self.unit).flatten(1)
        return valid if index is None else valid.gather(1, index)

    def depth_of(self, name: str) -> int:
        """0: tokens, positions, patch embedding; i + 1: blocks.i; depth + 1: the rest (MAE's fine-tuning, appendix
        A.1).
        """
        if name.startswith(("cls_token", "pos_embed", "patch_embed")):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.depth + 1

    def drop_norm(self) -> bool:
        """As MAE's mean-pooled classifiers do, whose files hold no `norm` (appendix A.1)."""
        self.norm = nn.Identity()
        return True

    def attentions(self) -> Iterator[AttentionSite]:
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                yield AttentionSite(name, module, self.unit, prefix=self.prefix_tokens)


def xavier_linears(module: nn.Module) -> None:
    """MAE's start for every Linear in `module`: Xavier-uniform weight, zero bias."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
