"""How good class predictions are: accuracy, calibration, confusion, and the worst mistakes, summed up batch by batch.

Nothing is kept for each image but the few worst mistakes, so any number of images can be evaluated; confusions are
kept for pairs that occur, so ten thousand classes cost no matrix of a hundred million cells.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mimkit.data.batch import Batch
from mimkit.errors import DataError, UserError, counted
from mimkit.tasks.base import Metric

BINS = 15  # of confidence, for the calibration error (Guo et al. 2017, section 4)
WORST = 36  # mistakes kept
TOP = 5


@dataclass(frozen=True)
class ClassPredictions:
    """logits: (B, classes), float32 or better."""

    logits: Tensor

    @property
    def probabilities(self) -> Tensor:
        """(B, classes), each row sums to 1."""
        return self.logits.softmax(-1)

    def top(self, k: int = TOP) -> tuple[Tensor, Tensor]:
        """(probabilities, classes), both (B, k), best first, ties: lower class; k is cut to the classes there are."""
        values, order = self.probabilities.sort(dim=1, descending=True, stable=True)
        return values[:, :k], order[:, :k]


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for another class: its id, both classes, and how sure the model was."""

    id: int
    truth: int
    predicted: int
    confidence: float


@dataclass(frozen=True)
class ClassRow:
    """One class. images: of it; right: how many were found; predicted: how often it was answered. taken_for: what its
    images are most often mistaken for, and how often; None when never.
    """

    name: str
    images: int
    right: int
    predicted: int
    taken_for: tuple[str, int] | None

    @property
    def accuracy(self) -> float:
        """Share of its images that were found (recall); NaN when there are none."""
        return self.right / self.images if self.images else float("nan")

    @property
    def precision(self) -> float:
        """Share of the answers of this class that were right; NaN when there were none."""
        return self.right / self.predicted if self.predicted else float("nan")


