"""The charts of a run: which columns of metrics.jsonl belong on one chart, and the picture that holds them all.

`run_panels` leaves out a chart whose columns the run does not have, so a run without a probe or with three rows gives a
smaller report, not an empty one. Both the HTML page (a panel at a time) and report.png are made of the same panels.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mimkit.plots.curves import (
    ProbeCurve,
    Series,
    draw_lines,
    draw_loss,
    draw_probe_layers,
    finite,
    head,
    tidy,
    words,
)
from mimkit.plots.files import DPI, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

PROBE = re.compile(r"probe/(random_)?(knn|linear)_(cls|mean)_layer(\d+)(_std)?$")
ENTROPY = re.compile(r"quality/entropy_layer(\d+)$")
OWN = {  # columns of the engine; any other without a slash is a part of the loss
    *(
        "step",
        "epoch",
        "loss",
        "lr",
        "grad_norm",
        "images_per_second",
        "data_share",
        "seconds",
        "data_seconds",
    ),
    *("peak_share", "nonfinite", "replaced_images", "skipped"),
}
NAMES = {"knn": "k-NN", "linear": "linear", "cls": "class token", "mean": "mean"}
Columns = Mapping[str, Series]


@dataclass(frozen=True)
class Panel:
    """One chart of a run: a name for ids, a title, a sentence on how to read it, and how to draw it."""

    name: str
    title: str
    note: str
    draw: Callable[["Axes"], None]


def run_panels(columns: Columns) -> list[Panel]:
    """The charts that the columns of a run (name -> steps and values) allow, in reading order."""
    columns = {name: series for name, series in columns.items() if len(finite(series)[0])}
    training = (_loss, _parts, _held_out, _held_out_loss, _rate, _gradient, _speed, _share)
    made = (*training, _probe_steps, _probe_layers, _rank, _entropy)
    return [panel for make in made if (panel := make(columns)) is not None]


def panel_figure(panel: Panel, width: float = 5.6, height: float = 3.1) -> "Figure":
    """One panel alone, without its title (the page sets it). width, height: inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    panel.draw(figure.subplots())
    return figure


