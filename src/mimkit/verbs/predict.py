"""`mimkit predict`: what a classifier says of images without labels, as JSON lines and as a contact sheet."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mimkit import plots
from mimkit.data.batch import Batch
from mimkit.data.sources import Source, open_source
from mimkit.errors import UserError, counted
from mimkit.verbs.classifiers import Opened, open_classifier
from mimkit.verbs.files import writing
from mimkit.verbs.running import Progress, Runner, on_device

log = logging.getLogger(__name__)

PICTURED = 36  # images on the sheet, evenly drawn
SHOWN = 20  # images whose answers the terminal gets


@dataclass
class Predictions:
    """Where the answers were written, how many there are of each class, the first few, and what could not be read."""

    out: Path
    sheet: Path
    counts: Counter[str] = field(default_factory=Counter)
    first: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0

    @property
    def images(self) -> int:
        return self.counts.total()

    def lines(self) -> list[str]:
        """For a terminal: the first images, then counts."""
        width = max(len(row["file"]) for row in self.first)
        made = [f"{row['file']:<{width}}  {row['class']}  {row['confidence']:.0%}" for row in self.first]
        if self.images > len(made):
            made.append(f"... and {self.images - len(made)} more in {self.out}")
        classes = ", ".join(f"{name} {count}" for name, count in self.counts.most_common(10))
        more = ", ..." if len(self.counts) > 10 else ""
        unread = f"; {self.skipped} could not be read" if self.skipped else ""
        return [*made, f"{counted(self.images, 'image')}: {classes}{more}{unread}"]


@torch.inference_mode()
def predict(
    model: str | Path,
    path: str | Path,
    overrides: Sequence[str] = (),
    out: Path = Path("predictions.jsonl"),
    sheet: Path = Path("predictions.png"),
    top: int = 5,
    progress: Progress = None,
) -> Predictions:
    """See `mimkit.api.predict`."""
    if top < 1:
        raise UserError(f"--top {top}: give at least 1.")
    opened = open_classifier(model, overrides)
    images = open_source(path)
    runner = Runner(opened.recipe)
    on_device(opened.task, runner)
    found = Predictions(out, sheet)
    with writing(out) as file:
        for batch in runner.batches(images, progress=progress):
            for row in _rows(batch, images, opened, runner, top):
                file.write(json.dumps(row) + "\n")
                _note(found, row)
    if not found.images:
        raise runner.nothing_read(len(images), str(path))
    _draw(found, images, opened, runner)
    return found


def _rows(batch: Batch, images: Source, opened: Opened, runner: Runner, top: int) -> Iterator[dict[str, Any]]:
    """A row an image: the answers of a batch, then what could not be read."""
    if len(batch.ids):
        with runner.autocast():
            predictions = opened.task.predict(runner.prepare(batch))
        confidences, places = (part.cpu().tolist() for part in predictions.top(top))
        for id, values, answers in zip(batch.ids.tolist(), confidences, places, strict=True):
            names = [opened.task.classes[i] for i in answers]
            yield {
                "file": images.key(id),
                "class": names[0],
                "confidence": values[0],
                "top": dict(zip(names, values, strict=True)),
            }
    for skip in batch.skipped:
        yield {"file": skip.name, "error": skip.reason}


def _note(found: Predictions, row: dict[str, Any]) -> None:
    if "error" in row:
        found.skipped += 1
        return
    found.counts[row["class"]] += 1
    if len(found.first) < SHOWN:
        found.first.append(row)


def _draw(found: Predictions, images: Source, opened: Opened, runner: Runner) -> None:
    ids = np.unique(np.linspace(0, len(images) - 1, min(PICTURED, len(images))).round().astype(int)).tolist()
    for batch in Runner(opened.recipe, chunk=len(ids)).batches(images, ids):
        if len(batch.ids):
            predictions = opened.task.predict(runner.prepare(batch))
            names = [images.key(id) for id in batch.ids.tolist()]
            figure = opened.task.draw(batch, predictions, names, opened.recipe.log.channels)
            plots.save(figure, found.sheet)
