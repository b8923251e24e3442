"""Labelled images as a verb gets them: opened, looked at, parted into what is trained on and what is measured on.

What is held out never depends on the seed, so runs of several seeds are measured on the same images; which few labels
are trained on does.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimkit.data.classes import counts_of, labels_of, part_of, renumbered, share_of, shots_of, unequal
from mimkit.data.labelled import check_depth
from mimkit.data.sources import Source, open_source
from mimkit.errors import DataError, UserError, counted
from mimkit.recipes.schema import Recipe

log = logging.getLogger(__name__)

HOLD_OUT_SEED = 0
NAMED_BY_FOLDERS = "folder"  # where class folders are called 0.5 or -1, somebody has chosen that


@dataclass(frozen=True)
class LabelledSets:
    """Images to train on and to be measured on (None: nothing), with the same classes by the same numbers."""

    train: Source
    val: Source | None


def open_labelled(path: str | Path) -> Source:
    """The labelled images at `path`.

    Raises UserError where there are no labels; DataError for missing ones, for numbers that name no class, and for a
    class without images.
    """
    source = open_source(path, labels=True)
    if source.kind != NAMED_BY_FOLDERS:
        _check_numbers(source)
    return source


def labelled_sets(recipe: Recipe) -> LabelledSets:
    """The images of `recipe`, parted; in its log, what was done and whether the classes are of very different size.

    Raises UserError where no images are named, where the held-out ones have classes that the others lack, and where
    the recipe's augmentation cannot take such pictures.
    """
    data = recipe.data
    if data.path is None:
        raise UserError(
            "The recipe names no labelled images; add data.path=FOLDER of class folders, or a table with labels."
        )
    everything = open_labelled(data.path)
    train, val = everything, None
    if data.val is not None:
        val = renumbered(open_labelled(data.val), everything.classes, f"the training set {everything.name}")
    elif data.val_share:
        train, val = hold_out(everything, data.val_share)
        log.info(
            "Held out of %s to measure on: %s (data.val_share=%g); name others with data.val=",
            everything.name,
            counted(len(val), "image"),
            data.val_share,
        )
    if recipe.tuning.randaugment is not None:
        check_depth(everything)
    train = few_labels(train, recipe)
    _warn_of_unequal(train, recipe)
    return LabelledSets(train, val)


def hold_out(source: Source, share: float) -> tuple[Source, Source]:
    """(the rest, a share of each class but at least one image). Raises DataError for a class with one image alone."""
    labels = labels_of(source)
    lonely = np.flatnonzero(counts_of(source) == 1)
    if len(lonely):
        name = source.classes[int(lonely[0])]
        raise DataError(
            f"The class {name!r} of {source.name} has one image, which cannot be trained on and held out too; add "
            "images, remove the class, or name images to measure on with data.val=."
        )
    held = np.zeros(len(labels), dtype=bool)
    held[share_of(labels, share, HOLD_OUT_SEED)] = True
    return part_of(source, np.flatnonzero(~held)), part_of(source, np.flatnonzero(held))


def few_labels(source: Source, recipe: Recipe) -> Source:
    """The share of `source`, or the shots of each class, that the recipe trains on."""
    data, seed = recipe.data, recipe.train.seed
    if data.shots is None and data.label_share == 1:
        return source
    labels, shots = labels_of(source), data.shots
    ids = (
        share_of(labels, data.label_share, seed)
        if shots is None
        else shots_of(labels, shots, seed, source.classes)
    )
    log.info("Trained on: %d of %s", len(ids), counted(len(source), "labelled image"))
    return part_of(source, ids)


def _warn_of_unequal(train: Source, recipe: Recipe) -> None:
    counts = counts_of(train)
    sentence = unequal(counts, train.classes) if counts.min() < counts.max() else None
    if sentence is not None and not recipe.tuning.balance:
        log.warning("%s; task.balance=true makes all classes count alike.", sentence)


def _check_numbers(source: Source) -> None:
    """Where all labels of a table are numbers, each must be a class: whole and not negative."""
    try:
        values = [float(name) for name in source.classes]
    except ValueError:
        return  # names
    odd = [name for name, value in zip(source.classes, values, strict=True) if not _is_class(name, value)]
    if odd:
        place = source.classes.index(odd[0])
        first = next(i for i in range(len(source)) if source.label(i) == place)
        raise DataError(
            f"{source.name} gives {source.key(first)} the label {odd[0]}; a class is a name or a whole number of at "
            "least 0, so correct the labels, or write names."
        )


def _is_class(name: str, value: float) -> bool:
    return value >= 0 and name.lstrip("+").isdigit()
