"""What the numbers say, in sentences made by stated rules, each with its numbers and the number of images.

The rules follow what "Revealing the Dark Secrets of Masked Image Modeling" (Xie et al. 2023) reads off its figures; the
thresholds are ours. d is the attention distance over that of uniform attention (inside the layer's own window), e the
entropy over that of uniform attention. "Low" layers are the first third, "high" ones the last; a spread is a standard
deviation over heads. Plain and shifted windows are ranked apart, since windows cut at the border see less.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mimkit.analysis.attention import AttentionStatistics
from mimkit.analysis.similarity import CKA
from mimkit.errors import UserError, counted

BAND = (10.0, 20.0)  # px at 192: AvgDist of the best fine-tuning (figure 2)
RESAMPLES = 200
COLLAPSED = 0.05  # mutual information of query and key below which all queries look nearly alike
UNJUDGED = {  # biased or not -> why the thresholds for unbiased CKA of images say nothing here
    True: "the biased estimate may be far too high for few examples in a block and is not held against the paper",
    False: "findings of the paper are read from CKA of images alone",
}


@dataclass(frozen=True)
class Finding:
    """A rule that fired. rule: its name. text: the sentence. numbers: what it rests on. paper: the related finding."""

    rule: str
    text: str
    numbers: dict[str, float] = field(default_factory=dict)
    paper: str = ""


@dataclass(frozen=True)
class _Curves:
    """(L, H) or (L,) arrays over layers that the rules read."""

    distance: list[np.ndarray]
    entropy: list[np.ndarray]
    kl: np.ndarray
    nmi: np.ndarray
    mass: np.ndarray
    groups: list[list[int]]  # layers that are ranked together

    @property
    def third(self) -> int:
        return max(1, len(self.distance) // 3)

    def mean(self, values: list[np.ndarray]) -> np.ndarray:
        return np.array([each.mean() for each in values])

    def spread(self, values: list[np.ndarray]) -> np.ndarray:
        return np.array([each.std() for each in values])


def sentences(statistics: AttentionStatistics, similarity: CKA | None = None) -> tuple[Finding, ...]:
    """Every rule that fires for one model; a single finding that says so when none does.

    similarity: its CKA with itself, as for `representation`. Where most attention goes to class token or registers a
    warning takes the place of what would be said of distance, entropy and heads.
    """
    curves = _curves(statistics)
    sunk = _trust(curves)
    found = [sunk] if sunk else [made for rule in HEAD_RULES if (made := rule(curves))]
    if len(_fallen(curves)) == len(
        curves.distance
    ):  # no query matters: whatever fires, it is not what the paper saw
        found = [replace(each, paper="") for each in found]
    if collapse := _collapse(curves):
        found.append(collapse)
    if not found and similarity is None:
        text = "No rule applies: distance, entropy and head diversity show none of the patterns that are looked for"
        found = [Finding("none", text)]
    said = [_complete(each, statistics.model, statistics.images) for each in found]
    return (*said, *([] if similarity is None else [representation(similarity)]))


def _complete(found: Finding, model: str, images: int) -> Finding:
    """The finding with whose it is in front and the images that it rests on behind."""
    return replace(found, text=f"{model}: {found.text} ({counted(images, 'image')}).")


def _curves(statistics: AttentionStatistics) -> _Curves:
    layers = [layer.by_head() for layer in statistics.layers]
    kinds = [any(layer.shift or ()) for layer in statistics.layers]
    groups = [[i for i, kind in enumerate(kinds) if kind == wanted] for wanted in (False, True)]
    return _Curves(
        [layer["relative_distance"] for layer in layers],
        [layer["relative_entropy"] for layer in layers],
        np.array([layer["kl"].mean() for layer in layers]),
        np.array([layer["nmi"].mean() for layer in layers]),
        np.array([layer["patch_mass"].mean() for layer in layers]),
        [group for group in groups if len(group) > 1],
    )


def spearman(values: Sequence[float] | np.ndarray) -> float:
    """Rank correlation of values with their position; 0 for values that are all alike."""
    order = np.arange(len(values), dtype=float)
    ranks = _ranks(np.asarray(values, dtype=float))
    if len(values) < 2 or ranks.std() == 0:
        return 0.0
    return float(np.corrcoef(order, ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values share their mean rank."""
    return np.array([((values < v).sum() + (values <= v).sum() - 1) / 2 for v in values])


def _trends(curves: _Curves) -> list[float]:
    """Spearman of layer and mean distance, plain and shifted windows apart."""
    mean = curves.mean(curves.distance)
    return [spearman(mean[group]) for group in curves.groups] or [0.0]


