"""The hybrid convolution-transformer of MCMAE, also known as ConvMAE (Gao et al. 2022, section 3.1, table 7).

Three stages at strides 4, 8 and 16: two of convolution blocks, one of transformer blocks. A mask lives on the stride-16
grid, a hidden unit is hidden in every stage, and masked convolution (section 3.2) keeps hidden units from being read.
Stem, merging, norms, linear layers and MLPs act inside a unit; only the depth-wise convolution looks across, and it
sees visible units alone. So the visible units can be computed without the rest: `ops.units` packs them,
`ops.masked_conv` gathers what their kernels reach. Where little is hidden, or nothing, whole maps are computed with the
mask multiplied in, as published; both give the same numbers.

A map is a batch of single units of its own size here, (B, 1, h, w, C), so the blocks know one layout. Norms, GELUs and
the linear layer behind the last merging are those of the published code, of which the paper does not speak; so are the
names of the parameters. The levels leave the encoder raw: fusion and norm belong to the method, the norm behind the
pooling to the task.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mimkit.encoders.base import AttentionSite, Encoder, Features, Level, blank_padding, own_grids, pad_to
from mimkit.encoders.mcmae_view import UNIT, View, view_of
from mimkit.encoders.vit import xavier_linears
from mimkit.errors import UserError
from mimkit.masks import Mask
from mimkit.ops import positions as tables
from mimkit.ops import units
from mimkit.ops.attention import LAYER_NORM_EPS, Attention, Block, Mlp, drop_path_rates, residual
from mimkit.ops.linear import Linear
from mimkit.ops.masked_conv import depthwise

CONV_EPS = 1e-5  # of the norms in embeddings and convolution blocks, as published
STRIDES = (4, 8, 16)
MASKINGS = ("units", "tokens", "leaky")
LAYERINGS = ("published", "blocks")
BLOCKS = ("blocks1", "blocks2", "blocks3")
THREE = r"(\d+-\d+-\d+)"
CUSTOM = re.compile(rf"mcmae:{THREE}x{THREE}x(\d+)(?:x(\d*\.?\d+-\d*\.?\d+-\d*\.?\d+))?")


class Variant(NamedTuple):
    """One row of table 7: channels, blocks and MLP ratio of each stage, heads of the last."""

    widths: tuple[int, int, int]
    depths: tuple[int, int, int]
    mlp_ratios: tuple[float, float, float]
    heads: int
    paper: str


VARIANTS = {
    "mcmae_tiny": Variant((48, 96, 192), (1, 1, 10), (4, 4, 4), 3, "none: for tests and small sets"),
    "mcmae_small": Variant((128, 256, 384), (2, 2, 11), (4, 4, 4), 6, "Gao et al. 2022, table 7"),
    "mcmae_base": Variant((256, 384, 768), (2, 2, 11), (4, 4, 4), 12, "Gao et al. 2022, table 7"),
    "mcmae_base_star": Variant((256, 384, 768), (2, 2, 11), (8, 8, 4), 12, "Gao et al. 2022, table 7"),
    "mcmae_large": Variant((384, 768, 1024), (2, 2, 23), (8, 8, 4), 16, "Gao et al. 2022, table 7"),
    "mcmae_huge": Variant((768, 1024, 1280), (2, 2, 31), (8, 8, 4), 16, "Gao et al. 2022, table 7"),
}


def build(
    name: str, channels: int = 3, size: Sequence[int] = (224, 224), form: str = "classifier", **options: Any
) -> "MCMAEEncoder":
    """The encoder `name` of VARIANTS, or `mcmae:WIDTHSxDEPTHSxHEADS` with numbers of one's own, for images of
    `channels`, usually of `size` (its grid sets the position table).

    form: "classifier", global attention alone, as it is pre-trained and classifies; or one of `mcmae_forms.FORMS`, for
    dense features. options: those of `MCMAEEncoder`, and of `mcmae_forms.build`.
    """
    from mimkit.encoders.mcmae_forms import build as build_form  # which stands on this file

    row = _row(name)
    return build_form(form, row.widths, row.depths, row.heads, row.mlp_ratios, channels, size, **options)


def custom(
    widths: Sequence[int], depths: Sequence[int], heads: int, mlp_ratios: Sequence[float] = (4, 4, 4)
) -> str:
    """The name under which `build` knows an encoder of these numbers: that of VARIANTS where it has one."""
    wanted = (tuple(widths), tuple(depths), tuple(mlp_ratios), heads)
    for name, row in VARIANTS.items():
        if row[:4] == wanted:
            return name
    parts = ["-".join(f"{n:g}" for n in numbers) for numbers in (widths, depths, (heads,), mlp_ratios)]
    return f"mcmae:{'x'.join(parts[:3] if parts[3] == '4-4-4' else parts)}"


def _row(name: str) -> Variant:
    if name in VARIANTS:
        return VARIANTS[name]
    found = CUSTOM.fullmatch(name)
    heads = int(found[3]) if found else 0
    widths, depths = (_three(found[i]) if found else (0, 0, 0) for i in (1, 2))
    if not heads or not all((*widths, *depths)) or widths[2] % heads:
        raise UserError(
            f"The encoder {name!r} is no MCMAE; write mcmae:WIDTHSxDEPTHSxHEADS, three stages and heads that divide "
            "the last width, as mcmae:48-96-192x1-1-10x3 (and x4-4-4 for other MLP ratios)."
        )
    ratios = [float(n) for n in ((found and found[4]) or "4-4-4").split("-")]
    return Variant(widths, depths, (ratios[0], ratios[1], ratios[2]), heads, "numbers of one's own")


def _three(numbers: str) -> tuple[int, int, int]:
    a, b, c = (int(n) for n in numbers.split("-"))
    return a, b, c


class StageEmbed(nn.Module):
    """Positions merged p x p by a convolution that tiles the map, norm, GELU (section 3.1; norm and GELU: the code)."""

    def __init__(self, channels: int, width: int, p: int) -> None:
        super().__init__()
        self.proj = units.Tiled(channels, width, p)
        self.norm = nn.LayerNorm(width, eps=CONV_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, h, w, C) -> (B, K, h / p, w / p, width)."""
        return F.gelu(self.norm(self.proj(x)))