class ClassMetric(Metric[ClassPredictions]):
    """See `result` for the numbers; `rows`, `confusion` and `mistakes` say more."""

    def __init__(self, classes: Sequence[str], worst: int = WORST) -> None:
        self.classes, self._keep = tuple(classes), worst
        self._images = np.zeros(len(classes), np.int64)  # of each class
        self._pairs: Counter[tuple[int, int]] = Counter()  # (truth, predicted) -> images
        self._top5, self._loss = 0, 0.0
        self._bins = np.zeros((BINS, 3))  # images, sum of confidences, right answers
        self._worst: list[Mistake] = []

    def update(self, batch: Batch, predictions: ClassPredictions) -> None:
        """Take in answers for a batch with labels (B,) int64. An answer that is not finite is wrong.

        Raises UserError without labels, DataError for a label that is no class.
        """
        truths, logits = self._labels(batch), _on_cpu(predictions.logits)
        finite = logits.isfinite().all(1)
        own = logits.gather(1, truths[:, None])
        lower = torch.arange(logits.shape[1]) < truths[:, None]
        rank = ((logits > own) | ((logits == own) & lower)).sum(1)  # ties: the lower class is answered
        right = finite & (rank == 0)
        confidence, predicted = logits.softmax(1).nan_to_num(0.0).max(1)
        predicted = torch.where(right, truths, predicted)
        self._images += np.bincount(truths.numpy(), minlength=len(self.classes))
        self._pairs.update(
            (t, p)
            for t, p, ok in zip(truths.tolist(), predicted.tolist(), finite.tolist(), strict=True)
            if ok
        )
        self._top5 += int((finite & (rank < TOP)).sum())
        self._loss += float((logits.logsumexp(1, keepdim=True) - own).sum())
        self._count_bins(confidence.numpy(), right.numpy(), finite.numpy())
        wrong = (finite & ~right).nonzero().flatten().tolist()
        found = [
            Mistake(int(batch.ids[i]), int(truths[i]), int(predicted[i]), float(confidence[i])) for i in wrong
        ]
        self._note(found)

    def merge(self, others: Sequence["Metric[ClassPredictions]"]) -> None:
        for other in others:
            assert isinstance(other, ClassMetric) and other.classes == self.classes
            self._images += other._images
            self._pairs.update(other._pairs)
            self._top5 += other._top5
            self._loss += other._loss
            self._bins += other._bins
            self._note(other._worst)

    @property
    def images(self) -> int:
        return int(self._images.sum())

    def result(self) -> dict[str, float]:
        """top1, top5: shares of the images whose class comes first, or among the first five (all, when there are no
        more). mean_per_class: mean over the classes that have images. calibration_error: mean distance of confidence
        and accuracy over 15 equal bins of confidence, weighted by images (Guo et al. 2017). loss: mean cross-entropy.

        Raises DataError when no image was evaluated.
        """
        if not self.images:
            raise DataError("Not one image could be evaluated.")
        right = self._right()
        there = self._images > 0
        sizes, confidence, hits = self._bins.T
        return {
            "top1": int(right.sum()) / self.images,
            "top5": self._top5 / self.images,
            "mean_per_class": float((right[there] / self._images[there]).mean()),
            "calibration_error": float(np.abs(confidence - hits).sum() / max(1.0, sizes.sum())),
            "loss": self._loss / self.images,
            "images": float(self.images),
        }

    def rows(self) -> list[ClassRow]:
        """Every class in its own row, in order."""
        right = self._right()
        answered = Counter[int]()
        confused: dict[int, tuple[int, int]] = {}  # truth -> (images, predicted) of its most frequent mistake
        for (truth, predicted), count in sorted(self._pairs.items()):
            answered[predicted] += count
            if truth != predicted and count > confused.get(truth, (0, 0))[0]:
                confused[truth] = (count, predicted)
        return [
            ClassRow(
                name,
                int(self._images[i]),
                int(right[i]),
                answered[i],
                (self.classes[confused[i][1]], confused[i][0]) if i in confused else None,
            )
            for i, name in enumerate(self.classes)
        ]

    def confusion(self) -> np.ndarray:
        """(classes, classes) int64: images of the class of the row that were taken for that of the column."""
        table = np.zeros((len(self.classes),) * 2, np.int64)
        for (truth, predicted), count in self._pairs.items():
            table[truth, predicted] = count
        return table

    def calibration(self) -> np.ndarray:
        """(15, 3): images, mean confidence and accuracy in each bin of confidence; NaN where a bin is empty."""
        sizes = self._bins[:, :1]
        means = np.divide(self._bins[:, 1:], sizes, out=np.full((BINS, 2), np.nan), where=sizes > 0)
        return np.concatenate([sizes, means], axis=1)

    def mistakes(self) -> list[Mistake]:
        """The mistakes that the model was surest of, worst first."""
        return list(self._worst)

    def _labels(self, batch: Batch) -> Tensor:
        targets = batch.targets
        if not isinstance(targets, Tensor) or targets.is_floating_point():
            raise UserError(
                "Accuracy needs a label for each image; these have none. Name images with classes."
            )
        truths = targets.cpu()
        outside = (truths < 0) | (truths >= len(self.classes))
        if outside.any():
            raise DataError(
                f"Image {int(batch.ids[outside][0])} has the label {int(truths[outside][0])}; "
                f"the model knows {counted(len(self.classes), 'class')}, numbered from 0."
            )
        return truths

    def _right(self) -> np.ndarray:
        """(classes,) images of each class that were found."""
        return np.array([self._pairs[i, i] for i in range(len(self.classes))], np.int64)

    def _count_bins(self, confidence: np.ndarray, right: np.ndarray, finite: np.ndarray) -> None:
        place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # bins are open below
        values = np.stack([np.ones_like(confidence), confidence, right], axis=1)
        np.add.at(self._bins, place[finite], values[finite])

    def _note(self, found: list[Mistake]) -> None:
        everything = sorted([*self._worst, *found], key=lambda mistake: (-mistake.confidence, mistake.id))
        self._worst = everything[: self._keep]


def _on_cpu(logits: Tensor) -> Tensor:
    return logits.detach().cpu().double()
