"""A classifier to use: out of a fine-tuning run, or of weights with a classification head.

A run, and what was exported from one, knows the names and the order of its classes. Other files do not: their classes
are taken in the order of those of the labelled images that they are shown, when there are as many.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mimkit.data.classes import renumbered
from mimkit.data.sources import Source
from mimkit.errors import UserError, counted
from mimkit.recipes.schema import Recipe
from mimkit.tasks.classify import Classifier
from mimkit.verbs.models import open_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A classifier, and what it was trained by. step: of a run, None for a file. named: whether its classes have names
    of their own, not just numbers.
    """

    label: str
    recipe: Recipe
    task: Classifier
    step: int | None
    named: bool


def open_classifier(model: str | Path, overrides: Sequence[str] = ()) -> Opened:
    """The classifier behind `model`.

    Raises UserError where there is none, DataError where its weights cannot be used.
    """
    opened = open_model(model, overrides)
    task = opened.task
    if not isinstance(task, Classifier):
        raise UserError(
            f"{opened.label} holds no classification head; fine-tune it first, with "
            f"`mimkit finetune RECIPE encoder.init={opened.label} data.path=...`, or judge its features with "
            "`mimkit probe`."
        )
    named = task.classes != tuple(str(i) for i in range(len(task.classes)))
    return Opened(opened.label, opened.recipe, task, opened.step, named or opened.step is not None)


def matched(opened: Opened, images: Source) -> tuple[Opened, Source]:
    """The labelled `images` with the class numbers of the classifier, and the classifier with names for its classes.

    Raises UserError when the images have a class that it does not know.
    """
    count = len(opened.task.classes)
    if opened.named:
        return opened, renumbered(images, opened.task.classes, opened.label)
    if len(images.classes) != count:
        raise UserError(
            f"{opened.label} has a head for {counted(count, 'class')} and no names for them, and {images.name} has "
            f"{counted(len(images.classes), 'class')}; give images of all its classes, or fine-tune it on these."
        )
    log.warning(
        "%s does not say what its %s are called: they are taken in the order of the images' classes.",
        opened.label,
        counted(count, "class"),
    )
    opened.task.classes = images.classes
    return replace(opened, named=True), images
