"""A model to look at: out of a run folder, a published file, `timm:NAME`, `hf:FOLDER` or `random:NAME`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mimkit import zoo
from mimkit.encoders import Encoder
from mimkit.encoders.vit import VARIANTS
from mimkit.engine import checkpoint
from mimkit.errors import DataError, UserError
from mimkit.methods.base import Method
from mimkit.recipes import build, load
from mimkit.recipes.schema import Recipe
from mimkit.tasks import Task
from mimkit.verbs.describe import base_of, model_of, recipe_of, says, statistics
from mimkit.verbs.foreign import open_foreign
from mimkit.zoo.foreign import as_probe
from mimkit.zoo.likeness import size_of
from mimkit.zoo.load import load as fill
from mimkit.zoo.load import read_strictly
from mimkit.zoo.mcmae import form_of
from mimkit.zoo.report import LoadReport
from mimkit.zoo.rules import read
from mimkit.zoo.source import open_source
from mimkit.zoo.weights import Weights

log = logging.getLogger(__name__)

WITH_DECODER = (
    "mae_pretrain_vit_*_full.pth (normalised pixels), mae_visualize_vit_*.pth (raw pixels) and the checkpoints that "
    "MCMAE's own training leaves"
)


@dataclass(frozen=True)
class Model:
    """An encoder, the recipe that describes it and the images it expects, and what was trained around it: the method,
    or the task that it was fine-tuned for. bits: of those images, 8, 16, or 32 for floats; None where nothing says.

    decoder: None when the method's decoder was trained, else a sentence that says why there is none to look at.
    step: finished optimiser steps of a run, None for a file. report: what was loaded, and how.
    """

    label: str
    recipe: Recipe
    encoder: Encoder
    method: Method | None = None
    decoder: str | None = "it is an encoder alone"
    step: int | None = None
    report: LoadReport | None = None
    task: Task | None = None
    bits: int | None = None


def open_model(model: str | Path, overrides: Sequence[str] = ()) -> Model:
    """The model behind `model`; overrides change what of the recipe does not change its weights (data, log).

    Raises UserError where there is none, DataError where its weights cannot be used.
    """
    text = str(model)
    kind, _, name = text.partition(":")
    if (Path(text).expanduser() / load.RUN_RECIPE).is_file():
        return _from_run(Path(text).expanduser(), overrides)
    if kind in ("timm", "random") and name:
        return _from_name(text, kind, name, overrides)
    return _from_file(text, overrides)


def _from_run(run: Path, overrides: Sequence[str]) -> Model:
    """The newest good checkpoint of a run; its moving average where it keeps one."""
    saved, recipe = load.resolve(run), load.resolve(run, overrides)
    _check_same_model(run, saved, recipe)
    folder = checkpoint.latest_good(run)
    if saved.data.channels is None:
        raise DataError(
            f"{run / load.RUN_RECIPE} is not the recipe that the run wrote there (it leaves data.channels open); "
            "restore it."
        )
    model = _model_of(
        saved, checkpoint.read_state(folder)
    )  # tables as they were; they fit any size when it runs
    state = checkpoint.restore(folder, model)
    notes = []
    if (folder / checkpoint.EMA).exists():
        model.load_state_dict(checkpoint.read_tensors(folder, checkpoint.EMA), strict=False)
        notes.append("the moving average of the weights is used")
        log.info("%s: %s", folder, notes[0])
    norm_pix = recipe.method.norm_pix if recipe.method is not None else None
    report = LoadReport(
        str(folder), "mimkit", tuple(model.state_dict()), norm_pix=norm_pix, notes=tuple(notes)
    )
    opened = Model(
        str(run), recipe, model.encoder.eval(), step=state.step, report=report, bits=state.extra.get("bits")
    )
    if isinstance(model, Task):
        return replace(opened, task=model.eval(), decoder="it was fine-tuned, and has none any more")
    untrained = f"{folder} was saved before the first step" if state.step == 0 else None
    return replace(opened, method=model.eval(), decoder=untrained)


def _model_of(recipe: Recipe, state: checkpoint.State) -> Method | Task:
    """The module that a run trains; the classes of a task stand in its checkpoints."""
    if recipe.task is None:
        return build.method(recipe)
    classes = state.extra.get("classes")
    if not classes:
        raise DataError(
            "The checkpoint does not say which classes it knows; it was not written by `mimkit finetune`."
        )
    return build.task(recipe, classes)


def _check_same_model(run: Path, saved: Recipe, wanted: Recipe) -> None:
    changed = [
        key
        for key, _, _ in load.difference(saved, wanted)
        if key.startswith(("encoder.", "method.decoder", "data.channels", "task"))
    ]
    if changed:
        raise UserError(
            f"{', '.join(changed)} cannot be changed for the run {run}: its weights were made that way; "
            "leave that override out."
        )


def _from_name(text: str, kind: str, name: str, overrides: Sequence[str]) -> Model:
    """A timm model with its published weights, or an encoder of mimkit or timm with random ones."""
    if kind == "timm":
        return _foreign(text, open_source(text), overrides)
    settings = [says("encoder.name", name), says("data.channels", 3)]
    if name in VARIANTS:
        settings.append(says("encoder.patch", VARIANTS[name].patch))
    if name.startswith("timm:"):
        settings += _usual_size(name.removeprefix("timm:"))
    asked = load.resolve(base_of(name), [*settings, *overrides]).data
    settings += statistics(text, asked.channels or 3, asked.mean, asked.std, log.info)
    recipe = load.resolve(base_of(name), [*settings, *overrides])
    torch.manual_seed(recipe.train.seed)  # the same random weights each time, and in every process
    encoder = build.encoder(recipe)
    report = LoadReport(text, "random weights", (), fresh={"nothing was loaded": tuple(encoder.state_dict())})
    return Model(text, recipe, encoder.eval(), report=report)


def _usual_size(name: str) -> list[str]:
    """The size of the images that timm's model `name` is made for; none where timm does not say."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    return [says("data.size", config.input_size[1:]), says("encoder.patch", 1)] if config is not None else []


