"""`mimkit.load`, `mimkit convert`, `mimkit export`: weights between this library and everybody else's.

`load` opens whatever holds weights. `convert` changes the names and the container of a file and computes nothing.
`export` writes a model for another library, with a card that says what it is.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from mimkit.data.augment import evaluation_size
from mimkit.encoders import Encoder
from mimkit.engine import checkpoint
from mimkit.engine.run_folder import METRICS, read_rows
from mimkit.errors import UserError, nearest
from mimkit.recipes.load import RUN_RECIPE, difference
from mimkit.recipes.schema import Recipe
from mimkit.tasks.classify import Classifier
from mimkit.verbs.describe import model_of, recipe_of
from mimkit.verbs.models import Model, open_model
from mimkit.zoo.card import Facts, card
from mimkit.zoo.export import FORMATS, Files, Subject, to_safetensors, to_timm
from mimkit.zoo.folders import from_recipe
from mimkit.zoo.hub import to_hub
from mimkit.zoo.load import load as fill
from mimkit.zoo.load import read_strictly
from mimkit.zoo.onnx import to_onnx
from mimkit.zoo.report import LoadReport
from mimkit.zoo.source import open_source
from mimkit.zoo.weights import Weights
from mimkit.zoo.write import check_free, new_folder, save_json, save_published, save_tensors

log = logging.getLogger(__name__)

WEIGHTS, CARD = "model.safetensors", "README.md"
DESCRIPTIVE = (
    "encoder.name",
    "method.decoder.heads",
    "method.norm_pix",
    "data.size",
    "data.mean",
    "data.std",
)
CONTAINERS = ("mimkit", "published")
WRITERS: Mapping[str, Callable[[Subject, Path], Files]] = {
    "safetensors": lambda subject, _: to_safetensors(subject),
    "timm": lambda subject, _: to_timm(subject),
    "hf": lambda subject, _: to_hub(subject),
    "onnx": to_onnx,
}


@dataclass(frozen=True)
class Exported:
    """What was written. files: names in `path`, or of `path` itself. use: Python that loads it, "" where there is
    none. notes: what to mind. report: what was read, None where a model was exported.
    """

    path: Path
    files: tuple[str, ...]
    use: str = ""
    notes: tuple[str, ...] = ()
    report: LoadReport | None = None


def load(model: str | Path, overrides: Sequence[str] = ()) -> Model:
    """See `mimkit.api.load`."""
    return open_model(model, overrides)


def convert(file: str | Path, out: str | Path, to: str = "mimkit") -> Exported:
    """See `mimkit.api.convert`."""
    if to not in CONTAINERS:
        raise UserError(f"--to {to}: known are {' and '.join(CONTAINERS)}.{nearest(to, CONTAINERS)}")
    target, is_run = Path(out).expanduser(), (Path(file).expanduser() / RUN_RECIPE).is_file()
    if to == "mimkit" and is_run:
        return export(file, "safetensors", out)
    if to == "mimkit":
        check_free(target)
    weights = _of_run(str(file)) if is_run else open_source(str(file))
    _, reading = read_strictly(weights)
    recipe = recipe_of(str(file), weights, reading.tensors)
    with torch.device("meta"):
        model = model_of(recipe, weights, reading.tensors)
    report = fill(model, weights)  # on the meta device: names and shapes alone
    if to == "published":
        save_published(target, reading.tensors)
        notes = _unsaid(recipe, Weights(reading.tensors, weights.label))
        return Exported(target, (target.name,), notes=notes, report=report)
    encoder = model if isinstance(model, Encoder) else model.encoder
    classes = model.classes if isinstance(model, Classifier) else ()
    subject = Subject(reading.tensors, encoder, recipe, classes, bits=weights.bits)
    notes = tuple(f"Set aside: {', '.join(names)}: {why}." for why, names in reading.aside.items())
    facts = Facts(target.name, notes=(f"Converted from {weights.label}.", *notes))
    return _write(subject, "safetensors", target, facts, report)


def export(model: str | Path, to: str, out: str | Path, decoder: bool = True) -> Exported:
    """See `mimkit.api.export`."""
    if to not in FORMATS:
        raise UserError(f"--to {to}: known are {', '.join(FORMATS)}.{nearest(to, FORMATS)}")
    target = Path(out).expanduser()
    check_free(target)  # before a large model is opened in vain
    opened = open_model(model)
    if opened.step == 0:
        log.warning("%s was saved before the first step: its weights are random.", opened.label)
    subject = _subject(opened, decoder)
    return _write(subject, to, target, _facts(opened, target.name))


def _of_run(text: str) -> Weights:
    """The weights that stand for a run: its moving average where it keeps one."""
    opened = open_model(text)
    subject = _subject(opened, True)
    described = from_recipe(opened.recipe.model_dump(mode="json"), subject.tensors, list(subject.classes))
    return Weights(subject.tensors, Path(text).name, **described)


def _unsaid(recipe: Recipe, bare: Weights) -> tuple[str, ...]:
    """What a published file does not say of this model, and what its readers take instead, as one sentence or none."""
    guessed = recipe_of(bare.label, bare, bare.tensors, quiet=True)
    unsaid = [
        f"{key}={_plain(meant)} (taken as {_plain(read)})"
        for key, meant, read in difference(recipe, guessed)
        if key in DESCRIPTIVE and meant is not None
    ]
    return (f"a published file does not say {', '.join(unsaid)}; tell its readers.",) if unsaid else ()


def _plain(value: object) -> str:
    return f"[{', '.join(map(_plain, value))}]" if isinstance(value, tuple) else str(value)


def _subject(opened: Model, decoder: bool) -> Subject:
    """A model as what is exported; its decoder where that was trained and is wanted, its head where it has one."""
    encoder, recipe = opened.encoder, opened.recipe
    own = {f"encoder.{name}": tensor for name, tensor in encoder.cpu().state_dict().items()}
    covered = evaluation_size(recipe.data.size)
    subject = Subject(own, encoder, recipe, bits=opened.bits, covered=covered)
    if isinstance(opened.task, Classifier):
        task = opened.task.cpu()
        head = nn.Sequential(task.fc_norm, task.head)
        own = task.state_dict()
        return replace(subject, tensors=own, classes=task.classes, head=head, pooling=task.pooling)
    if decoder and opened.method is not None and opened.decoder is None:
        return replace(subject, tensors=opened.method.cpu().state_dict())
    return subject


def _write(
    subject: Subject, to: str, target: Path, facts: Facts, report: LoadReport | None = None
) -> Exported:
    with new_folder(target) as folder:
        files = WRITERS[to](subject, folder)
        if files.tensors:
            save_tensors(folder / WEIGHTS, files.tensors)
        for name, config in files.configs.items():
            save_json(folder / name, config)
        named = replace(files, use=files.use.replace("FOLDER", target.name))
        (folder / CARD).write_text(card(subject, named, facts), encoding="utf-8")
        names = tuple(sorted(path.name for path in folder.iterdir()))
    return Exported(target, names, files.use.replace("FOLDER", str(target)), files.notes, report)


def _facts(opened: Model, name: str) -> Facts:
    """What the run folder behind a model wrote down, for its card."""
    run = Path(opened.label).expanduser()
    notes = () if opened.report is None else opened.report.notes
    if not (run / RUN_RECIPE).is_file():
        return Facts(name, notes=(f"Exported from {Path(opened.label).name}.", *notes))
    measured = {
        column: (int(row["step"]), float(value))
        for row in read_rows(run / METRICS)
        for column, value in row.items()
        if column != "step" and isinstance(value, int | float)
    }
    state = checkpoint.read_state(checkpoint.latest_good(run))
    return Facts(name, opened.recipe, state.step, state.images, measured, notes)
