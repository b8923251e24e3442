"""`mimkit evaluate`: how good a classifier is on labelled images, in numbers and in pictures.

Accuracy alone hides what a user must know: which classes fail, what they are taken for, whether a confidence of 90 %
means 90 %, and what the worst mistakes look like (often they are wrong labels). So all of it comes from one pass.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mimkit import plots, tasks
from mimkit.data.loader import EvalData
from mimkit.data.normalise import FULL_SCALE
from mimkit.data.sources import Source
from mimkit.errors import UserError, counted
from mimkit.tasks.class_metric import ClassMetric, ClassRow, Mistake
from mimkit.verbs import training
from mimkit.verbs.classifiers import Opened, matched, open_classifier
from mimkit.verbs.files import write_json
from mimkit.verbs.labels import labelled_sets, open_labelled
from mimkit.verbs.running import Progress, Runner, on_device

log = logging.getLogger(__name__)

FOLDER = "evaluation"
CONFUSED = 200  # classes up to which the JSON file holds the whole confusion matrix


@dataclass(frozen=True)
class Evaluation:
    """What a classifier is worth on some images.

    numbers: top1, top5, mean_per_class, calibration_error, loss, images. top1_error: the standard error of top1 that so
    many images leave. rows: a class each. skipped: images that could not be read.
    """

    model: str
    data: str
    numbers: dict[str, float]
    rows: list[ClassRow]
    skipped: int
    pictures: list[Path]

    @property
    def top1_error(self) -> float:
        top1 = self.numbers["top1"]
        return math.sqrt(top1 * (1 - top1) / self.numbers["images"])

    def lines(self) -> list[str]:
        """The numbers for a terminal."""
        there = [row for row in self.rows if row.images]
        left_out = f", {self.skipped} unreadable left out" if self.skipped else ""
        n = self.numbers
        read = counted(n["images"], "image", ".0f")
        return [
            f"{self.model} on {read} of {counted(len(there), 'class')} from {self.data}{left_out}",
            f"top-1           {100 * n['top1']:.1f} ± {100 * self.top1_error:.1f} %",
            f"top-5           {100 * n['top5']:.1f} %",
            f"mean per class  {100 * n['mean_per_class']:.1f} %",
            f"calibration     {100 * n['calibration_error']:.1f} % error",
            f"loss            {n['loss']:.4f}",
        ]


def evaluate(
    model: str | Path,
    overrides: Sequence[str] = (),
    json: Path | None = None,
    out: Path | None = None,
    progress: Progress = None,
) -> Evaluation:
    """See `mimkit.api.evaluate`."""
    opened = open_classifier(model, overrides)
    opened, images = matched(opened, _images(opened, model, overrides))
    runner = Runner(opened.recipe)
    on_device(opened.task, runner)
    metric = tasks.evaluate(
        opened.task, runner.batches(images, progress=progress), runner.prepare, runner.autocast
    )
    assert isinstance(metric, ClassMetric)
    if not metric.images:
        raise runner.nothing_read(len(images), images.name)
    folder = out or (Path(model) / FOLDER if training.is_run(model) else Path(FOLDER))
    found = Evaluation(
        opened.label,
        images.name,
        metric.result(),
        metric.rows(),
        len(runner.skipped),
        _draw(metric, images, opened, folder),
    )
    if json is not None:
        write_json(json, _as_json(found, metric, images, opened, runner))
    return found


def _images(opened: Opened, model: str | Path, overrides: Sequence[str]) -> Source:
    """Those of `data.path=`; of a run without it, those that it held out."""
    paths = [text.partition("=")[2] for text in overrides if text.startswith("data.path=")]
    if paths:
        return open_labelled(paths[-1])
    if not training.is_run(model):
        raise UserError(
            f"Name labelled images to measure {model} on: data.path=FOLDER of class folders, or a table."
        )
    held = labelled_sets(opened.recipe).val
    if held is None:
        raise UserError(
            f"The run {model} held no images out (data.val_share=0); name labelled images with data.path=."
        )
    return held


def _draw(metric: ClassMetric, images: Source, opened: Opened, folder: Path) -> list[Path]:
    """The pictures, in `folder`."""
    title = f"{Path(opened.label).name} on {images.name}"
    rows = [
        plots.ClassBar(
            row.name, row.images, row.accuracy, row.precision, row.taken_for[0] if row.taken_for else ""
        )
        for row in metric.rows()
    ]
    bins, error = metric.calibration(), metric.result()["calibration_error"]
    made = [
        plots.save(
            plots.confusion_matrix(metric.confusion(), metric.classes, title), folder / "confusion.png"
        ),
        plots.save(plots.class_table(rows, title), folder / "classes.png"),
        plots.save(plots.calibration(bins, error), folder / "calibration.png"),
    ]
    worst = metric.mistakes()
    if worst:
        made.append(plots.save(_worst_mistakes(worst, metric, images, opened), folder / "mistakes.png"))
    else:
        (folder / "mistakes.png").unlink(missing_ok=True)
    return made


def _worst_mistakes(worst: Sequence[Mistake], metric: ClassMetric, images: Source, opened: Opened) -> Any:
    part = opened.recipe.data
    assert part.channels is not None
    view = EvalData(images, part.size, part.channels)
    shown = []
    for mistake in worst:
        pixels = view.image(mistake.id)
        scale = FULL_SCALE.get(pixels.dtype, 1.0)
        shown.append(pixels.permute(1, 2, 0).float().div(scale).numpy())
    names = metric.classes
    return plots.mistakes(
        shown,
        [names[mistake.truth] for mistake in worst],
        [f"{names[mistake.predicted]} {mistake.confidence:.0%}" for mistake in worst],
        [images.key(mistake.id) for mistake in worst],
        f"The {len(worst)} mistakes that {Path(opened.label).name} is surest of (black: the label, orange: the answer)",
        channels=opened.recipe.log.channels,
    )


def _as_json(
    found: Evaluation, metric: ClassMetric, images: Source, opened: Opened, runner: Runner
) -> dict[str, Any]:
    """Everything that was found."""
    names = metric.classes
    content = {
        "model": found.model,
        "data": found.data,
        "step": opened.step,
        **found.numbers,
        "images": metric.images,
        "top1_error": found.top1_error,
        "classes": list(names),
        "per_class": [
            {**asdict(row), "accuracy": row.accuracy, "precision": row.precision} for row in found.rows
        ],
        "mistakes": [
            {
                "file": images.key(mistake.id),
                "label": names[mistake.truth],
                "predicted": names[mistake.predicted],
                "confidence": mistake.confidence,
            }
            for mistake in metric.mistakes()
        ],
        "skipped": [{"file": skip.name, "reason": skip.reason} for skip in runner.skipped],
    }
    if len(names) <= CONFUSED:
        content["confusion"] = metric.confusion().tolist()
    return content