def _foreign(text: str, weights: Weights, overrides: Sequence[str]) -> Model:
    """A model of timm's, computed by timm."""
    recipe, model, report = open_foreign(text, weights, overrides)
    log.info("%s", report)
    if isinstance(model, Task):
        return Model(text, recipe, model.encoder, report=report, task=model.eval())
    return Model(text, recipe, model.eval(), report=report)


def _from_file(text: str, overrides: Sequence[str]) -> Model:
    """A file or folder of weights; what it holds, and what stands beside it, says how the model is built."""
    weights = open_source(text)
    if weights.architecture and not is_vit(weights):
        return _foreign(text, weights, overrides)
    weights = as_probe(weights)
    _, reading = read_strictly(weights)
    recipe = recipe_of(text, weights, reading.tensors, overrides)
    _check_form(weights, recipe, form_of(reading.tensors))
    model = model_of(recipe, weights, reading.tensors).eval()
    report = fill(model, weights)
    log.info("%s", report)
    opened = Model(text, recipe, model if isinstance(model, Encoder) else model.encoder, report=report)
    opened = replace(opened, bits=weights.bits, decoder=f"{weights.label} holds an encoder alone")
    if isinstance(model, Task):
        return replace(opened, task=model)
    return opened if isinstance(model, Encoder) else replace(opened, method=model, decoder=None)


def _check_form(weights: Weights, recipe: Recipe, made: str | None) -> None:
    """Another form would start its relative positions at zero and be no model that was ever trained."""
    wanted = getattr(recipe.encoder, "form", None)
    if None not in (made, wanted) and made != wanted:
        raise UserError(
            f"{weights.label} was trained in the form {made!r}, so it cannot be opened with encoder.form={wanted}; "
            "leave that out, or train an encoder of that form from a file of pre-training (encoder.init=)."
        )


def is_vit(weights: Weights) -> bool:
    """Whether these are all tensors of a plain ViT, which mimkit computes itself."""
    family, _ = zoo.recognise(weights.tensors)
    reading = read(family, weights.tensors)
    return not reading.unexplained and size_of(reading.tensors) is not None


def with_decoder(model: Model) -> Method:
    """The method of a model whose decoder was trained. Raises UserError otherwise, naming the files that have one."""
    if model.method is None or model.decoder is not None:
        raise UserError(
            f"There is no reconstruction to draw from {model.label}: {model.decoder}, so its decoder would be random "
            f"noise. Of the published files, {WITH_DECODER} have one; a run has one after its first checkpoint."
        )
    return model.method
