"""Sheets of small pictures with a head a column and a name a row: attention maps, features as colours, galleries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mimkit.plots.files import INK, MUTED
from mimkit.plots.images import canvas, short, show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = 150  # pixels of a picture in a file


@dataclass(frozen=True)
class Sheet:
    """cells: a row of pictures (h, w, 3) in 0..1 for each of `rows`, one below each of `columns`; None stays empty.

    name: for files and ids. crisp: a pixel is a patch and stays a square.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[np.ndarray | None, ...], ...]
    crisp: bool = True


def sheet_figure(sheet: Sheet) -> "Figure":
    """The sheet as a picture; cells have the shape of the first picture."""
    first = next(cell for row in sheet.cells for cell in row if cell is not None)
    tall = round(CELL * first.shape[0] / first.shape[1])
    figure, place = canvas(len(sheet.columns), len(sheet.rows), (CELL, tall), sheet.title, head=18, left=18)
    for y, row in enumerate(sheet.cells):
        for x, image in enumerate(row):
            if image is None and x > 0:
                continue
            axes = place(x, y)
            show_image(
                axes, np.ones_like(first) if image is None else image, CELL
            )  # an empty one bears its row's name
            if y == 0:
                axes.set_title(short(sheet.columns[x], CELL, start=True), fontsize=9, color=INK, pad=4)
            if x == 0:
                axes.set_ylabel(short(sheet.rows[y], tall), fontsize=8, color=MUTED, labelpad=4)
    return figure


def heat(values: np.ndarray, top: float | None = None) -> np.ndarray:
    """(h, w) >= 0 -> (h, w, 3): black 0, bright `top` (None: the largest value); small values are lifted by a root."""
    from matplotlib import colormaps

    top = float(np.max(values)) if top is None else top
    scaled = np.sqrt(np.clip(values / top, 0, 1)) if top > 0 else np.zeros_like(values)
    return np.asarray(colormaps["inferno"](scaled))[..., :3]


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` places of 0..count-1 at even distances, the first and the last among them (of one: the last)."""
    if wanted == 1:
        return [count - 1]
    return sorted({round(x) for x in np.linspace(0, count - 1, min(count, wanted))})


def of_rows(rows: Sequence[Sequence[np.ndarray | None]]) -> tuple[tuple[np.ndarray | None, ...], ...]:
    """Cells as a sheet holds them."""
    return tuple(tuple(row) for row in rows)
