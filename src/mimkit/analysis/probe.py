"""How good are the frozen features? The same small protocol for every encoder, layer and pooling.

Published probe numbers disagree mostly because they differ in layer, pooling and classifier (SimMIM's best layer is not
its last, and masked models rarely keep their best features in the class token). So this probes every few layers, the
class token and the mean of the patches, with k-NN and with logistic regression, by stratified cross-validation or on a
given test split, and the same for random weights: a number means something only beside that one.

An inner layer is probed as it leaves its block; the last one as the encoder returns it, behind the final norm. The
verbs pass encoders through `layers.by_blocks`, so that layers are blocks for all.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mimkit import plots
from mimkit.analysis.classify import check_labels, knn_classify, linear_classify, stratified_folds
from mimkit.data.batch import Batch
from mimkit.encoders.base import Encoder, Features
from mimkit.errors import UserError, counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSIFIERS = {"knn": "k-NN", "linear": "linear"}
POOLINGS = {"cls": "class token", "mean": "mean"}
Key = tuple[str, int, str]  # weights ("trained" or "random"), layer, pooling


@dataclass(frozen=True)
class ProbeRow:
    """One probe. weights: "trained" or "random". accuracy, folds: shares of right answers; std: over the folds.

    std is None with a given test split.
    """

    weights: str
    layer: int
    pooling: str
    classifier: str
    accuracy: float
    std: float | None
    folds: tuple[float, ...]

    def __str__(self) -> str:
        return f"{CLASSIFIERS[self.classifier]} on the {POOLINGS[self.pooling]} of layer {self.layer}"

    @property
    def percent(self) -> str:
        return f"{100 * self.accuracy:.1f}" + (f" ± {100 * self.std:.1f}" if self.std is not None else "")


@dataclass(frozen=True)
class ProbeTable:
    """All probes of an encoder. best: the most accurate row of the trained weights. chance: share of the largest class.

    images: how many were read; tested: those of the given test split, 0 with cross-validation. skipped: unreadable.
    stored_mib: features of all layers and images, which are held together.
    """

    rows: tuple[ProbeRow, ...]
    images: int
    classes: int
    chance: float
    folds: int
    tested: int = 0
    skipped: int = 0
    stored_mib: float = 0.0

    @property
    def best(self) -> ProbeRow:
        return self.best_of("trained")

    def best_of(self, weights: str, classifier: str | None = None, pooling: str | None = None) -> ProbeRow:
        """The most accurate row of `weights`, the deepest of equals. Raises UserError when there is none."""
        rows = [
            row
            for row in self.rows
            if row.weights == weights
            and classifier in (None, row.classifier)
            and pooling in (None, row.pooling)
        ]
        if not rows:
            raise UserError(f"The table holds no probe of {weights} weights.")
        return max(rows, key=lambda row: (row.accuracy, row.layer))

    def metrics(self) -> dict[str, float]:
        """Columns for metrics.jsonl: `knn_mean_layer12`, its `..._std`, and `random_knn_mean_layer12`."""
        made = {}
        for row in self.rows:
            prefix = "" if row.weights == "trained" else "random_"
            name = f"{prefix}{row.classifier}_{row.pooling}_layer{row.layer}"
            made[name] = row.accuracy
            if row.std is not None:
                made[f"{name}_std"] = row.std
        return made

    def lines(self) -> list[str]:
        """The table for a terminal: a line per layer and pooling, then the best in words."""
        how = (
            f"tested on {counted(self.tested, 'other')}"
            if self.tested
            else f"{self.folds}-fold cross-validation"
        )
        largest = f"largest class {100 * self.chance:.1f} %"
        head = f"{counted(self.images, 'image')}, {self.classes} classes, {how}; accuracy in %, {largest}"
        cells = {(r.weights, r.layer, r.pooling, r.classifier): r.percent for r in self.rows}
        columns = list(dict.fromkeys((r.weights, r.classifier) for r in self.rows))
        titles = [CLASSIFIERS[c] + (", random" if w == "random" else "") for w, c in columns]
        made = [head, f"{'layer':>5}  {'pooling':<12}" + "".join(f"{t:>16}" for t in titles)]
        for layer, pooling in dict.fromkeys((r.layer, r.pooling) for r in self.rows):
            values = [cells.get((w, layer, pooling, c), "") for w, c in columns]
            made.append(f"{layer:>5}  {POOLINGS[pooling]:<12}" + "".join(f"{v:>16}" for v in values))
        return [*made, self.verdict()]

    def verdict(self) -> str:
        """The best probe in a sentence, beside the best of the random weights and with what to keep in mind."""
        best = self.best
        text = f"best: {best}, {best.percent} %"
        if any(row.weights == "random" for row in self.rows):
            other = self.best_of("random")
            text += f"; with random weights: {other}, {other.percent} %"
        count = sum(row.weights == "trained" for row in self.rows)
        return text + (f" (the best of {count}, picked on the same images)" if count > 1 else "")

    def curves(self) -> list["plots.ProbeCurve"]:
        """A curve over layers for each classifier, pooling and weights."""
        made = []
        for weights, classifier, pooling in dict.fromkeys(
            (r.weights, r.classifier, r.pooling) for r in self.rows
        ):
            rows = [
                r for r in self.rows if (r.weights, r.classifier, r.pooling) == (weights, classifier, pooling)
            ]
            std = [r.std for r in rows if r.std is not None]
            made.append(
                plots.ProbeCurve(
                    f"{CLASSIFIERS[classifier]}, {POOLINGS[pooling]}",
                    [r.layer for r in rows],
                    [r.accuracy for r in rows],
                    std if len(std) == len(rows) else None,
                    weights == "random",
                )
            )
        return made

    def figure(self, title: str = "Probe of the frozen features") -> "Figure":
        """Accuracy over layers; bars beside random weights where a single layer was probed."""
        if len({row.layer for row in self.rows}) == 1 and any(row.weights == "random" for row in self.rows):
            return self.bars(title)
        return plots.probe_layers(self.curves(), self.chance, title)

    def bars(self, title: str = "Probe of the frozen features") -> "Figure":
        """The best layer of each classifier and pooling beside that of random weights, which must be in the table."""
        kinds = list(dict.fromkeys((r.classifier, r.pooling) for r in self.rows))
        trained = [self.best_of("trained", *kind) for kind in kinds]
        random = [self.best_of("random", *kind) for kind in kinds]
        spread = None
        if all(row.std is not None for row in trained + random):
            spread = ([row.std or 0.0 for row in trained], [row.std or 0.0 for row in random])
        labels = [f"{CLASSIFIERS[c]}, {POOLINGS[p]}" for c, p in kinds]
        return plots.probe_bars(
            labels, [r.accuracy for r in trained], [r.accuracy for r in random], spread, self.chance, title
        )


def probe(
    encoder: Encoder,
    batches: Iterable[Batch],
    test: Iterable[Batch] | None = None,
    random: Encoder | None = None,
    layers: Sequence[int] | None = None,
    poolings: Sequence[str] | None = None,
    classifiers: Sequence[str] = tuple(CLASSIFIERS),
    folds: int = 5,
    seed: int = 0,
    device: torch.device | str = "cpu",
    classes: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> ProbeTable:
    """Probe `encoder` on labelled, normalised batches (`targets` (B,) int64), by cross-validation or on `test`.

    random: the same architecture untrained, probed beside it. layers: which (1..depth; None: about every quarter).
    poolings: "cls", "mean" (None: what the encoder has). classes: names, for messages. progress is told in words.
    The encoders come back in the mode they were in. Raises UserError where the labels do not allow it.
    """
    encoders = {"trained": encoder} | ({} if random is None else {"random": random})
    layers = few_layers(encoder.depth) if layers is None else sorted(set(layers))
    say = progress or (lambda text: None)
    say("reading the features")
    known, labels, skipped = collect(encoders, batches, layers, poolings, device)
    check_labels(labels, folds if test is None else None, classes)
    if test is None:
        fold = stratified_folds(labels, folds, seed)
        asked, answers = known, labels
        splits = [(fold != f, fold == f) for f in range(folds)]
    else:
        asked, answers, more = collect(encoders, test, layers, poolings, device)
        skipped += more
        splits = [(np.ones(len(labels), dtype=bool), np.ones(len(answers), dtype=bool))]
    features = [*known.values(), *(asked.values() if asked is not known else ())]
    rows = []
    for key in known:
        say(f"probing the {POOLINGS[key[2]]} of layer {key[1]}, {key[0]} weights")
        for classifier in classifiers:
            scores = [
                _score(
                    classifier,
                    known[key][train],
                    labels[train],
                    asked[key][held],
                    answers[held],
                    seed,
                    device,
                )
                for train, held in splits
            ]
            rows.append(_row(key, classifier, scores))
    return ProbeTable(
        tuple(rows),
        images=len(labels),
        classes=len(np.unique(labels)),
        chance=float(np.bincount(answers).max() / len(answers)),
        folds=len(splits),
        tested=0 if test is None else len(answers),
        skipped=skipped,
        stored_mib=sum(x.numel() * x.element_size() for x in features) / 2**20,
    )


def few_layers(depth: int, count: int = 4) -> list[int]:
    """About `count` layers of 1..depth at even distances, the last one among them (12 -> 3, 6, 9, 12)."""
    return sorted({math.ceil(depth * i / count) for i in range(1, count + 1)})


def collect(
    encoders: Mapping[str, Encoder],
    batches: Iterable[Batch],
    layers: Sequence[int],
    poolings: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[dict[Key, Tensor], np.ndarray, int]:
    """Features (n, C) float32 on the CPU for every (weights, layer, pooling); labels (n,); how many were unreadable.

    Images are read once for all encoders. Memory: n x C x 4 bytes for each entry.
    """
    parts: dict[Key, list[Tensor]] = {}
    labels: list[np.ndarray] = []
    skipped = 0
    with frozen(*encoders.values()):
        for batch in batches:
            if batch.targets is None:
                raise UserError(
                    "A probe needs labels; name a folder with one folder per class, or a table with a label column."
                )
            images = batch.images.to(device)
            for name, encoder in encoders.items():
                features = encoder(images, layers=layers)
                for layer, pooling, pooled in _pool(encoder, features, layers, poolings):
                    parts.setdefault((name, layer, pooling), []).append(pooled.float().cpu())
            labels.append(torch.as_tensor(batch.targets).cpu().numpy())
            skipped += len(batch.skipped)
    if not labels:
        raise UserError("A probe needs labelled images, and none could be read.")
    return {key: torch.cat(rows) for key, rows in parts.items()}, np.concatenate(labels), skipped


def _pool(
    encoder: Encoder, features: Features, layers: Sequence[int], poolings: Sequence[str] | None
) -> Iterator[tuple[int, str, Tensor]]:
    """(layer, pooling, (B, C)) for everything that is asked for."""
    for layer in layers:
        source = features if layer == encoder.depth else features.layers[layer]
        for pooling in poolings or (("mean",) if features.prefix is None else ("cls", "mean")):
            yield layer, pooling, source.pooled(pooling)


def _score(
    classifier: str,
    train: Tensor,
    labels: np.ndarray,
    test: Tensor,
    answers: np.ndarray,
    seed: int,
    device: torch.device | str,
) -> float:
    """Share of right answers; the arithmetic runs on a GPU when the encoder does (elsewhere on the CPU)."""
    place = torch.device(device) if torch.device(device).type == "cuda" else torch.device("cpu")
    train, test, known = train.to(place), test.to(place), torch.from_numpy(labels).long().to(place)
    classes = int(labels.max()) + 1
    if classifier == "knn":
        given = knn_classify(train, known, test, classes)[2][:, 0]
    elif classifier == "linear":
        given = linear_classify(train, known, test, classes, seed)
    else:
        raise UserError(f"Unknown classifier {classifier!r}; known are 'knn' and 'linear'.")
    return float((given.cpu().numpy() == answers).mean())


def _row(key: Key, classifier: str, scores: Sequence[float]) -> ProbeRow:
    std = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return ProbeRow(*key, classifier, float(np.mean(scores)), std, tuple(scores))


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """The modules in evaluation mode and without gradients; each of their parts goes back to its own mode."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
