"""`mimkit finetune`: from an encoder and labelled images to a classifier, all of it trained, a part, or a head alone.

The way is that of pre-training: a recipe, images, a settled recipe, a model, and `verbs.training` with the engine
behind it, so runs are resumed, stopped and written down alike. What is its own: labels that are looked at before
anything is made, weights to start from that have a say in the recipe, and an evaluation on held-out images while it
trains.
"""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mimkit import plots, tasks
from mimkit.data.classes import counts_of
from mimkit.data.labelled import prepare_training
from mimkit.data.loader import eval_batches
from mimkit.data.normalise import prepare
from mimkit.data.sampling import epoch_order
from mimkit.data.sources import Source
from mimkit.engine import checkpoint
from mimkit.engine.trainable import Evaluator
from mimkit.errors import counted
from mimkit.recipes import build, load
from mimkit.recipes.schema import Recipe
from mimkit.tasks import Metric, Task
from mimkit.verbs import training
from mimkit.verbs.labels import LabelledSets, labelled_sets
from mimkit.verbs.start import Start, initialise, start_of
from mimkit.verbs.training import Outcome, Place

log = logging.getLogger(__name__)

CHUNK = 64  # images that are evaluated at once
PICTURED = 24


def run(source: str | Path, overrides: Sequence[str] = (), resume: bool = False) -> Outcome:
    """See `mimkit.api.finetune`."""
    training.check_resumed(source, overrides, resume)
    start = find_start(source, overrides)
    recipe = start.recipe
    training.check_source(source, recipe, "finetune", resume)
    recipe.tuning  # noqa: B018  (which says what a recipe for pre-training is for, before anything is made)
    with training.place_of(recipe, resume) as (recipe, place):
        sets = place.here.from_first(lambda: labelled_sets(recipe))
        recipe = training.settle(recipe, sets.train, place)
        return _train(recipe, replace(start, recipe=recipe), sets, place)


def find_start(source: str | Path, overrides: Sequence[str]) -> Start:
    """The recipe behind a name, a YAML file or a run folder, and the weights that it starts from."""
    if not training.is_run(source):
        return start_of(source, overrides)
    overrides = [*overrides, f"train.run={source}"]
    begun = checkpoint.saved(Path(source).expanduser())
    return Start(load.resolve(source, overrides)) if begun else start_of(source, overrides)


def _train(recipe: Recipe, start: Start, sets: LabelledSets, place: Place) -> Outcome:
    """Build everything and let the engine run."""
    classes = sets.train.classes
    model = build.task(recipe, classes, counts_of(sets.train)).to(place.device)
    if not place.resume:
        initialise(model, start, classes)
    recipe = training.settle_batch(recipe, model, place)
    options = training.options_of(recipe, len(sets.train), place)
    assert recipe.data.mean is not None and recipe.data.std is not None
    outcome = training.train(
        recipe,
        model,
        sets.train,
        build.finetune_data(recipe, sets.train),
        partial(
            prepare_training,
            device=place.device,
            mean=recipe.data.mean,
            std=recipe.data.std,
            mixing=build.mixing(recipe, len(classes)),
        ),
        evaluators(recipe, sets.val, place, options.schedule.steps_per_epoch),
        options,
        place,
        {"task": recipe.tuning.name, "classes": list(classes), "head": recipe.tuning.head},
    )
    return replace(outcome, message=_message(outcome, shlex.quote(str(place.folder))))


def _message(outcome: Outcome, folder: str) -> str:
    top1 = outcome.row.get("val/top1")
    held = "" if top1 is None else f", top-1 {100 * top1:.1f} % on the held-out images"
    look = "mimkit predict" if top1 is None else "mimkit evaluate"
    path = " PATH" if top1 is None else ""
    return (
        f"Done: {counted(outcome.steps, 'step')}, loss {outcome.loss:.4f}{held}. Run folder {folder}; "
        f"look with `{look} {folder}{path}` and `mimkit report {folder}`."
    )


def evaluators(recipe: Recipe, val: Source | None, place: Place, steps_per_epoch: int) -> list[Evaluator]:
    """What looks at the model on the held-out images, at the recipe's cadence."""
    if val is None:
        return []
    part = recipe.log
    judge = _Validation(recipe, val, place)
    draw = _Pictures(recipe, val, place.folder / "samples", place.device)
    return [
        Evaluator("val", part.evaluate_every * steps_per_epoch, judge, judge.together),
        Evaluator("samples", part.samples_every * steps_per_epoch, draw),
    ]


class _Validation:
    """The task's metric on the held-out images, each process measuring its share of them."""

    def __init__(self, recipe: Recipe, val: Source, place: Place) -> None:
        self.recipe, self.val, self.place = recipe, val, place
        # The batch norm of a probe has statistics of its own in every process, those of the first one are kept
        self.together = recipe.tuning.head != "probe"

    def __call__(self, module: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(module, Task)
        part = self.recipe.data
        assert part.channels is not None and part.mean is not None and part.std is not None
        here, share = self.place.here, range(len(self.val))
        if self.together:
            share = share[here.rank :: here.world]
        workers = (part.workers or 0) if len(share) > build.FEW_IMAGES else 0
        batches = partial(eval_batches, self.val, part.size, part.channels, CHUNK, workers, share)
        bring = partial(prepare, device=self.place.device, mean=part.mean, std=part.std)

        def measure() -> Metric[Any]:
            return tasks.evaluate(module, batches(), bring, self.place.autocast)

        metric, *others = here.together(measure) if self.together else [measure()]
        metric.merge(others)
        found = {f"val/{name}": value for name, value in metric.result().items() if name != "images"}
        shown = ", ".join(f"{name} {found[f'val/{name}']:.4f}" for name in ("top1", "loss"))
        log.info("step %d, held-out images: %s", step, shown)
        return found


class _Pictures:
    """A contact sheet of predictions for the same held-out images every time."""

    def __init__(self, recipe: Recipe, val: Source, folder: Path, device: torch.device) -> None:
        self.recipe, self.val, self.folder, self.device = recipe, val, folder, device

    def __call__(self, module: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(module, Task)
        part = self.recipe.data
        assert part.channels is not None and part.mean is not None and part.std is not None
        ids = sorted(epoch_order(0, 0, len(self.val))[:PICTURED].tolist())
        (batch,) = eval_batches(self.val, part.size, part.channels, len(ids), ids=ids)
        if len(batch.ids):
            predictions = module.predict(prepare(batch, self.device, part.mean, part.std))
            figure = module.draw(batch, predictions, channels=self.recipe.log.channels)
            plots.save(figure, self.folder / f"step-{step:07}.png")
        return {}
