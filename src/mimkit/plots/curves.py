"""Curves of a run and of its probes: one function draws on given axes, another makes the figure around it."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mimkit.plots.files import BLUE, DPI, GREEN, GRID, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 250  # points of a curve: about what a screen resolves
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "s", "^", "D")
DASHES = ((0, (6, 2)), (0, (2, 2)), (0, (6, 2, 1, 2)), (0, (1, 1)))
Series = tuple[np.ndarray, np.ndarray]  # steps, values


@dataclass(frozen=True)
class ProbeCurve:
    """Accuracy (0..1) of one probe over layers. std: spread over folds, or None. random: from untrained weights."""

    label: str
    layers: Sequence[int]
    accuracy: Sequence[float]
    std: Sequence[float] | None = None
    random: bool = False


def loss_curve(
    steps: np.ndarray,
    loss: np.ndarray,
    lr: np.ndarray | None = None,
    trivial: Mapping[str, float] | None = None,
    title: str = "Pre-training loss",
) -> "Figure":
    """Loss over steps, trivial predictors as horizontal lines, the learning rate in a small chart below."""
    figure = _figure(8, 5 if lr is not None else 4)
    ratios = [4, 1] if lr is not None else [1]
    cells = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
    draw_loss(cells[0], (steps, loss), trivial or {})
    head(cells[0], title)
    if lr is not None:
        draw_lines(cells[1], {"": (steps, lr)}, "learning rate")
        cells[0].set_xlabel("")
    return figure


def probe_layers(
    curves: Sequence[ProbeCurve], chance: float | None = None, title: str = "Probe of the frozen features"
) -> "Figure":
    """Accuracy over layers, a line per probe with its spread; hollow and dashed, without it: random weights."""
    figure = _figure(8, 4.4)
    axes = figure.subplots()
    draw_probe_layers(axes, curves, chance)
    head(axes, title)
    return figure


def probe_bars(
    labels: Sequence[str],
    trained: Sequence[float],
    random: Sequence[float],
    spread: tuple[Sequence[float], Sequence[float]] | None = None,
    chance: float | None = None,
    title: str = "Probe of the frozen features",
) -> "Figure":
    """Pre-trained beside random weights, accuracies in 0..1. spread: deviations of both. chance: largest class."""
    figure = _figure(max(5.5, 1.6 + 1.8 * len(labels)), 4)
    axes = figure.subplots()
    tidy(axes, "", "accuracy (%)")
    places = np.arange(len(labels))
    for side, (values, name, colour) in enumerate(
        ((trained, "pre-trained", BLUE), (random, "random weights", ORANGE))
    ):
        x, heights = places + (-0.2, 0.2)[side], 100 * np.asarray(values, dtype=float)
        errors = 100 * np.asarray(spread[side], dtype=float) if spread else np.zeros(len(x))
        axes.bar(x, heights, 0.36, color=colour, label=name, zorder=2)
        if spread:
            axes.errorbar(x, heights, errors, fmt="none", ecolor=INK, elinewidth=1.2, capsize=4, zorder=3)
        for i in range(len(x)):
            text = f"{heights[i]:.1f}" + (f" ± {errors[i]:.1f}" if spread else "")
            _say(axes, text, (x[i], heights[i] + errors[i]), (0, 3), ha="center", size=8)
    axes.set_xticks(places, labels, color=INK)
    top = 100 * max([*trained, *random, 0.01]) + (100 * max([*spread[0], *spread[1]]) if spread else 0)
    axes.set_ylim(0, 1.28 * top)
    _cap(axes, 100)
    _chance(axes, chance)
    legend(axes, "upper right", 2)
    head(axes, title)
    return figure


def draw_loss(axes: "Axes", loss: Series, trivial: Mapping[str, float], fixed: Series | None = None) -> None:
    """The loss, raw and smoothed, in a window of its own; trivial predictors inside it as named lines.

    fixed: the model's loss on the very images and masks of the trivial predictors, as dots.
    """
    steps, values = finite(loss)
    tidy(axes, "step", "loss")
    centre, mean, low, high = thin(steps, values)
    window = max(1, len(centre) // 25)
    many = len(steps) > len(centre)
    if many:
        axes.fill_between(centre, low, high, color=BLUE, alpha=0.18, linewidth=0)
    smooth = _smooth(mean, window)
    axes.plot(centre, mean, color=BLUE, alpha=0.35 if window > 1 else 1, linewidth=1, zorder=3)
    axes.plot(centre, smooth, color=BLUE, linewidth=1.8, marker="o" if len(centre) == 1 else None, zorder=4)
    if fixed is not None:
        axes.plot(*finite(fixed), "o", color=INK, markersize=4, zorder=5)
        values = np.concatenate([values, finite(fixed)[1]])
    bottom, top = (float(v) for v in np.percentile(values, (0, 99.7))) if len(values) else (0.0, 1.0)
    near = {
        name: v for name, v in trivial.items() if bottom - 0.5 * (top - bottom) <= v <= 1.5 * max(top, 1e-9)
    }
    bottom, top = min([bottom, *near.values()]), max([top, *near.values()])
    margin = 0.06 * (top - bottom) or 0.05 * abs(top) or 0.1
    axes.set_ylim(bottom - margin, top + margin)
    far = _beyond({name: value for name, value in trivial.items() if name not in near})
    rows = -(-(len(near) + bool(far)) // 2) + max(0, len(far) - 1)
    make_room(axes, 2 * rows)
    for (name, value), colour, dash in zip(
        near.items(), (VERMILLION, GREEN, PURPLE, ORANGE), DASHES, strict=False
    ):
        axes.axhline(value, color=colour, linestyle=dash, linewidth=1.4, label=f"{words(name)} {value:.3g}")
    if far:
        axes.plot([], [], " ", label="\n".join(far))
    if trivial:
        legend(axes, "upper right", 2)


def _beyond(far: Mapping[str, float]) -> list[str]:
    """The lines of a legend's entry for what lies outside a chart, no wider than a column; names keep their values."""
    each = [f"{words(name)} {value:.3g}".replace(" ", "\u00a0") for name, value in far.items()]
    lines = textwrap.wrap("beyond this chart: " + ", ".join(each), 36) if each else []
    return [line.replace("\u00a0", " ") for line in lines]