def _local(curves: _Curves) -> Finding | None:
    nearest = max(float(each.min()) for each in curves.distance)
    highest = float(curves.mean(curves.distance).max())
    if nearest > 0.5 or highest > 0.85:
        return None
    text = (
        f"local heads in all layers: every layer has a head at {nearest:.2f} of the uniform distance or less, and no "
        f"layer's mean is above {highest:.2f}"
    )
    return Finding(
        "local", text, {"nearest": nearest, "highest_mean": highest}, "masked image modelling, figure 1"
    )


def _global(curves: _Curves) -> Finding | None:
    mean = curves.mean(curves.distance)
    low, high = float(mean[: curves.third].mean()), float(mean[-curves.third :].mean())
    trend = min(_trends(curves))
    if high < 0.85 or high - low < 0.15 or trend < 0.6:
        return None
    text = (
        f"global in high layers: the mean distance rises from {low:.2f} of the uniform one in the first third to "
        f"{high:.2f} in the last (rank correlation with depth {trend:.2f})"
    )
    return Finding(
        "global", text, {"low": low, "high": high, "spearman": trend}, "supervised models, figure 1"
    )


def _flat(curves: _Curves) -> Finding | None:
    trend = max(_trends(curves))
    if len(curves.distance) < 3 or trend > 0.2:
        return None
    text = f"distance does not grow with depth (rank correlation {trend:.2f})"
    paper = (
        "" if _fallen(curves) else "masked image modelling, figure 1"
    )  # collapsed layers look nowhere of their own
    return Finding("flat", text, {"spearman": trend}, paper)


def _focus(curves: _Curves) -> Finding | None:
    spread = curves.spread(curves.entropy)
    high = slice(-curves.third, None)
    broad, narrow = float(curves.mean(curves.entropy)[high].mean()), float(spread[high].max())
    if float(spread.min()) >= 0.05:
        text = f"diverse focus: heads of every layer differ in entropy by {spread.min():.2f} of the uniform one or more"
        return Finding(
            "diverse_focus", text, {"least_spread": float(spread.min())}, "masked models, figure 3"
        )
    if broad >= 0.9 and narrow < 0.03:
        text = (
            f"broad and uniform at the top: entropy is {broad:.2f} of the uniform one in the last third, and heads "
            f"differ by at most {narrow:.3f}"
        )
        return Finding("broad", text, {"entropy": broad, "spread": narrow}, "supervised models, figure 3")
    return None


def _diversity(curves: _Curves) -> Finding | None:
    kl = curves.kl
    known = kl[~np.isnan(kl)]
    if len(known) < 3 or known.max() <= 0:
        return None
    lost = 0
    while lost < len(known) and known[-1 - lost] <= 0.2 * known.max():
        lost += 1
    if lost >= 2:
        fall = 100 * (1 - float(known[-lost:].mean()) / float(known.max()))
        text = (
            f"head diversity is lost in the last {lost} layers: KL between heads falls by {fall:.0f} % of its highest "
            f"value, to {known[-lost:].mean():.2f} nats"
        )
        return Finding("diversity_lost", text, {"layers": lost, "fall": fall}, "supervised models, figure 4")
    least, middle = float(known[-curves.third :].min()), float(np.median(known))
    if least < 0.5 * middle or float(curves.nmi[-curves.third :].min()) < COLLAPSED:
        return None  # heads that ignore their query keep nothing, however much they differ
    text = (
        f"head diversity is kept: KL between heads in the last third is at least {least:.2f} nats, "
        f"{least / middle:.2f} of the median over layers"
    )
    return Finding("diversity_kept", text, {"least": least, "median": middle}, "masked models, figure 4")


HEAD_RULES: tuple[Callable[[_Curves], Finding | None], ...] = (_local, _global, _flat, _focus, _diversity)


def representation(similarity: CKA) -> Finding:
    """How much a model changes with depth, by its CKA with itself: the pair of layers that are least alike.

    The thresholds are those of unbiased CKA of images; any other kind is told and not judged. Raises UserError for
    CKA of two models.
    """
    if similarity.layers_a != similarity.layers_b or similarity.model_a != similarity.model_b:
        raise UserError(
            "How a model changes with depth follows from its CKA with itself; this one is of two models."
        )
    return _complete(_least_alike(similarity), similarity.model_a, similarity.images)


def _least_alike(similarity: CKA) -> Finding:
    off = similarity.values + np.where(np.eye(len(similarity.values), dtype=bool), np.inf, 0.0)
    if len(off) < 2:
        return Finding("representation", "there is a single layer, and no pair to compare", {})
    i, j = np.unravel_index(int(off.argmin()), off.shape)
    least, kind = float(off[i, j]), similarity.kind
    pair = f"{kind.title} is lowest, {least:.2f}, between layers {min(i, j) + 1} and {max(i, j) + 1}"
    numbers = {"least": least, "layer": float(min(i, j) + 1), "other": float(max(i, j) + 1)}
    if not kind.usual:
        return Finding("lowest_cka", f"{pair}; {UNJUDGED[kind.biased]}", numbers)
    if least >= 0.9:
        return Finding(
            "one_representation", f"one representation: {pair}", numbers, "masked models, figure 6"
        )
    if least <= 0.6:
        return Finding("changes", f"changes with depth: {pair}", numbers, "supervised models, figure 6")
    return Finding("moderate", f"changes moderately with depth: {pair}", numbers, "figure 6")


