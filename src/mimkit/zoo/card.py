"""The model card of an exported folder: README.md with what a stranger needs to use the weights and judge them.

How to load them, how images are prepared, how they were trained, what probes said. The front matter is the one that the
Hugging Face hub reads. Nothing is claimed that the run did not measure, and no path of this machine is told.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mimkit.errors import counted
from mimkit.recipes.load import dump
from mimkit.recipes.schema import Recipe
from mimkit.version import __version__
from mimkit.zoo.export import Files, Subject

PROBE = re.compile(r"probe/(random_)?(knn|linear)_(\w+)_layer(\d+)(_std)?")
CLASSIFIERS = {"knn": "kNN", "linear": "linear probe"}
POOLINGS = {"mean": "mean of the patches", "cls": "class token"}
LICENCE = (
    "The weights began from {init}; whatever licence those carry holds for these too (MAE's published weights are "
    "CC BY-NC 4.0)."
)


@dataclass(frozen=True)
class Facts:
    """What is known of the training. name: of the model. recipe: of the run; None for a foreign file.

    step: finished optimiser steps. images: that were read for them. measured: column of metrics.jsonl -> (step, value)
    of its last row. notes: sentences.
    """

    name: str
    recipe: Recipe | None = None
    step: int | None = None
    images: int | None = None
    measured: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def card(subject: Subject, files: Files, facts: Facts) -> str:
    """README.md as text."""
    parts = [
        _front(subject, files, facts),
        f"# {facts.name}\n\n{_what(subject, files, facts)}",
        f"## Use\n\n```python\n{files.use}\n```",
        _images(subject),
        _training(facts),
        _probes(facts),
        _classes(subject),
        _notes((*files.notes, *facts.notes, *_licence(facts))),
        _recipe(facts),
        f"Written by mimkit {__version__}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def public(recipe: Recipe) -> Recipe:
    """`recipe` with the last name alone of every path of this machine."""
    data = {key: _last(getattr(recipe.data, key)) for key in ("path", "val")}
    probe = recipe.log.probe
    parts = {
        "data": recipe.data.model_copy(update=data),
        "encoder": recipe.encoder.model_copy(update={"init": _last(recipe.encoder.init)}),
        "train": recipe.train.model_copy(update={"run": _last(recipe.train.run)}),
        "log": recipe.log
        if probe is None
        else recipe.log.model_copy(update={"probe": probe.model_copy(update={"path": _last(probe.path)})}),
    }
    return recipe.model_copy(update=parts)


def _last(path: str | None) -> str | None:
    """/home/me/photos/ -> photos; timm:NAME and hf:OWNER/NAME stay as they are."""
    if path is None or re.fullmatch(r"timm:.+|hf:[\w.-]+/[\w.-]+", path):
        return path
    return Path(path.rstrip("/")).name


def _front(subject: Subject, files: Files, facts: Facts) -> str:
    task = "image-classification" if subject.has("head") else "image-feature-extraction"
    method = None if facts.recipe is None else facts.recipe.method
    tags = ["mimkit"] if method is None else ["masked-image-modeling", method.name, "mimkit"]
    lines = [
        f"library_name: {files.library}",
        f"pipeline_tag: {task}",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    return "\n".join(["---", *lines, "---"])


def _what(subject: Subject, files: Files, facts: Facts) -> str:
    encoder, data = subject.encoder, subject.recipe.data
    patch, size = (" x ".join(map(str, pair)) for pair in (encoder.levels[-1].stride, data.size))
    parameters = sum(x.numel() for name, x in subject.tensors.items() if name.startswith("encoder."))
    what = (
        f"{subject.recipe.encoder.name} ({parameters / 1e6:.1f} M parameters, {encoder.levels[-1].channels} channels "
        f"of features, one for every {patch} pixels) for images of {counted(encoder.channels, 'channel')}, usually "
        f"{size} pixels"
    )
    beside = (
        " The decoder of the pre-training is with it."
        if any("decoder" in name for name in files.tensors)
        else ""
    )
    return f"{what}{_how(facts)}.{beside}"


def _how(facts: Facts) -> str:
    if facts.recipe is None:
        return ""
    if facts.recipe.task is not None:
        return f", trained for a task (`{facts.recipe.task.name}`)"
    return f", pre-trained with `{facts.recipe.pretraining.name}`"


def _images(subject: Subject) -> str:
    mean, std = subject.statistics
    rows = [f"| {i} | {m:.6g} | {s:.6g} |" for i, (m, s) in enumerate(zip(mean, std, strict=True))]
    head = (
        "Values are brought to 0..1 (8 bits: divided by 255, 16 bits: by 65535), then the mean is subtracted and the "
        "result divided by the deviation of its channel."
    )
    return "\n".join(["## Images", "", head, "", "| channel | mean | std |", "| --- | --- | --- |", *rows])


def _training(facts: Facts) -> str:
    if facts.recipe is None or facts.step is None:
        return ""
    train, data = facts.recipe.train, facts.recipe.data
    read = f"{facts.images:,} crops" if facts.images else "crops"
    where = f" of `{_last(data.path)}`" if data.path else ""
    line = (
        f"{counted(facts.step, 'step', ',')} of {counted(train.batch_size, 'image')}, {read}{where}; "
        f"{counted(train.epochs, 'epoch')} planned, "
        f"seed {train.seed}."
    )
    shown = {
        name: value
        for name, value in facts.measured.items()
        if name in ("loss", "quality/effective_rank") or name.startswith(("trivial/", "val/"))
    }
    return "\n".join(["## Training", "", line, *_numbers(shown)])


def _numbers(shown: Mapping[str, tuple[int, float]]) -> list[str]:
    if not shown:
        return []
    rows = [f"| {name} | {value:.4g} | {step} |" for name, (step, value) in shown.items()]
    return ["", "| measure | value | at step |", "| --- | --- | --- |", *rows]


def _probes(facts: Facts) -> str:
    """A row a layer and pooling; accuracy in per cent, with the spread over folds."""
    cells: dict[tuple[int, str], dict[str, str]] = {}
    for name, (_, value) in facts.measured.items():
        found = PROBE.fullmatch(name)
        if not found or found[5]:
            continue
        std = facts.measured.get(f"{name}_std")
        spread = f" ± {100 * std[1]:.1f}" if std else ""
        column = CLASSIFIERS[found[2]] + (", random weights" if found[1] else "")
        row = cells.setdefault((int(found[4]), POOLINGS.get(found[3], found[3])), {})
        row[column] = f"{100 * value:.1f}{spread}"
    if not cells:
        return ""
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    lines = [
        f"| {layer} | {pooling} | " + " | ".join(row.get(column, "") for column in columns) + " |"
        for (layer, pooling), row in cells.items()
    ]
    path = facts.recipe.log.probe.path if facts.recipe and facts.recipe.log.probe else None
    where = f" on `{_last(path)}`" if path else ""
    head = f"Accuracy in % of frozen features{where}."
    return "\n".join(
        [
            "## Probe",
            "",
            head,
            "",
            f"| layer | pooling | {' | '.join(columns)} |",
            "| --- " * (2 + len(columns)) + "|",
            *lines,
        ]
    )


def _classes(subject: Subject) -> str:
    if not subject.classes:
        return ""
    names = ", ".join(json.dumps(name, ensure_ascii=False) for name in subject.classes)
    return f"## Classes\n\nIn this order: {names}."


def _notes(notes: Sequence[str]) -> str:
    return "" if not notes else "\n".join(["## Mind", "", *(f"- {note}" for note in notes)])


def _licence(facts: Facts) -> list[str]:
    init = None if facts.recipe is None else facts.recipe.encoder.init
    return [] if init is None else [LICENCE.format(init=f"`{_last(init)}`")]


def _recipe(facts: Facts) -> str:
    if facts.recipe is None:
        return ""
    return f"## Recipe\n\n```yaml\n{dump(public(facts.recipe)).rstrip()}\n```"
