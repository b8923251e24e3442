"""The charts of `mimkit analyze`: a panel a model on shared axes, dots for heads, a line for layer means, heat maps.

Figures 1 to 4, 6 and 7 of "Revealing the Dark Secrets of Masked Image Modeling" (Xie et al. 2023) in one shape each. A
chart is drawn twice from the same panels: all of them side by side for a file, and one by one for a page, which lays
them out as its reader's screen allows. A panel's `draw` gives back tips: what a reader is told who points at a mark.
"""

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mimkit.plots.curves import (
    CYCLE,
    DASHES,
    MARKERS,
    ProbeCurve,
    Series,
    draw_lines,
    draw_probe_layers,
    finite,
    head,
    legend,
    make_room,
    thin,
    tidy,
    words,
)
from mimkit.plots.files import DPI, INK, MUTED
from mimkit.plots.sheets import evenly

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Tips = dict[str, list[str]]
"""Group of marks (its gid) -> what is said of each mark, in the order in which they were drawn."""
SPOKEN = 48  # points of a long line that say what they are
SHALLOW_TO_DEEP = ("#8fc7b8", "#4fa39b", "#237886", "#0e4a63")
"""Lines of layers; a page turns the order of lightness round on a dark ground."""


@dataclass(frozen=True)
class ChartPanel:
    """One pair of axes: whose they are, how they are drawn, and their size in inches."""

    title: str
    draw: Callable[["Axes"], Tips]
    size: tuple[float, float] = (5.4, 3.3)


@dataclass(frozen=True)
class Chart:
    """Panels that are read together. name: for files and ids."""

    name: str
    title: str
    panels: tuple[ChartPanel, ...]


@dataclass(frozen=True)
class Heads:
    """One model's values of one measure. values: (H,) for each layer. uniform: of a layer that looks alike at all.

    marks: which head or channel each value is of; None counts from 0. means: the line; None takes the means.
    colour: a place in the cycle of colours, the model's own in every chart.
    """

    model: str
    values: Sequence[np.ndarray]
    uniform: Sequence[float] | None = None
    marks: Sequence[Sequence[int]] | None = None
    means: Sequence[float] | None = None
    mark: str = "head"
    colour: int = 0


@dataclass(frozen=True)
class HeatMap:
    """values (rows, columns) between layers, numbered from 1. models: whose the rows and the columns are, where that
    differs.
    """

    title: str
    values: np.ndarray
    models: tuple[str, str] = ("", "")

    def label(self, axis: int) -> str:
        return f"layer of {brief(self.models[axis])}" if self.models[axis] else "layer"

    def said(self, axis: int, place: int) -> str:
        own = self.models[axis]
        return f"{own}, layer {place + 1}" if own else f"layer {place + 1}"


def brief(name: str, most: int = 30) -> str:
    """A name that fits along an axis: what stands in front of colons and slashes goes first."""
    while len(name) > most and (rest := re.split("[:/]", name, maxsplit=1)[1:]):
        name = rest[0]
    return name if len(name) <= most else f"…{name[1 - most :]}"