def draw_lines(
    axes: "Axes", lines: Mapping[str, Series], ylabel: str, percent: bool = False, zero: bool = False
) -> None:
    """Named series over steps (an empty name: no legend), thinned; few points get markers. zero: start there."""
    tidy(axes, "step", ylabel)
    for index, (name, series) in enumerate(lines.items()):
        steps, values = finite(series)
        centre, mean, low, high = thin(steps, values)
        colour = CYCLE[index % len(CYCLE)]
        if len(steps) > len(centre):
            axes.fill_between(centre, low, high, color=colour, alpha=0.15, linewidth=0)
        marker = MARKERS[index % len(MARKERS)] if len(centre) <= 40 else None
        axes.plot(centre, mean, color=colour, linewidth=1.5, marker=marker, markersize=4, label=name)
    factor = 100 if percent else 1
    axes.yaxis.set_major_formatter(lambda value, _: f"{factor * value:.6g}")
    if zero:
        axes.set_ylim(0, 1.1 * max(axes.get_ylim()[1], 0.01))
    if any(lines):
        make_room(axes, len(lines))
        legend(axes, "upper right", 2)
    if percent:
        _cap(axes, 1)


def draw_probe_layers(
    axes: "Axes", curves: Sequence[ProbeCurve], chance: float | None = None, beside: bool = True
) -> None:
    """See `probe_layers`. A pair of trained and random curves of one label shares colour and marker.

    beside: the legend stands to the right of the axes, else in them.
    """
    tidy(axes, "layer", "accuracy (%)")
    labels = list(dict.fromkeys(curve.label for curve in curves))
    for curve in sorted(curves, key=lambda c: (labels.index(c.label), c.random)):
        place = labels.index(curve.label)
        style: dict[str, Any] = {"color": CYCLE[place % len(CYCLE)], "marker": MARKERS[place % len(MARKERS)]}
        if curve.random:
            style |= {"linestyle": (0, (3, 2)), "markerfacecolor": "none", "alpha": 0.75}
        accuracy = 100 * np.asarray(curve.accuracy, dtype=float)
        name = curve.label + (", random weights" if curve.random else "")
        axes.plot(curve.layers, accuracy, linewidth=1.5, markersize=5, label=name, **style)
        if curve.std is not None and not curve.random:  # eight bands would hide each other
            spread = 100 * np.asarray(curve.std, dtype=float)
            axes.fill_between(
                curve.layers,
                np.maximum(accuracy - spread, 0),
                np.minimum(accuracy + spread, 100),
                color=style["color"],
                alpha=0.12,
                linewidth=0,
            )
    axes.set_xticks(sorted({layer for curve in curves for layer in curve.layers}))
    axes.grid(False, axis="x")
    _chance(axes, chance)
    if beside:
        beyond: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.06, 0.5)}
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, handlelength=2.6, **beyond)
    else:
        make_room(axes, len(curves))
        legend(axes, "upper right", 2)
    _cap(axes, 100)


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """At most BINS points: centre of each bin of steps, and mean, minimum and maximum of its values."""
    pieces = np.array_split(np.arange(len(steps)), min(BINS, len(steps))) if len(steps) else []
    rows = [(steps[p].mean(), values[p].mean(), values[p].min(), values[p].max()) for p in pieces]
    centre, mean, low, high = np.array(rows, dtype=float).reshape(-1, 4).T
    return centre, mean, low, high