def _trust(curves: _Curves) -> Finding | None:
    least = float(curves.mass.min())
    if least >= 0.5:
        return None
    text = (
        f"warning: in layer {int(curves.mass.argmin()) + 1} patches give only {least:.2f} of their attention to "
        "patches, the rest to class token or registers; distance, entropy and head diversity say little"
    )
    return Finding("trust", text, {"patch_mass": least})


def _fallen(curves: _Curves) -> list[int]:
    """Layers, from 1, in which all queries look nearly alike."""
    return [i + 1 for i, value in enumerate(curves.nmi.tolist()) if value < COLLAPSED]


def _collapse(curves: _Curves) -> Finding | None:
    fallen = _fallen(curves)
    if not fallen:
        return None
    least = float(curves.nmi.min())
    where = f"layers {_spans(fallen)}" if len(fallen) > 1 else f"layer {fallen[0]}"
    text = f"collapse: in {where} all queries look nearly alike (mutual information down to {least:.3f})"
    return Finding("collapse", text, {"least": least, "layers": float(len(fallen))})


def _spans(numbers: Sequence[int]) -> str:
    """Ascending numbers, three and more neighbours joined: [1, 2, 3, 6, 7] is "1 to 3, 6, 7"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    said = (f"{span[0]} to {span[-1]}" if len(span) > 2 else ", ".join(map(str, span)) for span in spans)
    return ", ".join(said)


def compare(a: AttentionStatistics, b: AttentionStatistics, seed: int = 0) -> Finding:
    """Head diversity of `a` over that of `b` in the last third of their layers, with a bootstrap over the images.

    Resamples images 200 times; the 95 % interval must exclude 1 for a difference. Raises UserError where the two
    were not measured on the same images, or have no layers with several heads.
    """
    if not np.array_equal(a.ids, b.ids):
        raise UserError(
            f"{a.model} and {b.model} were measured on different images; give both the same ones."
        )
    first, second = (_high_kl(each) for each in (a, b))  # (images,)
    draws = np.random.default_rng(seed).integers(0, len(first), (RESAMPLES, len(first)))
    ratios = first[draws].mean(1) / np.maximum(second[draws].mean(1), 1e-12)
    ratio = float(first.mean() / max(second.mean(), 1e-12))
    low, high = (float(value) for value in np.quantile(ratios, [0.025, 0.975]))
    numbers = {"ratio": ratio, "low": low, "high": high}
    interval = (
        f"(95 % interval {low:.2f} to {high:.2f}, {RESAMPLES} resamples of {counted(len(first), 'image')})"
    )
    if low <= 1 <= high:
        text = f"{a.model} and {b.model} do not differ in head diversity in the last third of their layers {interval}."
        return Finding("no_difference", text, numbers)
    text = f"{a.model} keeps {ratio:.2f} times the head diversity of {b.model} in the last third {interval}."
    return Finding("comparison", text, numbers, "figure 4")


def _high_kl(statistics: AttentionStatistics) -> np.ndarray:
    """(images,): KL between heads, mean over the last third of the layers with several heads."""
    layers = [layer.per_image["kl"] for layer in statistics.layers[-max(1, len(statistics.layers) // 3) :]]
    known = [values for values in layers if not np.isnan(values).any()]
    if not known:
        raise UserError(f"{statistics.model} has no layers with several heads in its last third to compare.")
    return np.mean(known, axis=0)


def mask_advice(distance: float, size: Sequence[int]) -> Finding:
    """What AvgDist (px) of a configured mask means for images of `size` (h, w) px; the paper's band is for 192."""
    if math.isnan(distance):
        return Finding("mask", "The mask hides everything or nothing, so AvgDist is not defined.", {})
    scaled = distance * 192 / math.sqrt(size[0] * size[1])
    numbers = {"distance": distance, "at_192": scaled}
    text = f"AvgDist of the mask is {distance:.1f} px on images of {size[0]} x {size[1]}"
    text += "" if tuple(size) == (192, 192) else f", {scaled:.1f} px at 192"
    low, high = BAND
    if low <= scaled <= high:
        where = f"inside the band of the paper ({low:.0f} to {high:.0f} px)"
    else:
        where = f"{'below' if scaled < low else 'above'} the band of the paper ({low:.0f} to {high:.0f} px)"
    return Finding("mask", f"{text}: {where}, which was measured at 192.", numbers, "figure 2")