def panel_of(panel: ChartPanel) -> tuple["Figure", Tips]:
    """One panel alone, without its title (the page sets it)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=panel.size, dpi=DPI, layout="constrained")
    return figure, panel.draw(figure.subplots())


def chart_figure(chart: Chart, columns: int = 3) -> "Figure":
    """All panels of a chart, side by side in rows of at most `columns`."""
    from matplotlib.figure import Figure

    columns = 2 if len(chart.panels) == 4 else min(columns, len(chart.panels))
    rows = -(-len(chart.panels) // columns)
    width, height = (max(panel.size[i] for panel in chart.panels) for i in (0, 1))
    figure = Figure(figsize=(columns * width, rows * height + 0.4), dpi=DPI, layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(cells, chart.panels, strict=False):
        panel.draw(axes)
        head(axes, textwrap.fill(panel.title, int(9 * panel.size[0])))
    for axes in cells[len(chart.panels) :]:
        axes.set_axis_off()
    figure.suptitle(chart.title, fontsize=12, color=INK)
    return figure


def head_dots(
    name: str, title: str, models: Sequence[Heads], ylabel: str, unit: str = "", zero: bool = True
) -> Chart:
    """A dot a head and a line of the layers' means; dotted: uniform attention. All models share the vertical axis.

    zero: the axis begins at 0.
    """
    every = np.concatenate([np.concatenate([*m.values, np.asarray(m.uniform or [])]) for m in models])
    every = every[np.isfinite(every)]
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    from_zero = zero and low >= 0
    margin = 0.07 * (high if from_zero else high - low) or 0.1
    limits = (0.0 if from_zero else low - margin, high + margin)

    def panel(one: Heads) -> ChartPanel:
        return ChartPanel(
            one.model, lambda axes: _draw_heads(axes, one, CYCLE[one.colour % 6], ylabel, unit, limits)
        )

    return Chart(name, title, tuple(panel(one) for one in models))


def _draw_heads(
    axes: "Axes", one: Heads, colour: str, ylabel: str, unit: str, limits: tuple[float, float]
) -> Tips:
    tidy(axes, "layer", ylabel)
    tips: Tips = {}
    layers = np.arange(1, len(one.values) + 1)
    for place, values in enumerate(one.values):
        kept = np.flatnonzero(np.isfinite(values))
        if not len(kept):
            continue
        gid = f"dots-{place + 1}"
        axes.scatter(
            np.full(len(kept), place + 1), values[kept], s=16, color=colour, alpha=0.45, linewidths=0, gid=gid
        )
        marks = one.marks[place] if one.marks else range(len(values))
        tips[gid] = [
            _tip(one, place, f", {one.mark} {marks[i]}", float(values[i]), unit) for i in kept.tolist()
        ]
    given = [float(np.mean(values)) for values in one.values] if one.means is None else one.means
    means = np.asarray(given, dtype=float)
    known = np.isfinite(means)
    axes.plot(layers[known], means[known], color=colour, linewidth=1.8, zorder=3)
    axes.scatter(
        layers[known], means[known], s=34, color=colour, edgecolors=INK, linewidths=0.6, zorder=4, gid="mean"
    )
    if known.any():
        tips["mean"] = [_tip(one, i, ", mean", float(means[i]), unit) for i in np.flatnonzero(known).tolist()]
    if one.uniform is not None:
        axes.step(layers, one.uniform, where="mid", color=MUTED, linestyle=DASHES[3], linewidth=1.3)
    axes.set_ylim(*limits)
    number_layers(axes, len(one.values))
    return tips


def _tip(one: Heads, place: int, what: str, value: float, unit: str) -> str:
    return f"{one.model}, layer {place + 1}{what}: {value:.4g} {unit}".rstrip()


def number_layers(axes: "Axes", count: int) -> None:
    """Ticks at whole layers, not more than fit."""
    step = max(1, -(-count // 12))
    ticks = [1, *range(step, count + 1, step)] if step > 1 else list(range(1, count + 1))
    axes.set_xticks(ticks)
    axes.set_xlim(0.4, count + 0.6)


def heat_maps(name: str, title: str, maps: Sequence[HeatMap], low: float = 0.0) -> Chart:
    """A square a pair of layers, light where they are alike; values are cut to `low`..1 for their colour alone."""

    def panel(one: HeatMap) -> ChartPanel:
        return ChartPanel(one.title, lambda axes: _draw_heat(axes, one, low), (4.6, 4.0))

    return Chart(name, title, tuple(panel(one) for one in maps))


def _draw_heat(axes: "Axes", one: HeatMap, low: float) -> Tips:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    tidy(axes, one.label(1), one.label(0))
    scale, colours = Normalize(low, 1.0), colormaps["cividis"]
    tips: Tips = {}
    for (row, column), value in np.ndenumerate(one.values):
        gid = f"cell-{row + 1}-{column + 1}"
        colour = colours(scale(float(np.clip(value, low, 1)))) if np.isfinite(value) else "none"
        axes.add_patch(Rectangle((column + 0.5, row + 0.5), 1.02, 1.02, color=colour, linewidth=0, gid=gid))
        tips[gid] = [f"{one.said(0, row)}, {one.said(1, column)}: {value:.3f}"]
    rows, columns = one.values.shape
    number_layers(axes, columns)
    axes.set(xlim=(0.5, columns + 0.5), ylim=(0.5, rows + 0.5))
    step = max(1, -(-rows // 12))
    axes.set_yticks([1, *range(step, rows + 1, step)] if step > 1 else range(1, rows + 1))
    axes.set_aspect("equal" if rows == columns else "auto")
    axes.grid(False)
    assert axes.figure is not None
    bar = axes.figure.colorbar(ScalarMappable(scale, colours), ax=axes, shrink=0.9)
    bar.ax.tick_params(colors=MUTED, labelsize=8)
    bar.outline.set_visible(False)
    return tips


def layer_lines(
    name: str,
    title: str,
    lines: Mapping[str, Sequence[float]],
    ylabel: str,
    zero: bool = False,
    colours: Mapping[str, int] | None = None,
) -> Chart:
    """A line a model over its layers, on one pair of axes. zero: the axis begins at 0. colours: as `Heads.colour`."""

    def draw(axes: "Axes") -> Tips:
        tidy(axes, "layer", ylabel)
        tips: Tips = {}
        for place, (model, given) in enumerate(lines.items()):
            kept = np.flatnonzero(np.isfinite(given))
            layers, values = kept + 1, np.asarray(given, dtype=float)[kept]
            own = place if colours is None else colours[model]
            colour, marker = CYCLE[own % 6], MARKERS[own % 4]
            axes.plot(layers, values, color=colour, linewidth=1.5, marker=marker, markersize=5, label=model)
            if len(kept):
                axes.scatter(layers, values, s=26, color=colour, marker=marker, zorder=3, gid=f"line-{place}")
                said = zip(layers.tolist(), values.tolist(), strict=True)
                tips[f"line-{place}"] = [f"{model}, layer {layer}: {value:.4g}" for layer, value in said]
        number_layers(axes, max(map(len, lines.values())))
        if zero:
            axes.set_ylim(0, 1.08 * max(0.01, *(float(np.nanmax(values)) for values in lines.values())))
        if len(lines) > 1:
            make_room(axes, len(lines))
            legend(axes, "upper left", 2)
        return tips

    return Chart(name, title, (ChartPanel("", draw, (6.4, 3.3)),))


def spectra(name: str, title: str, models: Mapping[str, Sequence[np.ndarray]]) -> Chart:
    """Singular values over the largest, of some layers, pale for the first: a flat line uses all directions.

    models: model -> (C,) descending for each layer.
    """

    def panel(model: str, layers: Sequence[np.ndarray]) -> ChartPanel:
        return ChartPanel(model, lambda axes: _draw_spectra(axes, model, layers))

    return Chart(name, title, tuple(panel(model, layers) for model, layers in models.items()))


def _draw_spectra(axes: "Axes", model: str, layers: Sequence[np.ndarray], lowest: float = 1e-4) -> Tips:
    tidy(axes, "direction, share of all", "singular value / largest")
    tips: Tips = {}
    shown = evenly(len(layers), len(SHALLOW_TO_DEEP))
    colours = SHALLOW_TO_DEEP[len(SHALLOW_TO_DEEP) - len(shown) :]
    for number, colour in zip(shown, colours, strict=True):
        values = layers[number][layers[number] > 0]
        if len(values):
            x, values = (np.arange(len(values)) + 0.5) / len(layers[number]), values / values[0]
            axes.plot(x, values, color=colour, linewidth=1.6, label=f"layer {number + 1}")
            spoken, of = evenly(int((values >= lowest).sum()), SPOKEN), len(layers[number])
            tips[f"line-{number}"] = [
                f"{model}, layer {number + 1}, direction {i + 1} of {of}: {values[i]:.3g} of the largest"
                for i in spoken
            ]
            _unseen(axes, x[spoken], values[spoken], f"line-{number}")
    axes.set_yscale("log")
    axes.set_ylim(lowest, 1.5)
    axes.set_xlim(0, 1)
    legend(axes, "lower left")
    return tips


def _unseen(axes: "Axes", x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, gid: str) -> None:
    """Marks that are not seen until a page's reader points at them."""
    axes.scatter(x, y, s=30, color=INK, alpha=0, linewidths=0, gid=gid)