def finite(series: Series) -> Series:
    steps, values = (np.asarray(part, dtype=float) for part in series)
    kept = np.isfinite(values)
    return steps[kept], values[kept]


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving average over 2 * (window // 2) + 1 points, fewer at the ends."""
    half = window // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    left = np.maximum(np.arange(len(values)) - half, 0)
    right = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[right] - sums[left]) / (right - left)


def words(name: str) -> str:
    return name.replace("_", " ")


def head(axes: "Axes", title: str) -> None:
    axes.set_title(title, fontsize=11, color=INK, loc="left")


def legend(axes: "Axes", place: Any, columns: int = 1) -> None:
    axes.legend(frameon=False, fontsize=8, loc=place, ncols=columns, labelcolor=INK, handlelength=2.6)


def _cap(axes: "Axes", limit: float) -> None:
    """No ticks above `limit`: room for a legend is no accuracy of 110 %."""
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= min(high, limit)])


def make_room(axes: "Axes", entries: int) -> None:
    """Lift the upper limit so that a legend of two columns stands above the lines: a row takes a tenth of a chart."""
    low, high = axes.get_ylim()
    share = min(0.55, 0.06 + 0.1 * -(-entries // 2)) if entries else 0.0
    axes.set_ylim(low, low + (high - low) / (1 - share))


def tidy(axes: "Axes", xlabel: str, ylabel: str) -> None:
    """Axes without clutter: two spines, a light grid, small muted ticks."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.grid(True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8)
    if xlabel == "step":
        axes.locator_params(axis="x", integer=True)
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)
    for text in (axes.xaxis.get_offset_text(), axes.yaxis.get_offset_text()):
        text.set_color(MUTED)
        text.set_fontsize(8)


def _chance(axes: "Axes", chance: float | None) -> None:
    """A line where a guess of the largest class stands."""
    if chance is None:
        return
    axes.axhline(100 * chance, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.2, zorder=1)
    edge: Any = axes.get_yaxis_transform()  # the right end of the axes, wherever that will lie
    axes.annotate(
        "largest\nclass",
        (1, 100 * chance),
        (3, -7),
        edge,
        textcoords="offset points",
        fontsize=8,
        color=MUTED,
    )


def _say(
    axes: "Axes",
    text: str,
    at: tuple[float, float],
    offset: tuple[int, int],
    ha: str,
    size: int,
    color: str = INK,
) -> None:
    axes.annotate(text, at, offset, textcoords="offset points", ha=ha, fontsize=size, color=color)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")
