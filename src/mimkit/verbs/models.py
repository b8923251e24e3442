"""A model to look at: out of a run folder, a published file, `timm:NAME`, `hf:FOLDER` or `random:NAME`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mimkit import encoders, zoo
from mimkit.encoders import Encoder
from mimkit.encoders.vit import VARIANTS
from mimkit.engine import checkpoint
from mimkit.errors import DataError, UserError
from mimkit.methods.base import Method
from mimkit.recipes import build, load
from mimkit.recipes.schema import Recipe
from mimkit.zoo.likeness import size_of
from mimkit.zoo.load import load as fill
from mimkit.zoo.rules import read
from mimkit.zoo.source import open_source

log = logging.getLogger(__name__)

IMAGENET = ("data.channels=3", "data.mean=[0.485, 0.456, 0.406]", "data.std=[0.229, 0.224, 0.225]")
WITH_DECODER = "mae_pretrain_vit_*_full.pth (normalised pixels) or mae_visualize_vit_*.pth (raw pixels)"


@dataclass(frozen=True)
class Model:
    """An encoder, the recipe that describes it and the images it expects, and the method around it where there is one.

    decoder: None when the method's decoder was trained, else a sentence that says why there is none to look at.
    step: finished optimiser steps of a run, None for a file.
    """

    label: str
    recipe: Recipe
    encoder: Encoder
    method: Method | None = None
    decoder: str | None = "it is an encoder alone"
    step: int | None = None


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
    recipe = load.resolve(run, overrides)
    _check_same_model(run, load.resolve(run), recipe)
    method = build.method(recipe)
    folder = checkpoint.latest_good(run)
    state = checkpoint.restore(folder, method)
    if (folder / checkpoint.EMA).exists():
        method.load_state_dict(checkpoint.read_tensors(folder, checkpoint.EMA), strict=False)
        log.info("%s: the moving average of the weights is used", folder)
    untrained = f"{folder} was saved before the first step" if state.step == 0 else None
    return Model(str(run), recipe, method.encoder.eval(), method.eval(), untrained, state.step)


def _check_same_model(run: Path, saved: Recipe, wanted: Recipe) -> None:
    changed = [
        key
        for key, _, _ in load.difference(saved, wanted)
        if key.startswith(("encoder.", "method.decoder", "data.channels"))
    ]
    if changed:
        raise UserError(
            f"{', '.join(changed)} cannot be changed for the run {run}: its weights were made that way; "
            "leave that override out."
        )


def _from_name(text: str, kind: str, name: str, overrides: Sequence[str]) -> Model:
    """A timm model with its published weights, or an encoder of mimkit or timm with random ones."""
    encoder_name = f"timm:{name}" if kind == "timm" else name
    patch = VARIANTS[name].patch if name in VARIANTS else 16
    settings = [f"encoder.name={encoder_name}", f"encoder.patch={patch}", *IMAGENET]
    recipe = load.resolve("mae_base", [*settings, *overrides])
    encoder = build.encoder(recipe)
    if kind == "timm":
        log.info("%s", fill(encoder, open_source(text)))
    return Model(text, recipe, encoder.eval())


def _from_file(text: str, overrides: Sequence[str]) -> Model:
    """A published file (or a folder of the transformers hub); what it holds says how the model is built."""
    weights = open_source(text)
    family, _ = zoo.recognise(weights.tensors)
    tensors = read(family, weights.tensors).tensors
    settings = _settings(text, tensors, weights.grid, weights.norm_pix)
    recipe = load.resolve("mae_base", [*settings, *IMAGENET, *overrides])
    method = build.method(recipe)
    report = fill(method, weights)
    log.info("%s", report)
    missing = None if report.decoder else f"{weights.label} holds an encoder alone"
    return Model(text, recipe, method.encoder.eval(), method.eval(), missing)


def _settings(
    text: str, tensors: dict[str, Tensor], grid: Sequence[int] | None, norm_pix: bool | None
) -> list[str]:
    """What the shapes of a file say about the recipe, as overrides."""
    size = size_of(tensors)
    names = {(row.width, row.depth): name for name, row in VARIANTS.items()}
    if size not in names:
        raise DataError(
            f"{text} holds no encoder that mimkit builds by name; known are {', '.join(encoders.names())}."
        )
    height, width = tensors["encoder.patch_embed.proj.weight"].shape[2:]
    rows, columns = grid or (224 // height, 224 // width)
    settings = [
        f"encoder.name={names[size]}",
        f"encoder.patch=[{height}, {width}]",
        f"data.size=[{rows * height}, {columns * width}]",
    ]
    if "decoder.embed.weight" in tensors:
        blocks = {name.split(".")[2] for name in tensors if name.startswith("decoder.blocks.")}
        settings += [
            f"method.decoder.width={tensors['decoder.embed.weight'].shape[0]}",
            f"method.decoder.depth={len(blocks)}",
        ]
    if norm_pix is not None:
        settings.append(f"method.norm_pix={str(norm_pix).lower()}")
    return settings


def with_decoder(model: Model) -> Method:
    """The method of a model whose decoder was trained. Raises UserError otherwise, naming the files that have one."""
    if model.method is None or model.decoder is not None:
        raise UserError(
            f"There is no reconstruction to draw from {model.label}: {model.decoder}, so its decoder would be random "
            f"noise. Of the published files, {WITH_DECODER} have one; a run has one after its first checkpoint."
        )
    return model.method
