"""What a classifier gets right and wrong: confusion, classes, calibration, the worst mistakes; and several starts
compared.

Where there are more classes than a picture can name, those with the most mistakes are shown and the title says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mimkit.errors import counted
from mimkit.plots.curves import CYCLE, DASHES, MARKERS, head, legend, tidy
from mimkit.plots.files import BLUE, DPI, GRID, INK, MUTED, VERMILLION
from mimkit.plots.images import canvas, cell_size, fitted, short, show_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 30  # classes of a confusion matrix, and rows of a table of classes
LEVEL = 36  # letters of all class names up to which they stand level below a confusion matrix
COUNTED = 16  # classes up to which the cells of a confusion matrix hold numbers


@dataclass(frozen=True)
class ClassBar:
    """One class: images of it, shares found and (of the answers of this class) right, and what it is taken for most.

    accuracy, precision: NaN where there is nothing to divide by.
    """

    name: str
    images: int
    accuracy: float
    precision: float
    taken_for: str = ""


@dataclass(frozen=True)
class StartCurve:
    """Accuracies (0..1) of one start over shares of the labels, mean and deviation over seeds."""

    name: str
    shares: Sequence[float]
    mean: Sequence[float]
    std: Sequence[float]


def confusion_matrix(counts: np.ndarray, classes: Sequence[str], title: str = "") -> "Figure":
    """counts: (classes, classes), images of the row's class taken for the column's; colours are shares of the row."""
    shown = _most_mistaken(counts)
    part, names = counts[np.ix_(shown, shown)], [classes[i] for i in shown]
    images = counts.sum(1)[shown][:, None]
    shares = np.divide(part, images, out=np.zeros(part.shape), where=images > 0)
    side = max(4.2, min(11, 2.4 + 0.32 * len(shown)))
    figure = _figure(side + 0.9, side)
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    level = len(names) * max(map(len, names)) <= LEVEL
    axes.set_xticks(
        range(len(names)),
        [short(name, 110, start=True) for name in names],
        rotation=0 if level else 90,
        fontsize=8,
    )
    axes.set_yticks(range(len(names)), [short(name, 110, start=True) for name in names], fontsize=8)
    axes.tick_params(colors=MUTED, length=0)
    axes.spines[:].set_color(GRID)
    axes.set_xlabel("taken for", fontsize=9, color=INK)
    axes.set_ylabel("class", fontsize=9, color=INK)
    if len(shown) <= COUNTED:
        _write_cells(axes, part, shares)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.02)
    bar.set_label("share of the class", fontsize=8, color=MUTED)
    bar.ax.tick_params(labelsize=8, colors=MUTED)
    bar.outline.set_visible(False)
    note = (
        f" (the {len(shown)} of {len(classes)} classes with most mistakes)"
        if len(shown) < len(classes)
        else ""
    )
    right = f"{int(np.trace(counts))} of {int(counts.sum())} right"
    head(axes, (f"{title}: {right}" if title else right) + note)
    return figure


def class_table(rows: Sequence[ClassBar], title: str = "") -> "Figure":
    """A bar a class, worst first: the share that was found, a mark for precision, its images and its usual mistake."""
    there = [row for row in rows if row.images]
    worst = sorted(there, key=lambda row: (row.accuracy, -row.images))[:SHOWN]
    figure = _figure(8.6, max(2.2, 1.1 + 0.24 * len(worst)))
    axes = figure.subplots()
    tidy(axes, "%", "")
    axes.grid(True, axis="x", color=GRID, linewidth=0.8)
    axes.grid(False, axis="y")
    places = np.arange(len(worst))
    axes.barh(
        places, [100 * row.accuracy for row in worst], 0.66, color=BLUE, label="found (recall)", zorder=2
    )
    precise = [(i, 100 * row.precision) for i, row in enumerate(worst) if np.isfinite(row.precision)]
    if precise:
        axes.plot(
            *zip(*[(x, y) for y, x in precise], strict=True),
            "D",
            color=VERMILLION,
            markersize=5,
            label="right when answered (precision)",
            zorder=3,
            clip_on=False,
        )
    axes.set_yticks(places, [short(row.name, 150, start=True) for row in worst], fontsize=8, color=INK)
    axes.set_ylim(len(worst) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    for i, row in enumerate(worst):
        said = counted(row.images, "image") + (
            f", taken for {short(row.taken_for, 150, start=True)}" if row.taken_for else ""
        )
        axes.annotate(
            said, (1.02, i), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=MUTED
        )
    figure.legend(frameon=False, fontsize=8, loc="outside lower left", ncols=2, labelcolor=INK)
    left_out = f" (the {len(worst)} worst of {len(there)} classes)" if len(worst) < len(there) else ""
    head(axes, title + left_out)
    return figure


def calibration(bins: np.ndarray, error: float, title: str = "") -> "Figure":
    """bins: (n, 3) images, mean confidence, accuracy in equal bins of confidence, NaN where empty. error: 0..1."""
    figure = _figure(5.2, 4.4)
    axes = figure.subplots()
    tidy(axes, "confidence (%)", "accuracy (%)")
    there = bins[:, 0] > 0
    sizes, confidence, accuracy = bins[there, 0], 100 * bins[there, 1], 100 * bins[there, 2]
    axes.plot(
        [0, 100], [0, 100], color=MUTED, linestyle=DASHES[1], linewidth=1.2, label="confidence = accuracy"
    )
    axes.vlines(confidence, accuracy, confidence, color=VERMILLION, linewidth=2, alpha=0.6, zorder=2)
    area = 30 + 300 * sizes / max(1, sizes.sum())
    axes.scatter(
        confidence,
        accuracy,
        area,
        color=BLUE,
        zorder=3,
        label="images of a bin (area: how many)",
        clip_on=False,
    )
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    legend(axes, "upper left")
    head(
        axes,
        f"{title}: calibration error {100 * error:.1f} %"
        if title
        else f"Calibration error {100 * error:.1f} %",
    )
    return figure


def mistakes(
    images: Sequence[np.ndarray],
    truths: Sequence[str],
    guesses: Sequence[str],
    names: Sequence[str],
    title: str = "",
    columns: int = 6,
    channels: tuple[int, ...] | None = None,
) -> "Figure":
    """Images (H, W, C) in 0..1 of any sizes, below each what it is, what it was taken for, and its name."""
    columns = max(1, min(columns, len(images)))
    cell = max(112, cell_size(max(max(image.shape[:2]) for image in images), columns))
    figure, place = canvas(columns, -(-len(images) // columns), (cell, cell), title, below=50)
    for index, image in enumerate(fitted(images, channels)):
        axes = place(index % columns, index // columns)
        show_image(axes, image, cell)
        lines = (
            (short(truths[index], cell, start=True), INK),
            (short(guesses[index], cell, start=True), VERMILLION),
            (short(names[index], cell), MUTED),
        )
        for number, (text, colour) in enumerate(lines):
            axes.annotate(
                text,
                (0.5, 0),
                (0, -12 - 11 * number),
                "axes fraction",
                "offset points",
                ha="center",
                fontsize=8,
                color=colour,
            )
    return figure


def starts(
    panels: Sequence[tuple[str, Sequence[StartCurve]]], chance: float | None, title: str = ""
) -> "Figure":
    """A chart for each way to use an encoder: accuracy over the share of labels, a line with its spread for a start."""
    figure = _figure(max(6.0, 4.6 * len(panels)), 4.6)
    charts = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for number, (axes, (what, curves)) in enumerate(zip(charts, panels, strict=True)):
        tidy(axes, "share of the labels (%)", "accuracy (%)" if number == 0 else "")
        for index, curve in enumerate(curves):
            _draw_start(axes, curve, index, len(curves))
        _share_axis(axes, sorted({share for curve in curves for share in curve.shares}))
        if chance is not None:
            axes.axhline(
                100 * chance, color=MUTED, linestyle=DASHES[3], linewidth=1.2, zorder=1, label="largest class"
            )
        head(axes, what)
    low, high = charts[0].get_ylim()
    charts[0].set_ylim(max(0, low), min(102, high + 0.03 * (high - low)))
    handles, labels = charts[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        frameon=False,
        fontsize=8,
        loc="outside lower center",
        ncols=min(4, len(labels)),
        labelcolor=INK,
    )
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return figure


def _draw_start(axes: "Axes", curve: StartCurve, index: int, count: int) -> None:
    """A line with bars of its spread; starts stand a little apart, so that bars do not cover each other."""
    shift = 1.05 ** (index - (count - 1) / 2)
    places = np.asarray(curve.shares, dtype=float) * 100 * shift
    axes.errorbar(
        places,
        100 * np.asarray(curve.mean, dtype=float),
        100 * np.asarray(curve.std, dtype=float),
        color=CYCLE[index % len(CYCLE)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=6,
        linewidth=1.6,
        capsize=4,
        label=curve.name,
    )


def _share_axis(axes: "Axes", shares: Sequence[float]) -> None:
    """Shares of labels, each a third to a hundred times the next, stand evenly on a logarithmic axis."""
    axes.set_xscale("log")
    axes.set_xticks([100 * share for share in shares], [f"{100 * share:g}" for share in shares])
    axes.minorticks_off()
    axes.set_xlim(100 * shares[0] / 1.6, 100 * shares[-1] * 1.6)


def _most_mistaken(counts: np.ndarray) -> np.ndarray:
    """Classes to show, in order: all, or those that are mistaken or answered by mistake most often."""
    if len(counts) <= SHOWN:
        return np.arange(len(counts))
    wrong = counts - np.diag(np.diag(counts))
    return np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:SHOWN])


def _write_cells(axes: "Axes", counts: np.ndarray, shares: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")
