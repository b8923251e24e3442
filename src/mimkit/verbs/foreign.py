"""Networks that timm computes: which recipe their weights belong to, and whether a head on them is a classifier here.

What mimkit computes itself is described in `verbs.describe`. Here timm knows the architecture by its name; the weights
and the configuration beside them say the rest.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from mimkit.data.batch import Batch
from mimkit.encoders import Encoder
from mimkit.errors import DataError, UserError, nearest
from mimkit.recipes import build, load
from mimkit.recipes.schema import Recipe
from mimkit.tasks.classify import Classifier
from mimkit.verbs.describe import base_of, says, statistics
from mimkit.zoo import foreign
from mimkit.zoo.load import load as fill
from mimkit.zoo.report import LoadReport
from mimkit.zoo.weights import Weights

log = logging.getLogger(__name__)


def open_foreign(
    text: str, weights: Weights, overrides: Sequence[str]
) -> tuple[Recipe, Encoder | Classifier, LoadReport]:
    """(recipe, module, report) of a model of timm's: the classifier where its head reads what one here reads, else the
    encoder, and a log line says why.

    Raises UserError or DataError, with the file that names the architecture, where it is unknown or of other weights.
    """
    _check_known(weights)
    try:
        return _opened(text, weights, overrides)
    except DataError as error:
        if weights.config is None:
            raise
        raise DataError(
            f"{weights.config} names the architecture {weights.architecture!r}; correct it if these are the weights of "
            f"another one. {error}"
        ) from error


def _check_known(weights: Weights) -> None:
    """Raise UserError where a file names an architecture that timm does not know."""
    import timm
    from timm.models import get_pretrained_cfg

    name, file = str(weights.architecture), weights.config
    bare = name.partition(".")[0]
    if file is None:
        return
    if not timm.is_model(bare):
        known = timm.list_models()
        raise UserError(
            f"{file} names the architecture {name!r}, which timm does not know; known are the {len(known)} names of "
            f"timm.list_models(): write there which one the weights are of.{nearest(bare, known)}"
        )
    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:  # a tag of weights that timm does not have
        raise UserError(f"{file} names the architecture {name!r}: {error} Write {bare!r} there.") from error


def _opened(
    text: str, weights: Weights, overrides: Sequence[str]
) -> tuple[Recipe, Encoder | Classifier, LoadReport]:
    name = str(weights.architecture)
    channels = channels_of(weights, name)
    settings = [says("encoder.name", f"timm:{name}"), says("data.channels", channels)]
    if weights.size:  # any size; timm knows its patch
        settings += [says("data.size", weights.size), says("encoder.patch", 1)]
    settings += statistics(text, channels, weights.mean, weights.std)
    if (found := _classifier(weights, settings, overrides)) is not None:
        return found
    recipe = load.resolve(base_of(name), [*settings, *overrides])
    encoder = build.encoder(recipe)
    return recipe, encoder, fill(encoder, weights)


def channels_of(weights: Weights, name: str) -> int:
    """Channels of the images that weights of timm's model `name` take, by the kernel that timm says is the first; 3
    where it says none.
    """
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    first = f"{getattr(config, 'first_conv', None)}.weight"
    kernel = weights.tensors.get(first, weights.tensors.get(f"encoder.model.{first}"))
    return 3 if kernel is None else kernel.shape[1]


def _classifier(
    weights: Weights, settings: Sequence[str], overrides: Sequence[str]
) -> tuple[Recipe, Classifier, LoadReport] | None:
    """The classifier, None where there is no head or it reads other features."""
    named = load.resolve(base_of("", False), settings)
    heads = tuple(head.removeprefix("model.") for head in build.encoder(named).heads)
    split = foreign.split_head(weights.tensors, heads)
    if split is None:
        return None
    classes = weights.classes or [str(i) for i in range(len(split.bias))]
    own = {f"encoder.model.{name}": tensor for name, tensor in split.encoder.items()}
    whole = replace(weights, tensors={**own, "head.weight": split.weight, "head.bias": split.bias})
    task = build.task(load.resolve(base_of("", True), settings), classes)
    assert isinstance(task, Classifier)
    fill(task, whole)
    pooling = _pooling(task.eval(), weights, named)
    if pooling is None:
        log.info(
            "%s: the head of timm's %s reads other features than a classifier here; only its encoder is used.",
            weights.label,
            weights.architecture,
        )
        return None
    pooled = [*settings, says("task.pooling", pooling), says("task.head", "linear")]
    recipe = load.resolve(base_of("", True), [*pooled, *overrides])
    task = build.task(recipe, classes)
    assert isinstance(task, Classifier)
    return recipe, task, fill(task, whole)


def _pooling(task: Classifier, weights: Weights, recipe: Recipe) -> str | None:
    """How the features are pooled for timm's model to answer alike; None where no way is found."""
    assert recipe.data.channels is not None
    images = foreign.example(recipe.data.channels, recipe.data.size)
    theirs = foreign.their_logits(
        str(weights.architecture), weights.arguments, weights.tensors, len(task.classes), images
    )
    prefix = getattr(task.encoder, "prefix_tokens", 0)
    for pooling in ("mean", "cls") if prefix else ("mean",):
        task.pooling = pooling
        with torch.no_grad():
            if foreign.alike(task.logits(Batch(images, torch.arange(len(images)))), theirs):
                return pooling
    return None