class ConvBlock(nn.Module):
    """x + conv2(depth-wise(mask * conv1(norm(x)))), then x + mlp(norm(x)) (section 3.1 and 3.2).

    1 x 1 convolutions are linear layers on the last axis. The mask acts behind conv1 and its bias; what is hidden adds
    zero and nothing is scaled up in its place (the published code).
    """

    def __init__(self, width: int, mlp_ratio: float, kernel: int, drop_path: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.conv1 = Linear(width, width)
        self.attn = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)  # depth-wise
        self.conv2 = Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        # the first stages hold their activations until the gradients of all others are there: that is the peak
        self.mlp = Mlp(width, int(width * mlp_ratio), lean=True)
        self.rate = drop_path

    def forward(self, x: Tensor, seen: Tensor | None = None, windows: Tensor | None = None) -> Tensor:
        """Units x (B, K, s, s, C). seen: what may be looked at, bool (B or 1, K, s, s, 1); windows: see `depthwise`."""

        def mixed(_: Tensor | None) -> Tensor:
            z = self.conv1(self.norm1(x))
            if seen is not None:
                z = z * seen.to(z.dtype)
            return self.conv2(depthwise(z, self.attn.weight, self.attn.bias, windows))

        rate = self.rate if self.training else 0.0
        y = residual(x, mixed, rate, parts=False)
        return residual(y, lambda _: self.mlp(self.norm2(y)), rate, parts=False)


