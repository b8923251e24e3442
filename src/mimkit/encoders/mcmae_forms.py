"""MCMAE's encoder for dense features: a last stage in windows, with relative positions (Gao et al. 2022, section 3.4).

Detection and segmentation see images of a thousand pixels a side, where global attention in every block is out of
reach. The published code has three forms of the last stage, rows of FORMS: the paper's detector with windows of 16 and
two tables of relative positions that all blocks of a kind share; its successor after ViTDet (Li et al. 2022) with
padded windows of 14 and decomposed positions in each block; and the segmenter with global attention, a table in each
block and layer scale. The windows of the paper's text, 7 x 7 and shifted in every other block, are an option. The
stages before are those of `mcmae`, and so are all parameters that pre-training has: its weights start every form.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mimkit.encoders.base import AttentionSite, Features, pad_to
from mimkit.encoders.mcmae import CONV_EPS, MCMAEEncoder
from mimkit.encoders.mcmae_view import UNIT, View
from mimkit.errors import UserError, nearest
from mimkit.masks import Mask
from mimkit.ops import windows
from mimkit.ops.attention import LAYER_NORM_EPS, Bias, Block, limited, residual
from mimkit.ops.relative import AxisVectors, BiasTable

Pair = tuple[int, int]
PADDINGS = ("masked", "published")


def first_of_groups(depth: int) -> tuple[int, ...]:
    """Global blocks of the paper's detector: 0, 3, 6, 10 of 11."""
    return tuple(sorted({k * (depth - 1) // 3 for k in range(4)}))


def last_of_groups(depth: int) -> tuple[int, ...]:
    """Global blocks of ViTDet, the last of four groups: 1, 4, 7, 10 of 11."""
    return tuple(sorted({max(0, (k + 1) * depth // 4 - 1) for k in range(4)}))


class Form(NamedTuple):
    """window: of the blocks that are not global; None: all are. whole: depth -> the global blocks, counted from 0.
    relative: "shared" tables, a table for each "block", or "axes", vectors for each block. padding: see `FormEncoder`.
    table: the grid of the position table, None for that of the images.
    """

    window: Pair | None
    whole: Callable[[int], tuple[int, ...]]
    relative: str
    padding: str
    table: Pair | None
    conv_eps: float
    eps: float
    layer_scale: float | None


FORMS = {
    "detection": Form(
        (16, 16), first_of_groups, "shared", "masked", None, CONV_EPS, LAYER_NORM_EPS, None
    ),  # 53.2 / 47.1
    "vitdet": Form(
        (14, 14), last_of_groups, "axes", "published", (14, 14), 1e-6, LAYER_NORM_EPS, None
    ),  # 53.9 / 47.6
    "segmentation": Form(
        None, lambda depth: tuple(range(depth)), "block", "masked", None, CONV_EPS, 1e-5, 1.0
    ),  # 51.7
}
NAMES = ("classifier", *FORMS)


def build(
    form: str,
    widths: Sequence[int],
    depths: Sequence[int],
    heads: int,
    mlp_ratios: Sequence[float],
    channels: int,
    size: Sequence[int],
    window: Sequence[int] | None = None,
    global_blocks: Sequence[int] | None = None,
    shifted: bool = False,
    padding: str | None = None,
    table: Sequence[int] | None = None,
    **options: Any,
) -> MCMAEEncoder:
    """The encoder of these sizes (see `MCMAEEncoder`) in a form of NAMES; what is None is as published.

    For the arguments see `FormEncoder`. Raises UserError where they do not go together.
    """
    sizes = (widths, depths, heads, mlp_ratios, channels, size)
    given = {"window": window, "global_blocks": global_blocks, "padding": padding, "table": table}
    chosen = [name for name, value in {**given, "shifted": shifted or None}.items() if value is not None]
    if form == "classifier":
        if chosen:
            raise UserError(
                f"The form 'classifier' attends everywhere and knows no {', '.join(chosen)}; leave that out, or use "
                f"encoder.form={' or '.join(FORMS)}."
            )
        return MCMAEEncoder(*sizes, **options)
    if form not in FORMS:
        raise UserError(f"Unknown form {form!r}; known are {', '.join(NAMES)}.{nearest(form, NAMES)}")
    row = FORMS[form]
    depth = depths[2]
    whole = row.whole(depth) if global_blocks is None else tuple(global_blocks)
    _check(form, row, window, whole, shifted, padding or row.padding, depth)
    options["layer_scale"] = options.get("layer_scale") or row.layer_scale
    return FormEncoder(
        *sizes,
        form,
        _pair(window) or row.window,
        whole,
        shifted,
        padding or row.padding,
        _pair(table) or row.table,
        **{"conv_eps": row.conv_eps, "eps": row.eps, **options},
    )


def _check(
    form: str,
    row: Form,
    window: Sequence[int] | None,
    whole: tuple[int, ...],
    shifted: bool,
    padding: str,
    depth: int,
) -> None:
    outside = [i for i in whole if not 0 <= i < depth]
    if outside:
        raise UserError(
            f"encoder.global_blocks: there is no block {outside[0]} among the {depth} of the last stage; they count "
            f"from 0 to {depth - 1}."
        )
    if row.window is None and (window is not None or shifted or len(set(whole)) < depth):
        raise UserError(
            f"The form {form!r} attends everywhere in every block; leave window, shifted and global_blocks out, or use "
            "encoder.form=detection."
        )
    if padding not in PADDINGS:
        raise UserError(f"Unknown padding {padding!r}; known are {' and '.join(map(repr, PADDINGS))}.")


def _pair(sides: Sequence[int] | None) -> Pair | None:
    return None if sides is None else (sides[0], sides[1])


class FormEncoder(MCMAEEncoder):
    """MCMAE's encoder for dense features; see `build` for the published forms.

    widths .. size, options: those of `MCMAEEncoder`. form: the row of FORMS whose relative positions these are. window:
    (h, w) in units; global_blocks: those of the last stage without windows. shifted: every other block with windows
    rolls them by half a window (section 3.4). padding: "masked", it influences no valid output; "published",
    it takes part as the published ViTDet form has it. table: the grid of the position table where it is another than
    that of the images.
    """

    hides_by = frozenset[str]()

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: int,
        mlp_ratios: Sequence[float],
        channels: int,
        size: Sequence[int],
        form: str,
        window: Pair | None,
        global_blocks: tuple[int, ...],
        shifted: bool,
        padding: str,
        table: Pair | None,
        **options: Any,
    ) -> None:
        grid = (math.ceil(size[0] / UNIT[0]), math.ceil(size[1] / UNIT[1]))
        placed = _windows(window, global_blocks, shifted, depths[2])
        relative = FORMS[form].relative
        makers = iter(
            partial(
                FormBlock, window=cut, shift=shift, relative=_own(relative, cut or grid, widths[2], heads)
            )
            for cut, shift in placed
        )
        tabled = size if table is None else [n * side for n, side in zip(table, UNIT, strict=True)]
        super().__init__(
            widths,
            depths,
            heads,
            mlp_ratios,
            channels,
            tabled,
            block=lambda *arguments: next(makers)(*arguments),
            **options,
        )
        self.form, self.padding, self.window = form, padding, window
        kinds = {"windowed": window, "whole": grid} if relative == "shared" else {}
        self.relative = nn.ModuleDict({kind: BiasTable(of, heads) for kind, of in kinds.items() if of})

    def forward(
        self,
        images: Tensor,
        mask: Mask | None = None,
        mask_token: Tensor | None = None,
        sizes: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        """Levels (B, h, w, C) of images (B, C, H, W); see `Encoder.forward`. It cannot hide cells."""
        if self.padding == "published":
            images, sizes = pad_to(images, UNIT), None
        return super().forward(images, mask, mask_token, sizes, layers)

    def _last_stage(self, view: View, batch: int) -> Iterator[tuple[nn.Module, tuple[Any, ...]]]:
        made: dict[tuple[Pair | None, Pair], Seen] = {}  # one for each kind of block, once a forward
        for block in self.blocks3:
            assert isinstance(block, FormBlock)
            kind = (block.window, block.shift)
            if kind not in made:
                made[kind] = self._seen(view, batch, *kind)
            yield block, (made[kind],)

    def _seen(self, view: View, batch: int, window: Pair | None, shift: Pair) -> "Seen":
        device = self.pos_embed.device
        keys, pairs = view.valid, None
        if window is not None:
            valid = None if view.valid is None else view.valid.unflatten(1, view.grid)
            keys = windows.keys(view.grid, window, shift, valid, self.padding == "masked", device)
            keys = None if keys is None else keys.expand(batch, -1, -1).flatten(0, 1)
            pairs = windows.pairs(view.grid, window, shift, device)
            pairs = None if pairs is None else pairs.repeat(batch, 1, 1)[:, None]
        if not len(self.relative):
            return Seen(view.grid, keys, pairs)
        table = self.relative["whole" if window is None else "windowed"](window or view.grid)
        kind = device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):  # once for all blocks
            table = table.to(torch.get_autocast_dtype(kind))
        return Seen(view.grid, keys, pairs, limited(table, pairs))

    def attentions(self) -> Iterator[AttentionSite]:
        for site, block in zip(super().attentions(), self.blocks3, strict=True):
            assert isinstance(block, FormBlock)
            shift = block.shift if any(block.shift) else None
            yield site._replace(window=block.window, shift=shift)


def _windows(
    window: Pair | None, global_blocks: tuple[int, ...], shifted: bool, depth: int
) -> list[tuple[Pair | None, Pair]]:
    """(window, shift) of each block; shifted and unshifted ones alternate, whatever global ones stand between."""
    placed: list[tuple[Pair | None, Pair]] = []
    odd = False
    for i in range(depth):
        if window is None or i in global_blocks:
            placed.append((None, (0, 0)))
            continue
        placed.append((window, (window[0] // 2, window[1] // 2) if shifted and odd else (0, 0)))
        odd = not odd
    return placed


def _own(relative: str, grid: Sequence[int], width: int, heads: int) -> nn.Module | None:
    """The relative positions that belong to one block."""
    if relative == "shared":
        return None
    return BiasTable(grid, heads) if relative == "block" else AxisVectors(grid, width // heads)


@dataclass(frozen=True)
class Seen:
    """What the blocks of one kind need to know: the grid of the map; keys, bool (B * W, n), false for padding; pairs,
    bool (B * W, 1, n, n), which of them a query may look at in a shifted window; and the bias that they share,
    broadcastable to (B * W, H, n, n), with the pairs already in it. None is no limit.
    """

    grid: Pair
    keys: Tensor | None = None
    pairs: Tensor | None = None
    bias: Tensor | None = None


class FormBlock(Block):
    """A transformer block that attends in windows or knows relative positions of its own.

    window, shift: in positions; None for the whole map. Windows are cut, and padded with zeros, behind the norm.
    """

    def __init__(self, *arguments: Any, window: Pair | None, shift: Pair, relative: nn.Module | None) -> None:
        super().__init__(*arguments)
        self.window, self.shift, self.relative = window, shift, relative

    def forward(self, x: Tensor, seen: Seen) -> Tensor:  # type: ignore[override]
        """(B, h * w, C) -> (B, h * w, C)."""
        rate = self.rate if self.training else 0.0
        y = residual(x, lambda _: self.ls1(self._mixed(self.norm1(x), seen)), rate, parts=False)
        return residual(y, lambda _: self.ls2(self.mlp(self.norm2(y))), rate, parts=False)

    def _mixed(self, x: Tensor, seen: Seen) -> Tensor:
        if self.window is None:
            return self.attn(x, None, seen.keys, self._bias(seen, seen.grid))
        pieces = windows.partition(x.unflatten(1, seen.grid), self.window, self.shift)  # (B * W, n, C)
        pieces = self.attn(pieces, None, seen.keys, self._bias(seen, self.window))
        return windows.merge(pieces, seen.grid, self.window, self.shift).flatten(1, 2)

    def _bias(self, seen: Seen, grid: Pair) -> Bias | None:
        own = self.relative
        if own is None:
            return seen.pairs if seen.bias is None else seen.bias
        if isinstance(own, AxisVectors):
            return lambda q: limited(own(q, grid), seen.pairs)  # type: ignore[return-value]
        return limited(own(grid), seen.pairs)
