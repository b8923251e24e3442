"""From numbers to what a reader sees: the sections of the analysis page and the charts in each.

A section exists where some model has numbers for it, so a page about a convolutional network or without labels is
shorter, not emptier. What stands under the charts is in `reading`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mimkit import plots
from mimkit.analysis.attention import AttentionStatistics, LayerAttention
from mimkit.analysis.inside import Inspection, Study
from mimkit.analysis.kernels import LayerKernels
from mimkit.analysis.reading import DOTS, READINGS, Reading, of_cka
from mimkit.analysis.similarity import CKA
from mimkit.errors import counted
from mimkit.plots.sheets import evenly

Figures = tuple[plots.Chart | plots.Sheet, ...]


@dataclass(frozen=True)
class Item:
    """Charts or sheets of one kind, and what stands below them."""

    figures: Figures
    reading: Reading


@dataclass(frozen=True)
class Section:
    """name: for addresses. intro: a sentence before the first figure, or ""."""

    name: str
    title: str
    items: tuple[Item, ...]
    intro: str = ""


PATCHES = (
    "Whole images, nothing hidden. Class tokens and registers are left out, and the rest of the attention is brought "
    "back to a sum of one."
)
CLICK = (
    "Click a patch of the sample image, or move with the arrow keys: the map shows where that patch looks."
)
CENTRE = "Depth-wise convolutions read as attention with one query, the kernel's centre: |weight| over the sum of all."


def sections(study: Study) -> list[Section]:
    """The sections of the page that the study has numbers for, in reading order."""
    made = [
        Section("attention", "Where it looks", tuple(_attention(study)), PATCHES),
        Section("maps", "Attention maps", tuple(_sheets(study, "attention-maps")), CLICK),
        Section("kernels", "How far its kernels reach", tuple(_kernels(study)), CENTRE),
        Section("likeness", "Do its layers differ?", tuple(_likeness(study))),
        Section("directions", "How many directions its features use", tuple(_directions(study))),
        Section("features", "Feature maps as colours", tuple(_sheets(study, "features"))),
        Section("probes", "What its layers know about the labels", tuple(_probes(study)), _labels(study)),
        Section("gallery", "What it paints into the gaps", tuple(_sheets(study, "gallery"))),
        Section("training", "How training went", tuple(_runs(study))),
    ]
    return [section for section in made if section.items]


def _item(name: str, *figures: plots.Chart | plots.Sheet) -> Item:
    return Item(figures, READINGS[name])


def _sheets(study: Study, kind: str) -> Iterator[Item]:
    """All sheets of one kind, a model each, with one reading."""
    if found := [sheet for sheet in study.sheets if sheet.name.startswith(kind)]:
        yield _item(kind, *found)


def _colours(study: Study) -> dict[str, int]:
    """The place of each model in the cycle of colours, the same in all charts."""
    return {model.label: place for place, model in enumerate(study.models)}


def _attention(study: Study) -> Iterator[Item]:
    models = [model for model in study.models if model.attention is not None]
    if not models:
        return
    dots = partial(_dots, _colours(study))
    distance = dots(
        models, "distance", "Attention distance", "distance (px)", lambda one: one.uniform_distance
    )
    yield _item("distance", distance)
    if len({model.size for model in models}) > 1 or any(_windowed(model) for model in models):
        title = "Distance over that of uniform attention"
        yield _item("relative-distance", dots(models, "relative_distance", title, "share of uniform"))
    yield _item(
        "entropy",
        dots(models, "entropy", "Entropy of attention", "entropy (nats)", lambda one: one.uniform_entropy),
    )
    several = [model for model in models if model.attention is not None and _several_heads(model.attention)]
    if several:
        yield _item("kl", dots(several, "kl", "How much heads differ", "KL divergence (nats)"))


def _several_heads(found: AttentionStatistics) -> bool:
    return any(layer.heads > 1 for layer in found.layers)


def _windowed(model: Inspection) -> bool:
    return model.attention is not None and any(layer.window for layer in model.attention.layers)


def _dots(
    colours: Mapping[str, int],
    models: Sequence[Inspection],
    metric: str,
    title: str,
    label: str,
    uniform: Callable[[LayerAttention], float] | None = None,
) -> plots.Chart:
    series = []
    for model in models:
        layers = model.attention.layers if model.attention is not None else ()
        values = [layer.by_head()[metric] for layer in layers]
        even = [uniform(layer) for layer in layers] if uniform else None
        series.append(plots.Heads(model.label, values, even, colour=colours[model.label]))
    return plots.head_dots(metric.replace("_", "-"), title, series, label, _unit(label))


def _unit(label: str) -> str:
    """What stands in brackets behind a name."""
    return label.rpartition("(")[2].removesuffix(")") if label.endswith(")") else ""


def _kernels(study: Study) -> Iterator[Item]:
    models = [model for model in study.models if model.kernels is not None]
    if not models:
        return
    colours = _colours(study)
    yield _item(
        "kernel-distance",
        _channels(colours, models, "kernel-distance", "Kernel distance", "distance (px)",
                  lambda one: one.distance, lambda one: one.uniform_distance),
    )  # fmt: skip
    yield _item(
        "kernel-entropy",
        _channels(colours, models, "kernel-entropy", "Kernel entropy", "entropy (nats)",
                  lambda one: one.entropy, lambda one: one.uniform_entropy),
    )  # fmt: skip
    kl = {m.label: [layer.kl for layer in m.kernels.layers] for m in models if m.kernels is not None}
    yield _item(
        "kernel-kl",
        plots.layer_lines("kernel-kl", "How much channels differ", kl, "KL divergence (nats)", True, colours),
    )


def _channels(
    colours: Mapping[str, int],
    models: Sequence[Inspection],
    name: str,
    title: str,
    label: str,
    values: Callable[[LayerKernels], np.ndarray],
    uniform: Callable[[LayerKernels], float],
) -> plots.Chart:
    """Dots of DOTS channels a layer, evenly by rank; the line is the mean of all channels."""
    series = []
    for model in models:
        layers = model.kernels.layers if model.kernels is not None else ()
        kept = [np.argsort(values(one), kind="stable")[evenly(len(values(one)), DOTS)] for one in layers]
        series.append(
            plots.Heads(
                model.label,
                [values(one)[marks] for one, marks in zip(layers, kept, strict=True)],
                [uniform(one) for one in layers],
                [marks.tolist() for marks in kept],
                [float(values(one).mean()) for one in layers],
                "channel",
                colours[model.label],
            )
        )
    return plots.head_dots(name, title, series, label, _unit(label))


def _likeness(study: Study) -> Iterator[Item]:
    own = [model.cka for model in study.models if model.cka is not None]
    if own:
        yield _heat("cka", "between layers", own, [plots.HeatMap(one.model_a, one.values) for one in own])
    if study.cross:
        pairs = [
            plots.HeatMap(f"{one.model_a} and {one.model_b}", one.values, (one.model_a, one.model_b))
            for one in study.cross
        ]
        yield _heat("cka-between", "between two models", study.cross, pairs)


def _heat(name: str, what: str, found: Sequence[CKA], maps: Sequence[plots.HeatMap]) -> Item:
    title = found[0].kind.title
    title = f"{title[0].upper()}{title[1:]} {what}"
    chart = plots.heat_maps(name, title, maps, _floor(one.values for one in found))
    return Item((chart,), of_cka(name, found[0]))


def _floor(values: Iterable[np.ndarray]) -> float:
    """The bottom of the colour scale: from a half up is enough where all values lie there."""
    return 0.5 if min(float(np.nanmin(one)) for one in values) >= 0.5 else 0.0


def _directions(study: Study) -> Iterator[Item]:
    models = {model.label: model.layers.layers for model in study.models if model.layers is not None}
    if not models:
        return
    colours = _colours(study)
    rank = {
        name: [one.effective_rank / len(one.singular) for one in layers] for name, layers in models.items()
    }
    yield _item(
        "effective-rank",
        plots.layer_lines("effective-rank", "Effective rank", rank, "share of all directions", True, colours),
    )
    singular = {name: [one.singular for one in layers] for name, layers in models.items()}
    yield _item("spectrum", plots.spectra("spectrum", "Spectrum of the features", singular))
    waves = {name: [one.high_minus_low for one in layers] for name, layers in models.items()}
    yield _item(
        "frequencies",
        plots.layer_lines(
            "frequencies", "Fine against coarse", waves, "log amplitude, high - low", False, colours
        ),
    )


def _labels(study: Study) -> str:
    table = next((model.probes for model in study.models if model.probes is not None), None)
    if table is None:
        return ""
    images = counted(table.images, "image")
    return f"{images} of {table.classes} classes, {table.folds} folds; features are means over patches."


def _probes(study: Study) -> Iterator[Item]:
    models = {
        model.label: (model.probes.curves(), model.probes.chance)
        for model in study.models
        if model.probes is not None
    }
    if models:
        yield _item("probes", plots.probe_chart(models))


def _runs(study: Study) -> Iterator[Item]:
    if parts := loss_parts(study):
        yield _item("training", plots.run_curves("training", "Training curves", parts))


def loss_parts(study: Study) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Part of the loss -> run -> (steps, values), the total first; only what some run has."""
    names = dict.fromkeys(["loss", *(name for columns in study.runs.values() for name in columns)])
    kept = [name for name in names if name in ("loss", "val/loss") or plots.is_loss_part(name)]
    found = {
        name: {run: columns[name] for run, columns in study.runs.items() if name in columns} for name in kept
    }
    return {name: runs for name, runs in found.items() if runs}
