"""Several starts of an encoder on one labelled set: tables, spread, and whether a difference is more than noise.

Every start sees the same few labels and the same order for a seed, and is measured on the same images, so differences
are taken pairwise: image by image and seed by seed. Two things make them uncertain: other test images would have given
other differences, and so would other seeds (labels that were drawn, order, initial head). Their variances are added;
what exceeds twice the standard error counts as more than noise. With accuracies that share their images this is far
sharper than comparing two error bars.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mimkit import plots
from mimkit.errors import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USES = {"knn": "k-NN", "linear": "linear probe", "finetune": "fine-tuned"}
JUDGED = "finetune"  # what the verdict is about
ERRORS = 2.0  # standard errors that a difference must exceed


class Gap(NamedTuple):
    """How far one start is ahead of another: the mean difference of accuracies and its standard error, 0..1."""

    mean: float
    error: float

    @property
    def beyond_noise(self) -> bool:
        return self.mean > ERRORS * self.error

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} ± {100 * ERRORS * self.error:.1f} points"


class Key(NamedTuple):
    """One cell: a start, what was done with it (USES), the share of the labels, the seed."""

    start: str
    use: str
    share: float
    seed: int


@dataclass(frozen=True)
class Comparison:
    """All cells. right: for each, bool (n,), which of the test images were classified rightly.

    labels: how many labelled images each share is. chance: share of the largest class among the test images.
    """

    starts: tuple[str, ...]
    labels: dict[float, int]
    seeds: tuple[int, ...]
    classes: int
    chance: float
    right: dict[Key, np.ndarray]

    @property
    def shares(self) -> tuple[float, ...]:
        return tuple(self.labels)

    @property
    def images(self) -> int:
        """Test images."""
        return len(next(iter(self.right.values())))

    def accuracy(self, start: str, use: str, share: float) -> tuple[float, float]:
        """(mean, deviation) over the seeds; the deviation of a single seed is 0."""
        values = self._stack(start, use, share).mean(1)
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0

    def gap(self, ahead: str, behind: str, use: str, share: float) -> Gap:
        """By how much `ahead` is better than `behind`."""
        each = self._stack(ahead, use, share) - self._stack(behind, use, share)  # (seeds, n)
        seeds, images = each.shape
        # Two made-up images, one for either side, keep few images from looking certain (Agresti and Min 2005)
        over_images = np.append(each.mean(0), (1.0, -1.0)).var(ddof=1) / (images + 2)
        over_seeds = each.mean(1).var(ddof=1) / seeds if seeds > 1 else 0.0
        return Gap(float(each.mean()), math.sqrt(over_images + over_seeds))

    def lines(self) -> list[str]:
        """The table and the verdict, for a terminal."""
        width = max(len("start"), *map(len, self.starts))
        heads = [f"{100 * share:g} % ({count})" for share, count in self.labels.items()]
        head = f"{'start':<{width}}  {'':<12}" + "".join(f"{text:>16}" for text in heads)
        said = [
            f"Accuracy in % on {counted(self.images, 'held-out image')} of {self.classes} classes (largest: "
            f"{100 * self.chance:.1f} %), mean ± deviation over {counted(len(self.seeds), 'seed')}; "
            "columns: share of the labels (images)",
            head,
        ]
        for start in self.starts:
            for number, (use, name) in enumerate(USES.items()):
                cells = [self.accuracy(start, use, share) for share in self.shares]
                texts = [f"{100 * mean:.1f} ± {100 * std:.1f}" for mean, std in cells]
                label = start if number == 0 else ""
                said.append(f"{label:<{width}}  {name:<12}" + "".join(f"{text:>16}" for text in texts))
        return [*said, self.verdict()]

    def verdict(self) -> str:
        """Which start wins when fine-tuned, and whether by more than the noise, in one sentence."""
        if len(self.starts) == 1:
            return f"There is one start alone, {self.starts[0]}, so nothing to compare it with."
        found = [(self._leaders(share), share) for share in self.shares]
        clauses = [
            self._clause(leaders, next_best, [share for _, share in group])
            for (leaders, next_best), group in groupby(found, key=lambda pair: pair[0])
        ]
        alone = "" if len(self.seeds) > 1 else " (one seed: how much seeds differ is not known)"
        return f"Fine-tuned, {'; '.join(clauses)} of the labels{alone}."

    def figure(self) -> "Figure":
        """Accuracy over shares for the frozen and for the fine-tuned encoders."""
        panels = []
        for use in ("linear", "finetune"):
            curves = []
            for start in self.starts:
                means, stds = zip(*(self.accuracy(start, use, share) for share in self.shares), strict=True)
                curves.append(plots.StartCurve(start, self.shares, means, stds))
            panels.append((USES[use] + (" of the frozen features" if use == "linear" else ""), curves))
        spread = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else "one seed"
        return plots.starts(panels, self.chance, f"{self.images} held-out images, {spread}")

    def table(self) -> list[dict[str, object]]:
        """A row a start, use and share, for JSON."""
        return [
            {
                "start": start,
                "use": use,
                "share": share,
                "labels": self.labels[share],
                "mean": self.accuracy(start, use, share)[0],
                "std": self.accuracy(start, use, share)[1],
                "seeds": [float(values.mean()) for values in self._stack(start, use, share)],
            }
            for start in self.starts
            for use in USES
            for share in self.shares
        ]

    def _stack(self, start: str, use: str, share: float) -> np.ndarray:
        """(seeds, n) 1.0 where the answer was right."""
        return np.stack([self.right[Key(start, use, share, seed)] for seed in self.seeds]).astype(float)

    def _ranked(self, share: float) -> list[str]:
        """The starts, best first when fine-tuned."""
        return sorted(self.starts, key=lambda start: -self.accuracy(start, JUDGED, share)[0])

    def _leaders(self, share: float) -> tuple[tuple[str, ...], str | None]:
        """(the best start and those that cannot be told from it, in the order given; the best of the others)."""
        best, *others = self._ranked(share)
        beaten = [other for other in others if self.gap(best, other, JUDGED, share).beyond_noise]
        return tuple(start for start in self.starts if start not in beaten), beaten[0] if beaten else None

    def _clause(self, leaders: Sequence[str], next_best: str | None, shares: Sequence[float]) -> str:
        places = []
        for share in shares:
            best, second, *_ = self._ranked(share)
            places.append(f"{100 * share:g} % ({self.gap(best, next_best or second, JUDGED, share)})")
        if next_best is None:
            told = f"{_and(leaders)} cannot be told apart"
        elif len(leaders) > 1:
            told = f"{_and(leaders)}, which cannot be told apart, win over {next_best} by more than the noise"
        else:
            told = f"{leaders[0]} wins over {next_best} by more than the noise"
        return f"{told} at {_and(places)}"


def _and(words: Iterable[str]) -> str:
    *some, last = words
    return f"{', '.join(some)} and {last}" if some else last
