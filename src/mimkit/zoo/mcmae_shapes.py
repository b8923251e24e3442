"""What the shapes of a file's tensors say about the MCMAE encoder that they belong to, under our names.

Widths, depths, MLP ratios, kernel, form, windows and grids are shapes; heads are where there are relative positions,
and the blocks without windows where their vectors are longer. The rest is that of the published models.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from mimkit.encoders.mcmae import VARIANTS, custom
from mimkit.encoders.mcmae_forms import FORMS
from mimkit.ops.relative import table_grid
from mimkit.zoo.adapt import exact_root
from mimkit.zoo.mcmae import form_of

Tensors = Mapping[str, Tensor]
HEAD_WIDTH = 64
UNIT = 16
USUAL_GRID = (14, 14)


class Described(NamedTuple):
    """encoder: fields of the section `encoder` of a recipe. size: (h, w) of the images in pixels. told: whether the
    heads are known and not only usual.
    """

    encoder: dict[str, Any]
    size: tuple[int, int]
    told: bool


def is_hybrid(names: Iterable[str]) -> bool:
    """Whether these are the names of a whole MCMAE encoder."""
    known = set(names)
    return {"encoder.patch_embed1.proj.weight", "encoder.blocks3.0.attn.qkv.weight"} <= known


def name_of(tensors: Tensors, heads: int | None = None) -> tuple[str, bool]:
    """The encoder's name, and whether its heads are known: they are `heads`, or those of the relative positions."""
    widths = [tensors[f"encoder.patch_embed{i}.proj.weight"].shape[0] for i in (1, 2, 3)]
    depths = [_depth(tensors, f"encoder.blocks{i}") for i in (1, 2, 3)]
    hidden = [tensors[f"encoder.blocks{i}.0.mlp.fc1.weight"].shape[0] for i in (1, 2, 3)]
    ratios = [_round(n / width) for n, width in zip(hidden, widths, strict=True)]
    seen = heads or _heads(tensors, widths[2])
    usual = (
        row.heads for row in VARIANTS.values() if row[:3] == (tuple(widths), tuple(depths), tuple(ratios))
    )
    known = seen or next(usual, None)
    return custom(widths, depths, known or max(1, widths[2] // HEAD_WIDTH), ratios), known is not None


def describe(tensors: Tensors, heads: int | None = None, grid: tuple[int, ...] | None = None) -> Described:
    """The encoder of these tensors. grid: (h, w) of the position table where that is known."""
    name, told = name_of(tensors, heads)
    form = form_of(tensors) or "classifier"
    table = _table(tensors, grid)
    encoder: dict[str, Any] = {"name": name, "form": form}
    encoder["kernel"] = tensors["encoder.blocks1.0.attn.weight"].shape[-1]
    if "encoder.blocks3.0.ls1.gamma" in tensors:
        encoder["layer_scale"] = 1.0  # where it starts matters to nobody: it is loaded
    whole, window = _relative(tensors, form)
    if window is not None:
        encoder["window"] = window
    if form == "vitdet":
        encoder |= {"global_blocks": _longest(tensors), "table": table}
    elif form == "detection":
        encoder["global_blocks"] = FORMS[form].whole(_depth(tensors, "encoder.blocks3"))
    rows, columns = whole or table
    return Described(encoder, (rows * UNIT, columns * UNIT), told)


def _relative(tensors: Tensors, form: str) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The grids that relative positions are made for: (that of the images, that of a window)."""
    if form == "detection":
        whole, window = (tensors.get(f"encoder.relative.{kind}.table") for kind in ("whole", "windowed"))
        return _grid(whole), _grid(window)
    if form == "segmentation":
        return _grid(tensors["encoder.blocks3.0.relative.table"]), None
    if form != "vitdet":
        return None, None
    lengths = sorted(_lengths(tensors).values())
    whole_grid, window_grid = lengths[-1], lengths[0]
    return whole_grid, window_grid if window_grid != whole_grid else None


def _grid(table: Tensor | None) -> tuple[int, ...] | None:
    """The grid of a table; one that lies end to end does not say."""
    return None if table is None or table.ndim < 3 else table_grid(table)


def _lengths(tensors: Tensors) -> dict[int, tuple[int, int]]:
    """Block -> the (h, w) that its vectors are made for."""
    found = {}
    for name, rows in tensors.items():
        if number := re.fullmatch(r"encoder\.blocks3\.(\d+)\.relative\.rows", name):
            columns = tensors[name.replace("rows", "columns")]
            found[int(number[1])] = ((rows.shape[0] + 1) // 2, (columns.shape[0] + 1) // 2)
    return found


def _longest(tensors: Tensors) -> tuple[int, ...]:
    """The blocks without windows."""
    lengths = _lengths(tensors)
    return tuple(sorted(block for block, grid in lengths.items() if grid == max(lengths.values())))


def _table(tensors: Tensors, grid: tuple[int, ...] | None) -> tuple[int, int]:
    """(h, w) of the position table; published ones are square. One that is not gets the usual grid, which only an
    override of data.size can make fit.
    """
    rows = tensors["encoder.pos_embed"].shape[1]
    if grid is not None and math.prod(grid) == rows:
        return (grid[0], grid[1])
    side = exact_root(rows)
    return (side, side) if side else USUAL_GRID


def _heads(tensors: Tensors, width: int) -> int | None:
    """Heads, from tables (..., heads) or vectors (..., width of a head)."""
    for name, tensor in tensors.items():
        if name.endswith("relative.rows"):
            return width // tensor.shape[1]
        if name.startswith("encoder.") and name.endswith(".table"):
            return tensor.shape[-1]
    return None


def _depth(tensors: Tensors, blocks: str) -> int:
    numbers = [re.match(rf"{re.escape(blocks)}\.(\d+)\.", name) for name in tensors]
    return 1 + max((int(found[1]) for found in numbers if found), default=-1)


def _round(ratio: float) -> float:
    return int(ratio) if ratio == int(ratio) else ratio