def probe_chart(models: Mapping[str, tuple[Sequence[ProbeCurve], float]]) -> Chart:
    """Accuracies over layers, a panel a model on a shared axis. models: curves, and the share of the largest class."""
    lowest = min(
        min(float(np.min(np.asarray(curve.accuracy) - np.asarray(curve.std or 0))) for curve in curves)
        for curves, _ in models.values()
    )
    low = max(0.0, 100 * min(lowest, *(chance for _, chance in models.values()), 0.95) - 3)

    def panel(model: str, curves: Sequence[ProbeCurve], chance: float) -> ChartPanel:
        return ChartPanel(model, lambda axes: _draw_probes(axes, model, curves, chance, low))

    panels = tuple(panel(model, curves, chance) for model, (curves, chance) in models.items())
    return Chart("probes", "Probes of the frozen features", panels)


def _draw_probes(axes: "Axes", model: str, curves: Sequence[ProbeCurve], chance: float, low: float) -> Tips:
    from matplotlib.ticker import AutoLocator

    draw_probe_layers(axes, curves, chance, beside=False)
    axes.set_ylim(low, 100 + 0.14 * (100 - low))
    axes.yaxis.set_major_locator(AutoLocator())  # the ticks so far are those of the lines alone
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= 100])
    number_layers(axes, max(max(curve.layers) for curve in curves))
    tips: Tips = {}
    for place, curve in enumerate(curves):
        values = [100 * float(value) for value in curve.accuracy]
        _unseen(axes, curve.layers, values, f"probe-{place}")
        said = zip(curve.layers, values, strict=True)
        tips[f"probe-{place}"] = [f"{model}, layer {n}, {curve.label}: {v:.1f} %" for n, v in said]
    return tips


def run_curves(name: str, title: str, parts: Mapping[str, Mapping[str, Series]]) -> Chart:
    """A panel for each part of the loss, a line a run (Figure 7). parts: name -> run -> (steps, values)."""

    def panel(part: str, runs: Mapping[str, Series]) -> ChartPanel:
        def draw(axes: "Axes") -> Tips:
            draw_lines(axes, runs, words(part))
            return dict(_say_runs(axes, words(part), runs))

        return ChartPanel(words(part), draw)

    return Chart(name, title, tuple(panel(part, runs) for part, runs in parts.items()))


def _say_runs(axes: "Axes", part: str, runs: Mapping[str, Series]) -> Iterator[tuple[str, list[str]]]:
    """Marks along each line, as it is drawn: means over a few steps of a long run."""
    for place, (run, series) in enumerate(runs.items()):
        steps, values = thin(*finite(series))[:2]
        spoken = evenly(len(steps), SPOKEN)
        _unseen(axes, steps[spoken], values[spoken], f"run-{place}")
        yield f"run-{place}", [f"{run}, step {steps[i]:.0f}: {part} {values[i]:.4g}" for i in spoken]
