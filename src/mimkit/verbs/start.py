"""The weights that a fine-tuning run starts from, and what they say about its recipe.

Patch, positions, image size, channels, mean and deviation belong to weights more than to a training recipe, so they
stand above those of a packaged recipe; a file of one's own and overrides stand above them. Who starts from a run of
8-pixel patches thus needs not say so again.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mimkit.encoders.vit import VARIANTS
from mimkit.engine import checkpoint
from mimkit.errors import DataError, UserError
from mimkit.recipes import load
from mimkit.recipes.schema import Recipe
from mimkit.verbs.describe import recipe_of, says, statistics
from mimkit.verbs.foreign import channels_of
from mimkit.verbs.training import is_run
from mimkit.zoo.likeness import size_of, variant
from mimkit.zoo.load import load as fill
from mimkit.zoo.load import read_strictly
from mimkit.zoo.mcmae_shapes import is_hybrid
from mimkit.zoo.source import open_source
from mimkit.zoo.weights import Weights

log = logging.getLogger(__name__)

OF_THE_WEIGHTS = (
    "encoder.patch",
    "encoder.positions",
    "encoder.class_token",
    "encoder.layer_scale",
    "encoder.kernel",
    "data.size",
    "data.channels",
    "data.mean",
    "data.std",
)
RANDOM = "random:"


@dataclass(frozen=True)
class Start:
    """A recipe, and the weights that its `encoder.init` names (None: random ones)."""

    recipe: Recipe
    weights: Weights | None = None


def start_of(source: str | Path, overrides: Sequence[str]) -> Start:
    """The recipe `source` as the weights of its `encoder.init` want it.

    Raises UserError where there are no such weights, DataError where they are of another encoder than the recipe's.
    """
    recipe = load.resolve(source, overrides)
    init = recipe.encoder.init
    if init is None:
        return Start(recipe)
    if init.startswith(RANDOM):
        _check_random(recipe, init)
        return Start(recipe)
    weights = open_source(init)
    said = _says(recipe, init, weights, source)
    settled = load.resolve(source, overrides, said)
    changed = [(key, new) for key, _, new in load.difference(recipe, settled)]
    if changed:
        words = ", ".join(f"{key}={_plain(value)}" for key, value in changed)
        log.info("As %s has it: %s", init, words)
    return Start(settled, weights)


def initialise(model: nn.Module, start: Start, classes: Sequence[str]) -> None:
    """Put the weights of `start` into a task's encoder; its head starts anew unless it is one for the same classes."""
    if start.weights is None:
        log.info("Random weights: nothing was loaded (encoder.init= names weights to start from).")
        return
    head = model.get_submodule("head")
    fresh = deepcopy(head.state_dict())
    report = fill(model, start.weights)
    log.info("%s", report)
    if any(name.startswith("head.") for name in report.loaded):
        init = start.recipe.encoder.init
        known = start.weights.classes if init is None else classes_of(init) or start.weights.classes
        if known == tuple(classes):
            log.info("The head for the same classes is kept.")
        else:
            head.load_state_dict(fresh)
            log.info("The head starts anew: nothing says that these classes are those it was trained for.")


def classes_of(run: str | Path) -> tuple[str, ...] | None:
    """The classes that the newest checkpoint of a fine-tuning run was trained for, in order; None for all else."""
    if not is_run(run):
        return None
    classes = checkpoint.read_state(checkpoint.latest_good(Path(run).expanduser())).extra.get("classes")
    return None if classes is None else tuple(classes)


def _says(recipe: Recipe, init: str, weights: Weights, source: str | Path) -> list[str]:
    """What the weights settle, as overrides."""
    if recipe.encoder.name.startswith("timm:"):
        return _says_of_timm(recipe, weights)
    _, reading = read_strictly(weights)
    described = recipe_of(init, weights, reading.tensors)
    _check_same(recipe, described, init, reading.tensors, source)
    own = recipe.data.channels
    kept: tuple[str, ...] = ()
    if own is not None and own != described.data.channels:  # other images
        kept = ("data.channels", "data.mean", "data.std")
    known = [key for key in OF_THE_WEIGHTS if knows(recipe, key) and knows(described, key)]
    keys = [key for key in known if key not in kept]
    return [says(key, _value(described, key)) for key in keys if _value(described, key) is not None]


def _says_of_timm(recipe: Recipe, weights: Weights) -> list[str]:
    """What the weights of one of timm's networks settle: their first kernel has the channels of the images."""
    said = [says("encoder.patch", 1)]
    if weights.size:
        said.append(says("data.size", list(weights.size)))
    if recipe.data.channels is not None:
        return said
    channels = channels_of(weights, recipe.encoder.name.removeprefix("timm:"))
    return [
        *said,
        says("data.channels", channels),
        *statistics(weights.label, channels, weights.mean, weights.std),
    ]


def knows(recipe: Recipe, key: str) -> bool:
    """Whether the recipe has such a field: a hybrid encoder has no class token, and its patch is fixed."""
    part, name = key.split(".")
    return name in type(getattr(recipe, part)).model_fields


def _value(recipe: Recipe, key: str) -> Any:
    part, name = key.split(".")
    return getattr(getattr(recipe, part), name)


def _check_same(
    recipe: Recipe, described: Recipe, init: str, tensors: Mapping[str, Tensor], source: str | Path
) -> None:
    """Raise DataError when the weights are of another encoder than the recipe builds, with the command that fits."""
    theirs, ours = described.encoder.name, recipe.encoder.name
    size, hybrid = size_of(tensors), is_hybrid(tensors)
    if theirs == ours or (size is None and not hybrid):
        return
    row = VARIANTS.get(ours)
    if row is not None and size == (row.width, row.depth):
        return  # the same sizes by another name: what differs shows when the tensors are compared
    if hybrid and ours.startswith("mcmae"):
        return  # shapes do not tell heads; what differs shows there too
    kind = re.split("_vit_|_mcmae_", recipe.name)[0]  # finetune, linear_probe
    fitting, same = f"{kind}_{theirs}", hybrid == ours.startswith("mcmae")
    base = source if same else f"{kind}_{'mcmae' if hybrid else 'vit'}_base"
    name = fitting if fitting in load.names() else f"{base} encoder.name={theirs}"
    held = variant(*size) if size else theirs
    raise DataError(
        f"{init} holds an encoder {held}, and the recipe {recipe.name} builds {ours}; "
        f"use `mimkit finetune {name} encoder.init={init}`, or other weights."
    )


def _check_random(recipe: Recipe, init: str) -> None:
    name = init.removeprefix(RANDOM)
    if name != recipe.encoder.name:
        raise UserError(
            f"encoder.init={init} asks for another encoder than the recipe's, {recipe.encoder.name}; "
            f"add encoder.name={name}, or leave encoder.init out for random weights."
        )


def _plain(value: Any) -> str:
    """A value as an override writes it, mean and deviation shortened."""
    if isinstance(value, tuple):
        return "[" + ",".join(_plain(part) for part in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