def run_report(
    panels: Sequence[Panel], title: str, lines: Sequence[str] = (), sample: np.ndarray | None = None
) -> "Figure":
    """All panels on one picture, sentences above them, below them `sample`: (H, W, 3) in 0..1."""
    from matplotlib.figure import Figure

    width = 11.0
    rows = -(-len(panels) // 2)
    text = 0.5 + 0.21 * len(lines)
    shown = 0.0 if sample is None else min(7.0, (width - 0.6) * sample.shape[0] / sample.shape[1]) + 0.4
    height = text + 2.7 * rows + shown
    figure = Figure(figsize=(width, height), dpi=DPI)
    ratios = [text, max(2.7 * rows, 0.01), max(shown, 0.01)]
    _, charts, picture = figure.subfigures(3, 1, height_ratios=ratios, squeeze=False)[:, 0]
    figure.text(0.3 / width, 1 - 0.2 / height, title, va="top", fontsize=13, weight="bold", color=INK)
    figure.text(
        0.3 / width, 1 - 0.5 / height, "\n".join(lines), va="top", fontsize=9, linespacing=1.45, color=INK
    )
    if panels:
        _grid(charts, panels)
    if sample is not None:
        axes = picture.add_axes((0.3 / width, 0.02, 1 - 0.6 / width, 0.9))
        axes.imshow(sample, interpolation="antialiased")
        axes.axis("off")
    return figure


def _grid(part: "FigureBase", panels: Sequence[Panel]) -> None:
    rows = -(-len(panels) // 2)
    cells = part.add_gridspec(
        rows, 2, left=0.07, right=0.97, top=1 - 0.12 / rows, bottom=0.2 / rows, wspace=0.2, hspace=0.5
    )
    for index, panel in enumerate(panels):
        axes = part.add_subplot(cells[index // 2, index % 2])
        panel.draw(axes)
        head(axes, panel.title)


def _loss(columns: Columns) -> Panel | None:
    if "loss" not in columns:
        return None
    trivial = {n.removeprefix("trivial/"): last(s) for n, s in columns.items() if n.startswith("trivial/")}
    trivial.pop("model", None)
    note = "Band: range of the steps behind each point."
    if trivial:
        note = "On the patches that are predicted; band: range of the steps behind each point."
        note += " Dashed: predictors without any learning, on a few images with fixed masks"
        note += "; dots: the model on these." if "trivial/model" in columns else "."
    fixed = columns.get("trivial/model")
    return Panel("loss", "Loss", note, lambda axes: draw_loss(axes, columns["loss"], trivial, fixed))


def is_loss_part(name: str) -> bool:
    """Whether a column of metrics.jsonl is a part of the loss, as the method names it."""
    return "/" not in name and name not in OWN


def _parts(columns: Columns) -> Panel | None:
    """Whatever else a method logs: named scalars beside the total, such as the terms of its loss."""
    parts = {words(name): series for name, series in columns.items() if is_loss_part(name)}
    if not parts:
        return None
    return Panel(
        "parts",
        "Parts of the loss",
        "As the method names them.",
        lambda axes: draw_lines(axes, parts, "loss"),
    )


def _single(
    name: str, title: str, label: str, note: str, percent: bool = False, zero: bool = False
) -> Callable[[Columns], Panel | None]:
    def make(columns: Columns) -> Panel | None:
        if name not in columns:
            return None
        key = name.replace("/", "-")
        return Panel(
            key, title, note, lambda axes: draw_lines(axes, {"": columns[name]}, label, percent, zero)
        )

    return make


_rate = _single("lr", "Learning rate", "learning rate", "Of parameters without a layer factor.")
_gradient = _single("grad_norm", "Gradient norm", "L2 norm", "Before clipping.")
_speed = _single("images_per_second", "Throughput", "images / s", "All processes together.", zero=True)
_share = _single(
    "data_share", "Waiting for data", "share of the step (%)", "0 is best.", percent=True, zero=True
)
_rank = _single(
    "quality/effective_rank",
    "Effective rank",
    "effective rank",
    "How many directions the features of the whole images use; near 1 they have collapsed.",
)


_held_out_loss = _single(
    "val/loss",
    "Loss on held-out images",
    "loss",
    "Without mixing, smoothing and augmentation, so it is no measure for the loss above.",
)


def _held_out(columns: Columns) -> Panel | None:
    """Accuracies of a classifier while it trains."""
    named = {"top-1": "val/top1", "mean per class": "val/mean_per_class"}
    lines = {label: columns[name] for label, name in named.items() if name in columns}
    if len(lines) == 2 and all(
        np.allclose(a, b, equal_nan=True) for a, b in zip(*lines.values(), strict=True)
    ):
        del lines["mean per class"]  # classes of equal size
    if not lines:
        return None
    note = "The weights as they are, not their moving average."
    title = "Accuracy on held-out images"
    return Panel("held-out", title, note, lambda axes: draw_lines(axes, lines, "accuracy (%)", percent=True))


def _probe_steps(columns: Columns) -> Panel | None:
    """The layer that is best at the end, for each probe and pooling."""
    best: dict[str, tuple[float, str, Series]] = {}
    for name, series in columns.items():
        match = PROBE.match(name)
        if match and not match[1] and not match[5]:
            label = f"{NAMES[match[2]]}, {NAMES[match[3]]}"
            entry = (last(series), f"{label}, layer {match[4]}", series)
            best[label] = max(best.get(label, entry), entry, key=lambda e: e[0])
    if not best:
        return None
    lines = {text: (series[0], series[1]) for _, text, series in best.values()}
    note = "Accuracy of the layer that is best at the end, for each classifier and pooling."
    return Panel("probe", "Probe", note, lambda axes: draw_lines(axes, lines, "accuracy (%)", percent=True))


def _probe_layers(columns: Columns) -> Panel | None:
    curves = probe_curves({name: last(series) for name, series in columns.items()})
    if not any(len(curve.layers) > 1 for curve in curves):
        return None
    note = "The last probe, layer by layer; band: deviation over the folds; hollow: random weights."
    return Panel("layers", "Probe by layer", note, lambda axes: draw_probe_layers(axes, curves, beside=False))


def probe_curves(values: Mapping[str, float]) -> list[ProbeCurve]:
    """The curves over layers that columns such as `probe/knn_mean_layer12` (and `..._std`) hold."""
    found: dict[tuple[str, bool], dict[int, str]] = {}
    for name in values:
        match = PROBE.match(name)
        if match and not match[5]:
            label = f"{NAMES[match[2]]}, {NAMES[match[3]]}"
            found.setdefault((label, bool(match[1])), {})[int(match[4])] = name
    curves = []
    for (label, random), by_layer in found.items():
        names = [by_layer[layer] for layer in sorted(by_layer)]
        std = [values[name + "_std"] for name in names] if all(n + "_std" in values for n in names) else None
        curves.append(ProbeCurve(label, sorted(by_layer), [values[name] for name in names], std, random))
    return curves


def _entropy(columns: Columns) -> Panel | None:
    layers = sorted(int(match[1]) for name in columns if (match := ENTROPY.match(name)))
    if not layers:
        return None
    steps = columns[f"quality/entropy_layer{layers[0]}"][0]
    uniform = columns.get("quality/entropy_uniform")

    def draw(axes: "Axes") -> None:
        tidy(axes, "layer", "entropy (nats)")
        for place, colour, name in _moments(len(steps)):
            values = [columns[f"quality/entropy_layer{layer}"][1][place] for layer in layers]
            axes.plot(
                layers, values, "o-", color=colour, markersize=4, label=f"step {int(steps[place])}{name}"
            )
        if uniform is not None:
            axes.axhline(last(uniform), color=MUTED, linestyle=(0, (1, 2)), label="uniform attention")
        axes.set_xticks(layers)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)

    note = "How broadly patches attend, mean over heads: 0 is one patch, the dotted line all patches alike."
    return Panel("entropy", "Attention entropy", note, draw)


def _moments(count: int) -> list[tuple[int, str, str]]:
    """First, middle and last of `count` measurements, light to dark."""
    places = sorted({0, count // 2, count - 1})
    colours = {0: "#9ecae1", count // 2: "#56b4e9", count - 1: "#0072b2"}
    return [(place, colours[place], "") for place in places]


def last(series: Series) -> float:
    """The last finite value."""
    return float(finite(series)[1][-1])
