"""From numbers to what a reader sees: the sections of the analysis page, their charts, and under each chart a sentence
on what it shows, how to read it and which finding of "Revealing the Dark Secrets of Masked Image Modeling" (Xie et al.
2023) it belongs to. A section exists where a model has numbers for it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mimkit import plots
from mimkit.analysis.attention import LayerAttention
from mimkit.analysis.inside import Inspection, Study
from mimkit.analysis.kernels import LayerKernels
from mimkit.plots.sheets import evenly

DOTS = 40  # channels of a layer that are drawn, evenly by rank


@dataclass(frozen=True)
class Item:
    """A chart or a sheet. shows, read, paper: what it is, how it is read, what the paper found with it ("")."""

    figure: plots.Chart | plots.Sheet
    shows: str
    read: str
    paper: str = ""


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    intro: str
    items: tuple[Item, ...]


def sections(study: Study) -> list[Section]:
    """The sections of the page that the study has numbers for, in reading order."""
    made = [_attention(study), _maps(study), _kernels(study), _likeness(study), _directions(study)]
    made += [_features(study), _probes(study), _gallery(study), _runs(study)]
    return [section for section in made if section is not None and section.items]


def _attention(study: Study) -> Section | None:
    models = [model for model in study.models if model.attention is not None]
    if not models:
        return None
    items = [
        Item(
            _dots(
                models,
                "distance",
                "Attention distance",
                "distance (px)",
                "px",
                lambda layer: layer.uniform_distance,
            ),
            "How far, on average, a patch looks in each head: pixels between the centres of query and key, weighted "
            "by attention.",
            "Low dots are heads that look nearby, high ones look across the image; the line is the layer's mean, the "
            "dotted line attention that is the same everywhere.",
            "Figure 1: masked image modelling keeps local and global heads in every layer, with a mean as low as in "
            "the first layers of a supervised model; supervised and contrastive models look further with depth.",
        )
    ]
    if len({model.size for model in models}) > 1 or any(_windowed(model) for model in models):
        items.append(
            Item(
                _dots(
                    models, "relative_distance", "Distance over that of uniform attention", "share of uniform"
                ),
                "The same distance as a share of what uniform attention would have in the same image or window.",
                "1 is attention without any preference. Compare models of different input sizes or windows here, not "
                "in pixels.",
                "Figures 1, 2b and 8: with shifted windows, consecutive blocks zigzag, because shifted blocks see "
                "smaller regions at the edges.",
            )
        )
    items += [
        Item(
            _dots(
                models,
                "entropy",
                "Entropy of attention",
                "entropy (nats)",
                "",
                lambda layer: layer.uniform_entropy,
            ),
            "How broadly a patch spreads its attention in each head.",
            "0 is one patch alone; the dotted line is all patches alike. Spread dots are heads of different focus.",
            "Figure 3: in masked models focused and broad heads stand side by side in all layers; supervised models "
            "are focused below and broad above.",
        ),
        Item(
            _dots(models, "kl", "How much heads differ", "KL divergence (nats)"),
            "Kullback-Leibler divergence between the attention of a head and that of each other head of its layer.",
            "0 means that heads do the same thing twice. Look at the last layers.",
            "Figure 4: supervised models lose nearly all difference in the last three layers, masked models keep "
            "it; after fine-tuning a masked model keeps some of it (Figures 8 to 11).",
        ),
    ]
    return Section(
        "attention",
        "Where it looks",
        "Whole images, nothing hidden. Class tokens and registers are left out, and the rest is brought back to a sum of "
        "one.",
        tuple(items),
    )


def _windowed(model: Inspection) -> bool:
    return model.attention is not None and any(layer.window for layer in model.attention.layers)


def _dots(
    models: Sequence[Inspection],
    metric: str,
    title: str,
    label: str,
    unit: str = "",
    uniform: Callable[[LayerAttention], float] | None = None,
) -> plots.Chart:
    heads = [
        plots.Heads(
            model.label,
            [layer.by_head()[metric] for layer in model.attention.layers],
            [uniform(layer) for layer in model.attention.layers] if uniform else None,
        )
        for model in models
        if model.attention is not None
    ]
    return plots.head_dots(metric.replace("_", "-"), title, heads, label, unit)


def _maps(study: Study) -> Section | None:
    sheets = [sheet for sheet in study.sheets if sheet.name.startswith("attention-maps")]
    items = [
        Item(
            sheet,
            "Where the middle patch (outlined on the image) looks: a row a layer, a column a head.",
            "Black is no attention; each map has its own scale, faint attention is lifted. Narrow spots around the "
            "patch are local heads, even maps look at everything alike.",
            "Figure 1 in pictures: maps that differ along a row are the head diversity of Figure 4.",
        )
        for sheet in sheets
    ]
    intro = "Click a patch of the sample image, or move with the arrow keys: the map shows where that patch looks."
    return Section("maps", "Attention maps", intro, tuple(items)) if items or study.viewer else None


def _kernels(study: Study) -> Section | None:
    models = [model for model in study.models if model.kernels is not None]
    if not models:
        return None
    items = [
        Item(
            _channels(
                models,
                "kernel-distance",
                "Kernel distance",
                "distance (px)",
                lambda layer: layer.distance,
                lambda layer: layer.uniform_distance,
            ),
            f"How far the kernel of a channel reaches from its centre, by the size of its weights ({DOTS} channels a "
            "layer, evenly by rank; the line is the mean of all).",
            "Low dots are channels that use the centre, high ones use the rim; dotted: a kernel with equal weights.",
            "Figure 12: supervised RepLKNet is local in every layer, the masked one mixes local and global channels.",
        ),
        Item(
            _channels(
                models,
                "kernel-entropy",
                "Kernel entropy",
                "entropy (nats)",
                lambda layer: layer.entropy,
                lambda layer: layer.uniform_entropy,
            ),
            "How evenly a kernel's weights are spread.",
            "0 is a single weight; the dotted line all weights alike.",
            "Figure 13: broad and focused channels stand side by side after masked pre-training.",
        ),
        Item(
            plots.layer_lines(
                "kernel-kl",
                "How much channels differ",
                {m.label: [layer.kl for layer in m.kernels.layers] for m in models if m.kernels is not None},
                "KL divergence (nats)",
                zero=True,
            ),
            "Mean Kullback-Leibler divergence between the kernels of a layer, read as attention.",
            "0 means that all channels filter alike.",
            "Figure 14: masked pre-training keeps channels different, most of all in deep layers.",
        ),
    ]
    intro = "Depth-wise convolutions read as attention with one query, the kernel's centre: |weight| over its sum."
    return Section("kernels", "How far its kernels reach", intro, tuple(items))


def _channels(
    models: Sequence[Inspection],
    name: str,
    title: str,
    label: str,
    values: Callable[[LayerKernels], np.ndarray],
    uniform: Callable[[LayerKernels], float],
) -> plots.Chart:
    series = []
    for model in models:
        layers = model.kernels.layers if model.kernels is not None else ()
        marks = [
            np.argsort(values(layer), kind="stable")[evenly(len(values(layer)), DOTS)] for layer in layers
        ]
        series.append(
            plots.Heads(
                model.label,
                [values(layer)[kept] for layer, kept in zip(layers, marks, strict=True)],
                [uniform(layer) for layer in layers],
                [kept.tolist() for kept in marks],
                [float(values(layer).mean()) for layer in layers],
                "channel",
            )
        )
    return plots.head_dots(name, title, series, label, "px" if "px" in label else "")


def _likeness(study: Study) -> Section | None:
    own = [(model.label, model.cka) for model in study.models if model.cka is not None]
    if not own:
        return None
    low = _floor([found.values for _, found in own])
    items = [
        Item(
            plots.heat_maps("cka", "CKA between layers", [plots.HeatMap(n, f.values) for n, f in own], low),
            "How alike what any two layers of a model say about the images is (linear CKA).",
            "1, bright, is the same up to rotation and scale; dark squares are layers that say different things. The "
            "diagonal is 1 by definition.",
            "Figure 6: all layers of a masked model are alike (about 0.9 to 1); those of a supervised one change "
            "with depth. MoCo v3 is like the masked model here, so CKA alone does not tell masked models apart.",
        )
    ]
    if study.cross:
        maps = [
            plots.HeatMap(f"{f.model_a} and {f.model_b}", f.values, _short(f.model_a, f.model_b))
            for f in study.cross
        ]
        low = _floor([found.values for found in study.cross])
        items.append(
            Item(
                plots.heat_maps("cka-between", "CKA between two models", maps, low),
                "How alike each layer of one model and each layer of another are, on the same images.",
                "A bright band along the diagonal: both go the same way at the same depth. Numbers of "
                "layers may differ.",
                "The paper compares layers within a model; between models this is the same measure.",
            )
        )
    return Section("likeness", "Do its layers differ?", "", tuple(items))


def _short(a: str, b: str) -> tuple[str, str]:
    return (f"layer of {a[-24:]}", f"layer of {b[-24:]}")


def _floor(values: Iterable[np.ndarray]) -> float:
    """The bottom of the colour scale: half of 0..1 is enough where all values lie there."""
    lowest = min(float(np.nanmin(one)) for one in values)
    return 0.5 if lowest >= 0.5 else 0.0


def _directions(study: Study) -> Section | None:
    models = {model.label: model.layers for model in study.models if model.layers is not None}
    if not models:
        return None
    rank = {n: [layer.effective_rank / len(layer.singular) for layer in f.layers] for n, f in models.items()}
    singular = {n: [layer.singular for layer in f.layers] for n, f in models.items()}
    waves = {n: [layer.high_minus_low for layer in f.layers] for n, f in models.items()}
    items = [
        Item(
            plots.layer_lines("effective-rank", "Effective rank", rank, "share of all directions", zero=True),
            "How many directions the features of a layer use (exponential of the entropy of the singular values), as a "
            "share of the channels.",
            "Near 0 features have collapsed onto few directions; 1 uses all alike. What is low can be compressed.",
        ),
        Item(
            plots.spectra(
                "spectrum",
                "Spectrum of the features",
                {n: [layer.singular for layer in f.layers] for n, f in models.items()},
            ),
            "Singular values of a layer's features over its largest one, dark for deep layers.",
            "A line that falls at once means that a few directions say almost everything.",
        ),
        Item(
            plots.layer_lines("frequencies", "Fine against coarse", waves, "log amplitude, high - low"),
            "How strong fine structure is against coarse structure in a layer's feature maps (Fourier amplitudes).",
            "High values keep edges and texture, low ones are smooth over the image.",
        ),
    ]
    return Section("directions", "How many directions its features use", "", tuple(items))


def _features(study: Study) -> Section | None:
    items = [
        Item(
            sheet,
            "Feature maps of some layers, and of the last one behind its norm, with the first three principal "
            "components as red, green, blue, fitted over all images together.",
            "Equal colours are equal features: parts that share a colour across images mean the same to the model. "
            "Colours of different layers or models cannot be compared.",
        )
        for sheet in study.sheets
        if sheet.name.startswith("features")
    ]
    return Section("features", "Feature maps as colours", "", tuple(items)) if items else None


def _probes(study: Study) -> Section | None:
    models = [(model.label, model.probes) for model in study.models if model.probes is not None]
    if not models:
        return None

    def panel(label: str, curves: list[plots.ProbeCurve], chance: float) -> plots.ChartPanel:
        from mimkit.plots.curves import draw_probe_layers

        def draw(axes: "plots.Axes") -> plots.Tips:
            draw_probe_layers(axes, curves, chance, beside=False)
            return {}

        return plots.ChartPanel(label, draw)

    panels = tuple(panel(label, table.curves(), table.chance) for label, table in models)
    first = models[0][1]
    items = (
        Item(
            plots.Chart("probes", "Probes of the frozen features", panels),
            f"Accuracy of k-NN and of a linear classifier on each layer's frozen features, {first.images} images of "
            f"{first.classes} classes, {first.folds}-fold cross-validation.",
            "The layer with the best features need not be the last one. Bands: deviation over the folds.",
            "Figures 8 to 11 and Table 1 ask the same of fine-tuned models: what is kept decides what transfers.",
        ),
    )
    return Section("probes", "What its layers know about the labels", "", items)


def _gallery(study: Study) -> Section | None:
    items = [
        Item(
            sheet,
            "What the model paints into hidden patches at several shares of hidden ones; visible patches are put back.",
            "Made without looking at anything hidden. Blur is uncertainty, not a fault: the loss asks for the mean.",
            "The distance that the mask leaves to the nearest visible pixel is what Figure 2 relates to transfer.",
        )
        for sheet in study.sheets
        if sheet.name.startswith("gallery")
    ]
    return Section("gallery", "What it paints into the gaps", "", tuple(items)) if items else None


def _runs(study: Study) -> Section | None:
    parts = loss_parts(study)
    if not parts:
        return None
    item = Item(
        plots.run_curves("training", "Training curves", parts),
        "The loss of each run, and its parts by the names that the method gives them, over steps.",
        "A part that falls faster in one run is learned more easily from its start.",
        "Figure 7: from masked pre-training the localisation loss of a detector falls faster, from supervised "
        "pre-training the classification loss is lower.",
    )
    return Section("training", "How training went", "", (item,))


def loss_parts(study: Study) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Part of the loss -> run -> (steps, values), the total first; only what some run has."""
    from mimkit.plots.run import OWN

    names = dict.fromkeys(["loss", *(name for columns in study.runs.values() for name in columns)])
    kept = [
        name
        for name in names
        if name == "loss" or name == "val/loss" or ("/" not in name and name not in OWN)
    ]
    found = {name: {run: c[name] for run, c in study.runs.items() if name in c} for name in kept}
    return {name: runs for name, runs in found.items() if runs}
