"""Sheets of images, laid out to the pixel: reconstructions beside what was hidden, and contact sheets.

MAE (He et al. 2022) shows original, masked and reconstruction in its figures 2 to 4. For targets that are normalised
per patch, published pictures bring predictions back with the true patch statistics, which gives away much of the
answer; here that panel stands apart and says so.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mimkit.errors import UserError
from mimkit.plots.files import DPI, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HIDDEN = 0.88  # grey of what is hidden
ROWS = 4  # more images stand in two blocks
GUESSED = "prediction (patch mean and contrast guessed from visible patches)"
LEAKING = "prediction with the TRUE patch mean and contrast: leaks the answer"
Channels = tuple[int, ...] | None


@dataclass(frozen=True)
class Views:
    """One way to hide, and what was predicted. hidden: bool (B, H, W). prediction, leaking: (B, H, W, C) in 0..1.

    label: what differs between several views of the same images ("75 % hidden").
    leaking: for normalised targets, the prediction with mean and deviation of the *true* patches; else None.
    """

    label: str
    hidden: np.ndarray
    prediction: np.ndarray
    leaking: np.ndarray | None = None


def reconstruction(
    original: np.ndarray, views: Views, names: Sequence[str] = (), title: str = "", channels: Channels = None
) -> "Figure":
    """A row per image: original, masked, prediction, and for normalised targets the prediction that leaks.

    original: (B, H, W, C). channels: which to show as red, green, blue where there are more than three, from 0.
    """
    columns = [("original", original), (views.label, _masked(original, views.hidden))]
    if views.leaking is None:
        columns.append(("prediction", views.prediction))
    else:
        columns += [(GUESSED, views.prediction), (LEAKING, views.leaking)]
    return _sheet(columns, names, title, channels)


def reconstruction_grid(
    original: np.ndarray,
    views: Sequence[Views],
    names: Sequence[str] = (),
    title: str = "",
    channels: Channels = None,
) -> "Figure":
    """A row per image: the original, then masked and predicted for each of several mask ratios."""
    columns = [("original", original)]
    for view in views:
        columns += [(view.label, _masked(original, view.hidden)), ("prediction", view.prediction)]
    return _sheet(columns, names, title, channels)


def feature_maps(
    original: np.ndarray, maps: Sequence[tuple[str, np.ndarray]], names: Sequence[str] = (), title: str = ""
) -> "Figure":
    """A row per image (B, H, W, C): the image, then the colours (B, h, w, 3) in 0..1 of each labelled feature map,
    every position as large as the pixels it stands for.
    """
    height, width = original.shape[1:3]
    columns = [("original", np.stack([rgb(image) for image in original]))]
    for label, colours in maps:
        down, right = (
            np.arange(n) * m // n for n, m in zip((height, width), colours.shape[1:3], strict=True)
        )
        columns.append((label, colours[:, down][:, :, right]))
    return _sheet(columns, names, title, None)


def contact_sheet(
    images: Sequence[np.ndarray],
    names: Sequence[str],
    title: str = "",
    columns: int = 6,
    channels: Channels = None,
) -> "Figure":
    """Images (H, W, C) of any sizes, each fitted into a square cell with its name below."""
    if not len(images):
        raise UserError("There are no images to put on a contact sheet.")
    columns = max(1, min(columns, len(images)))
    cell = cell_size(max(max(image.shape[:2]) for image in images), columns)
    low, high = _range(images)
    figure, place = canvas(
        columns,
        -(-len(images) // columns),
        (cell, cell),
        title + _notes(images[0], channels, low, high),
        below=16,
    )
    for index, (image, name) in enumerate(zip(images, names, strict=True)):
        axes = place(index % columns, index // columns)
        show_image(axes, (rgb(image, channels) - low) / (high - low), cell)
        axes.annotate(
            short(name, cell),
            (0.5, 0),
            (0, -12),
            "axes fraction",
            "offset points",
            ha="center",
            fontsize=8,
            color=MUTED,
        )
    return figure


def rgb(image: np.ndarray, channels: Channels = None) -> np.ndarray:
    """(H, W, C) -> (H, W, 3): one channel as grey, two as the first in grey, more than three as the chosen three.

    Raises UserError when a chosen channel does not exist.
    """
    count = image.shape[-1]
    chosen = _chosen(count, channels)
    wrong = [c for c in chosen if not 0 <= c < count]
    if wrong or len(chosen) not in (1, 3):
        raise UserError(
            f"Channels {', '.join(map(str, chosen))} cannot be shown: choose one or three from 0 to {count - 1}."
        )
    return image[..., list(chosen) if len(chosen) == 3 else [chosen[0]] * 3]


def fitted(images: Sequence[np.ndarray], channels: Channels = None) -> list[np.ndarray]:
    """Images (H, W, C) as (H, W, 3), all on one scale of brightness, black 0 and white 1."""
    low, high = _range(images)
    return [(rgb(image, channels) - low) / (high - low) for image in images]


def _chosen(count: int, channels: Channels) -> tuple[int, ...]:
    return channels or ((0, 1, 2) if count >= 3 else (0,))


def _notes(image: np.ndarray, channels: Channels, low: float, high: float) -> str:
    """What a reader must know where a sheet does not show the whole image as it is."""
    count, notes = image.shape[-1], []
    if count not in (1, 3) or channels is not None:
        shown = ", ".join(map(str, _chosen(count, channels)))
        notes.append(f"channels {shown} of 0 to {count - 1}")
    if (low, high) != (0.0, 1.0):
        notes.append(f"black {low:.3g}, white {high:.3g}")
    return f"  [{'; '.join(notes)}]" if notes else ""


def _range(images: Sequence[np.ndarray] | np.ndarray) -> tuple[float, float]:
    """Black and white of a sheet: 0 and 1, unless the data fill less than 0.3 of that or leave it (16-bit, float)."""
    sample = np.concatenate([np.asarray(image, dtype=np.float32).ravel()[::7] for image in images])
    low, high = np.percentile(sample[np.isfinite(sample)], (0.5, 99.5))
    usual = low > -0.2 and high < 1.2 and high - low > 0.3
    return (0.0, 1.0) if usual or high - low < 1e-6 else (float(low), float(high))


def _masked(original: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    low, high = _range(original)
    return np.where(hidden[..., None], low + HIDDEN * (high - low), original)


def _sheet(
    columns: Sequence[tuple[str, np.ndarray]], names: Sequence[str], title: str, channels: Channels
) -> "Figure":
    """Columns of images (B, H, W, C) with a head each, one row per image, all on one scale of brightness.

    More than four rows of few columns stand in two blocks side by side, so that a picture fits a screen.
    """
    originals, count = columns[0][1], len(columns)
    height, width = originals.shape[1:3]
    blocks = 2 if len(originals) > ROWS and count <= ROWS else 1
    rows = -(-len(originals) // blocks)
    cell = cell_size(width, count * blocks)
    tall = round(cell * height / width)
    low, high = _range(originals)
    heads = [textwrap.wrap(text, max(8, int(cell / 7.2))) for text, _ in columns]
    title += _notes(originals[0], channels, low, high)
    above = 14 * max(map(len, heads)) + 4
    figure, place = canvas(count, rows, (cell, tall), title, above, left=18 if names else 0, blocks=blocks)
    for x, (_, images) in enumerate(columns):
        for index, image in enumerate(images):
            block, y = divmod(index, rows)
            axes = place(x + block * count, y)
            show_image(axes, (rgb(image, channels) - low) / (high - low), cell)
            if y == 0:
                axes.set_title("\n".join(heads[x]), fontsize=9, color=INK, pad=4)
            if x == 0 and names:
                axes.set_ylabel(short(names[index], tall), fontsize=8, color=MUTED, labelpad=4)
    return figure


def cell_size(side: int, columns: int) -> int:
    """Pixels of a cell: a whole multiple of a small image; at most 224, and about 1200 over all columns."""
    limit = max(96, min(224, 1200 // columns))
    return side * (limit // side) if side <= limit else limit


def short(name: str, pixels: int, start: bool = False) -> str:
    """As much of a name as `pixels` hold: its end, which tells files apart, or its `start`."""
    room = max(8, int(pixels / 6.8))
    if len(name) <= room:
        return name
    return name[: room - 1] + "…" if start else "…" + name[1 - room :]


def show_image(axes: "Axes", image: np.ndarray, cell: int) -> None:
    smooth = "nearest" if max(image.shape[:2]) <= cell else "antialiased"
    axes.imshow(np.clip(np.nan_to_num(image), 0, 1), interpolation=smooth)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def canvas(
    columns: int,
    rows: int,
    cell: tuple[int, int],
    title: str,
    head: int = 0,
    left: int = 0,
    below: int = 0,
    blocks: int = 1,
) -> tuple["Figure", Callable[[int, int], "Axes"]]:
    """A figure measured in pixels, and a function (column, row) -> its axes.

    cell: width, height. head, left, below: room above the first row, left of each block, below each cell. blocks: of
    `columns` columns each, side by side; columns count on from block to block.
    """
    from matplotlib.figure import Figure

    gap, margin, between = 6, 10, 14
    block = left + columns * cell[0] + (columns - 1) * gap
    width = max(2 * margin + blocks * block + (blocks - 1) * between, 300)
    lines = textwrap.wrap(title, int(width / 7))
    top = margin + (16 * len(lines) + 8 if lines else 0) + head
    height = top + rows * (cell[1] + below) + (rows - 1) * gap + margin
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    if lines:
        figure.text(margin / width, 1 - margin / height, "\n".join(lines), va="top", fontsize=10, color=INK)

    def place(column: int, row: int) -> "Axes":
        x = margin + left + column // columns * (block + between) + column % columns * (cell[0] + gap)
        y = top + row * (cell[1] + below + gap) + cell[1]
        return figure.add_axes((x / width, 1 - y / height, cell[0] / width, cell[1] / height))

    return figure, place