class MCMAEEncoder(Encoder):
    """See `build` for the named sizes and `Encoder` for the contract; levels at stride 4, 8 and 16.

    widths, depths, mlp_ratios: of the three stages. kernel: of the depth-wise convolution (table 5: 3 to 9).
    masking: "units", or an ablation of table 5: "tokens" draws the mask on stride-4 tokens, "leaky" lets the
    convolutions see what is hidden. layering: what counts as a layer for layer-wise learning rates and `layers`:
    "published", the transformer blocks alone with all before them at depth 0, or "blocks", every block.
    conv_eps, eps: of the norms in the convolution blocks and in the transformer blocks. block: makes a block of the
    third stage; called in their order.
    """

    hides_by = frozenset({"drop"})
    ends_raw = True
    prefix_tokens = 0
    pack_up_to = 0.7
    """Share of visible units up to which these alone are computed; whole maps are faster above."""

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: int,
        mlp_ratios: Sequence[float] = (4.0, 4.0, 4.0),
        channels: int = 3,
        size: Sequence[int] = (224, 224),
        kernel: int = 5,
        masking: str = "units",
        layering: str = "published",
        positions: str = "sincos",
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        checkpointing: bool = False,
        conv_eps: float = CONV_EPS,
        eps: float = LAYER_NORM_EPS,
        block: Callable[..., Block] = Block,
    ) -> None:
        super().__init__()
        _check_options(kernel, masking, layering)
        self.channels, self.depths, self.masking, self.layering = channels, tuple(depths), masking, layering
        self.depth = depths[2] if layering == "published" else sum(depths)
        self.kernel = kernel
        self.unit = (STRIDES[0],) * 2 if masking == "tokens" else UNIT
        self.levels = tuple(Level((s, s), width) for s, width in zip(STRIDES, widths, strict=True))
        self.grid = (math.ceil(size[0] / 16), math.ceil(size[1] / 16))  # of the position table
        self.checkpointing = checkpointing
        self.patch_embed1 = StageEmbed(channels, widths[0], 4)
        self.patch_embed2 = StageEmbed(widths[0], widths[1], 2)
        self.patch_embed3 = StageEmbed(widths[1], widths[2], 2)
        self.patch_embed4 = Linear(widths[2], widths[2])
        self.pos_embed = tables.new_table(positions, widths[2], self.grid)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.blocks1, self.blocks2 = (
            nn.ModuleList(
                ConvBlock(widths[i], mlp_ratios[i], kernel, next(rates), conv_eps) for _ in range(depths[i])
            )
            for i in (0, 1)
        )
        self.blocks3 = nn.ModuleList(
            block(widths[2], heads, mlp_ratios[2], next(rates), layer_scale, eps) for _ in range(depths[2])
        )
        self._initialise()

    def _initialise(self) -> None:
        """The published start: Xavier-uniform linear layers, and the last merging as one; torch's start for the rest,
        the 1 x 1 convolutions among it.
        """
        xavier_linears(self.blocks3)
        xavier_linears(nn.ModuleList([self.patch_embed4]))
        kernel = self.patch_embed3.proj.weight
        nn.init.xavier_uniform_(kernel.data.view(kernel.shape[0], -1))

    def forward(
        self,
        images: Tensor,
        mask: Mask | None = None,
        mask_token: Tensor | None = None,
        sizes: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        """Features of images (B, C, H, W); see `Encoder.forward`. Levels (B, h, w, C), or (B, K, s, s, C) with s of 4,
        2 and 1 where units were dropped. Sizes that 16 does not divide are padded inside.
        """
        self.check(images, mask, mask_token)
        view = view_of(images, mask, sizes, self.masking, self.kernels, self.pack_up_to)
        if sizes is not None:
            images = blank_padding(images, sizes)
        x = view.cut(pad_to(images, UNIT))  # (B, K, 16, 16, C), or (B, 1, H, W, C)
        levels: list[Tensor] = []
        inner: dict[int, Features] = {}
        number = self.depth - sum(self.depths)  # layers count from 1
        for stage, (embed, blocks) in enumerate(self._front()):
            x = embed(x)
            for block in blocks:
                number += 1
                x = self._run(block, x, view.seen[stage], view.windows[stage])
                if number in layers:
                    inner[number] = Features((view.level(x, stage),), view.dropped)
            levels.append(view.level(x, stage))
        tokens = view.tokens(self.patch_embed4(self.patch_embed3(x)))  # (B, K, C)
        tokens = tokens + self._positions(view, sizes)
        for block, seen in self._last_stage(view, tokens.shape[0]):
            number += 1
            tokens = self._run(block, tokens, *seen)
            if number in layers:
                inner[number] = view.features(tokens)
        last = view.features(tokens)
        return replace(last, levels=(*levels, *last.levels), layers=inner)

    @property
    def kernels(self) -> list[tuple[int, ...]]:
        """Of the depth-wise convolutions in the first two stages."""
        return [(self.kernel, self.kernel)] * 2

    def _front(self) -> Iterator[tuple[nn.Module, nn.ModuleList]]:
        yield self.patch_embed1, self.blocks1
        yield self.patch_embed2, self.blocks2

    def _last_stage(self, view: View, batch: int) -> Iterator[tuple[nn.Module, tuple[Any, ...]]]:
        """The transformer blocks, and what each is called with besides the tokens."""
        for block in self.blocks3:
            yield block, (None, view.valid)

    def _run(self, block: nn.Module, x: Tensor, *options: Any) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(block, x, *options, use_reentrant=False)
        return block(x, *options)

    def _positions(self, view: View, sizes: Tensor | None) -> Tensor:
        """(1, N, C), or (B, K, C) of the units that the transformer sees."""
        index = None if view.dropped is None else view.dropped.visible
        own = None if sizes is None else own_grids(sizes, UNIT)
        return tables.fitted(self.pos_embed, self.grid, view.grid, index=index, own=own)

    def depth_of(self, name: str) -> int:
        """0: all before the transformer; i + 1: blocks3.i; depth + 1: the rest (the published groups). With
        `layering="blocks"` blocks count through the stages and an embedding goes with the block behind it.
        """
        part, _, rest = name.partition(".")
        counted = self.layering == "blocks"
        before = dict(zip(BLOCKS, (0, self.depths[0], sum(self.depths[:2])), strict=True))
        if part in BLOCKS:
            skipped = 0 if counted else before["blocks3"]
            return max(0, before[part] + int(rest.split(".")[0]) + 1 - skipped)
        if part.startswith("patch_embed") or part == "pos_embed":
            behind = {"patch_embed2": before["blocks2"] + 1}.get(part, before["blocks3"] + 1)
            return behind if counted and part != "patch_embed1" else 0
        return self.depth + 1

    def drop_norm(self) -> bool:
        """There is none: whoever pools has to bring one, as the published classifiers do."""
        return True

    def attentions(self) -> Iterator[AttentionSite]:
        for name, module in self.blocks3.named_modules(prefix="blocks3"):
            if isinstance(module, Attention):
                yield AttentionSite(name, module, UNIT)


def _check_options(kernel: int, masking: str, layering: str) -> None:
    if kernel < 3 or kernel % 2 == 0:
        raise UserError(
            f"A depth-wise kernel of {kernel} has no middle to lie on a position; use an odd one: 3, 5, 7 or 9."
        )
    if masking not in MASKINGS:
        raise UserError(f"Unknown masking {masking!r}; known are 'units', 'tokens' and 'leaky'.")
    if layering not in LAYERINGS:
        raise UserError(f"Unknown layering {layering!r}; known are 'published' and 'blocks'.")
