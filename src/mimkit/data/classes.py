"""What class labels need before anything is trained or measured on them: counts and weights, parts of a labelled set
drawn evenly over its classes, and labels that mean the same in a checkpoint and in a folder.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mimkit.data.index import Ignored
from mimkit.data.sources import Source
from mimkit.errors import DataError, UserError, counted, nearest

log = logging.getLogger(__name__)

UNEQUAL = 10  # the largest class over the smallest from which on a warning is due
NAMED = 5  # classes that a sentence names


class View:
    """Another source seen through a choice of its images, or through other class numbers."""

    kind: str
    name: str
    classes: tuple[str, ...]
    ignored: tuple[Ignored, ...]

    def __init__(self, source: Source, ids: np.ndarray, classes: Sequence[str], numbers: np.ndarray) -> None:
        """ids: (n,) int64, places in `source`. classes: their names here; numbers: label there -> label here."""
        self.kind, self.name, self.ignored = source.kind, source.name, source.ignored
        self.classes = tuple(classes)
        self._source, self._ids, self._numbers = source, ids, numbers

    def __len__(self) -> int:
        return len(self._ids)

    def key(self, i: int) -> str:
        return self._source.key(int(self._ids[i]))

    def read(self, i: int) -> bytes | np.ndarray:
        return self._source.read(int(self._ids[i]))

    def label(self, i: int) -> int | None:
        label = self._source.label(int(self._ids[i]))
        return None if label is None else int(self._numbers[label])

    def digest(self) -> str:
        hashed = hashlib.blake2b(digest_size=16)
        for part in (self._source.digest().encode(), self._ids.tobytes(), "\n".join(self.classes).encode()):
            hashed.update(part + b"\0")
        return hashed.hexdigest()


def labels_of(source: Source) -> np.ndarray:
    """(n,) int64, the label of each image. Raises UserError when there are none."""
    if not source.classes:
        raise UserError(
            f"{source.name} holds no labels: give class folders, or a table (.csv, .parquet) with a label column."
        )
    return np.fromiter((source.label(i) for i in range(len(source))), np.int64, len(source))


def counts_of(source: Source) -> np.ndarray:
    """(classes,) int64, the images of each class."""
    return np.bincount(labels_of(source), minlength=len(source.classes))


def part_of(source: Source, ids: Iterable[int]) -> Source:
    """The images of `source` at `ids` alone, in that order, numbered anew from 0; its classes stay as they are."""
    chosen = np.fromiter(ids, np.int64)
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(source):
        raise IndexError(f"images {chosen.min()} to {chosen.max()} of {len(source)}")
    return View(source, chosen, source.classes, np.arange(len(source.classes)))


def share_of(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Ids (ascending) of a share of each class, at least one image of each: few-label splits.

    For one seed a smaller share lies within a larger one, so their results differ by the images alone.
    """
    if not 0 < share <= 1:
        raise UserError(f"A share of {share:g} of the labels: give a number above 0 and up to 1.")
    return _first_of_each(labels, lambda count: max(1, round(share * count)), seed)


def shots_of(labels: np.ndarray, shots: int, seed: int, classes: Sequence[str]) -> np.ndarray:
    """Ids (ascending) of `shots` images of each class. Raises DataError when a class has fewer."""
    if shots < 1:
        raise UserError(f"{counted(shots, 'image')} of each class: give at least 1.")
    counts = np.bincount(labels)
    short = np.flatnonzero((counts > 0) & (counts < shots))
    if len(short):
        raise DataError(
            f"The class {classes[short[0]]!r} has {counted(counts[short[0]], 'image')} to train on, fewer than "
            f"the {shots} asked for (data.shots); ask for fewer, or add images."
        )
    return _first_of_each(labels, lambda count: shots, seed)


def renumbered(source: Source, classes: Sequence[str], owner: str = "the model") -> Source:
    """`source` with the class numbers of `classes`, those of a checkpoint; classes that it lacks may be missing.

    owner: whose classes these are, for messages. Raises UserError when `source` has a class that is none of them.
    """
    place = {name: i for i, name in enumerate(classes)}
    strange = [name for name in source.classes if name not in place]
    if strange:
        more = f" and {len(strange) - NAMED} more" if len(strange) > NAMED else ""
        raise UserError(
            f"{source.name} has {len(strange)} of {counted(len(source.classes), 'class')} that {owner} does not know "
            f"({', '.join(map(repr, strange[:NAMED]))}{more}); it knows {len(classes)}, such as "
            f"{', '.join(map(repr, classes[:NAMED]))}. Rename or leave out what is no class of its, or train on "
            f"images of all classes.{nearest(strange[0], classes)}"
        )
    if source.classes == tuple(classes):
        return source
    missing = len(classes) - len(source.classes)
    if missing:
        log.warning(
            "%s has images of %d of the %s.", source.name, len(source.classes), counted(len(classes), "class")
        )
    numbers = np.array([place[name] for name in source.classes], np.int64)
    return View(source, np.arange(len(source)), classes, numbers)


def unequal(counts: np.ndarray, classes: Sequence[str]) -> str | None:
    """A sentence, with counts, when classes have very different numbers of images, or one image alone; else None."""
    order = np.argsort(counts, kind="stable")
    small, large = int(order[0]), int(order[-1])
    if counts[small] > 1 and counts[large] < UNEQUAL * counts[small]:
        return None
    few = [f"{classes[i]!r} {counts[i]}" for i in order[: min(NAMED, len(order) - 1)]]
    if len(few) == 1:
        said = f"{classes[large]!r} has {counted(counts[large], 'image')}, {few[0]}"
    else:
        said = (
            f"the largest, {classes[large]!r}, has {counts[large]} images, the smallest have {', '.join(few)}"
        )
    return f"The classes are of very different size: {said}"


def balancing_weights(counts: np.ndarray) -> np.ndarray:
    """(classes,) factors on the loss that make all classes count alike: 1 / count, 1 on average over the images.

    Classes without images have weight 0 (nothing is ever to be weighed by it but smoothing).
    """
    there = counts > 0
    weights = np.divide(1.0, counts, out=np.zeros(len(counts)), where=there)
    return weights * counts.sum() / there.sum()


def _first_of_each(labels: np.ndarray, take: Callable[[int], int], seed: int) -> np.ndarray:
    """Ids of the first `take(count)` images of each class, in an order that `seed` gives."""
    chosen = []
    for number in np.unique(labels):
        members = np.flatnonzero(labels == number)
        order = np.random.default_rng([seed, int(number)]).permutation(len(members))
        chosen.append(members[order[: take(len(members))]])
    return np.sort(np.concatenate(chosen))
