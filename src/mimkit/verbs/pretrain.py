"""`mimkit pretrain`: from images, a recipe or a run folder to a trained encoder.

The order: find the recipe (or choose one), open the images, settle what the recipe leaves open, build the model, and
hand all of it to `verbs.training`. A run folder keeps the settled recipe; a resumed run takes everything from there and
lets only a few fields change.
"""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from mimkit.data.decode import DecodeError
from mimkit.data.loader import upright_size
from mimkit.data.normalise import prepare
from mimkit.data.sources import Source, open_source
from mimkit.errors import DataError, counted
from mimkit.recipes import build, load
from mimkit.recipes.choose import choose
from mimkit.recipes.schema import Recipe
from mimkit.verbs import training, watch
from mimkit.verbs.training import Outcome, Place
from mimkit.zoo.load import initialise

__all__ = ["Outcome", "find_recipe", "run"]
log = logging.getLogger(__name__)

WARMUP_SHARE = 20  # a chosen warm-up is so small a part of the epochs
SIZED = 32  # images whose headers tell the usual size


def run(source: str | Path, overrides: Sequence[str] = (), resume: bool = False) -> Outcome:
    """See `mimkit.api.pretrain`."""
    training.check_resumed(source, overrides, resume)
    recipe = find_recipe(source, overrides)
    training.check_source(source, recipe, "pretrain", resume)
    method = recipe.pretraining.name  # which says what a recipe for a task is for, before anything is made
    with training.place_of(recipe, resume) as (recipe, place):
        images = place.here.from_first(lambda: build.source(recipe))
        recipe = training.settle(recipe, images, place)
        return _train(recipe, images, place, method)


def find_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe behind a name, a YAML file, a run folder or images (one is chosen then)."""
    text, path = str(source), Path(source).expanduser()
    if training.is_run(source):
        return load.resolve(source, [*overrides, f"train.run={source}"])
    named = text in load.names() or path.suffix in (".yaml", ".yml")
    looks_like_images = path.exists() or ("=" not in text and any(mark in text for mark in "/*{"))
    if named or not looks_like_images:
        return load.resolve(source, overrides)  # for an unknown name this raises and names the nearest one
    return choose_recipe(text, overrides)


def choose_recipe(path: str, overrides: Sequence[str]) -> Recipe:
    """A recipe for the images at `path` on this machine, with its reasons logged."""
    images = open_source(path)
    height, width, channels = usual_size(images)
    cuda = torch.cuda.is_available()
    memory = torch.cuda.mem_get_info()[1] if cuda else build.free_bytes(torch.device("cpu"))
    name, chosen, reasons = choose(len(images), height, width, channels, memory / 2**30, cuda)
    log.info("Recipe for these images: %s", " ".join([name, *chosen]))
    for reason in reasons:
        log.info("  %s", reason)
    if overrides:
        log.info("  On top of it, as you say: %s", " ".join(overrides))
    recipe = load.resolve(name, [f"data.path={path}", *chosen, *overrides])
    if recipe.schedule.warmup_epochs >= recipe.train.epochs:  # the user wants fewer epochs than were chosen
        brief = recipe.schedule.model_copy(update={"warmup_epochs": recipe.train.epochs / WARMUP_SHARE})
        recipe = recipe.model_copy(update={"schedule": brief})
    return recipe


def usual_size(images: Source) -> tuple[int, int, int]:
    """Median height and width in pixels, and the most frequent channel count, of a few images drawn evenly."""
    sizes, channels = [], []
    for i in range(0, len(images), max(1, len(images) // SIZED)):
        try:
            data = images.read(i)
            sizes.append(upright_size(data, images.key(i)))
            channels.append(build.stored_channels(data, images.key(i)))
        except DecodeError as error:
            log.debug("%s", error)
    if not sizes:
        raise DataError(
            f"None of the images looked at in {images.name} can be read; `mimkit data check {images.name}` says why."
        )
    heights, widths = zip(*sizes, strict=True)
    middle = len(sizes) // 2
    return sorted(heights)[middle], sorted(widths)[middle], max(channels, key=channels.count)


def _train(recipe: Recipe, images: Source, place: Place, method: str) -> Outcome:
    """Build everything and let the engine run."""
    model = build.method(recipe).to(place.device)
    if recipe.encoder.init is not None and not place.resume:
        initialise(model, recipe.encoder.init)
    recipe = training.settle_batch(recipe, model, place)
    options = training.options_of(recipe, len(images), place)
    assert recipe.data.mean is not None and recipe.data.std is not None
    outcome = training.train(
        recipe,
        model,
        images,
        build.pretrain_data(recipe, images, model.masker),
        partial(prepare, device=place.device, mean=recipe.data.mean, std=recipe.data.std),
        watch.evaluators(recipe, images, place.folder, place.device, options.schedule.steps_per_epoch),
        options,
        place,
        {
            "method": method,
            "target": "pixels normalised per patch" if recipe.pretraining.norm_pix else "pixels",
        },
    )
    folder = shlex.quote(str(place.folder))
    message = (
        f"Done: {counted(outcome.steps, 'step')}, loss {outcome.loss:.4f}. Run folder {folder}; "
        f"look with `mimkit reconstruct {folder}` and `mimkit report {folder}`."
    )
    return replace(outcome, message=message)
