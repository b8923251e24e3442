"""What all verbs that train have in common: a named and claimed run folder, a recipe that may or may not have changed
since, the engine's options, and what is said before the first step.

A verb finds its recipe, enters `place_of`, opens its images, builds its model and hands all of it to `train`.
"""

import hashlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mimkit.analysis import cost
from mimkit.data.batch import Batch
from mimkit.data.loader import TrainData, check_batch, train_batches
from mimkit.data.sampling import steps_per_epoch
from mimkit.data.sources import Source
from mimkit.data.stats import deepest
from mimkit.engine import checkpoint, devices, processes, run_folder, schedule
from mimkit.engine.command import resume_command
from mimkit.engine.loop import fit
from mimkit.engine.options import About, FitOptions
from mimkit.engine.processes import Processes
from mimkit.engine.recovery import check_images
from mimkit.engine.trainable import Evaluator
from mimkit.errors import UserError, counted
from mimkit.methods.base import Method
from mimkit.recipes import build, load
from mimkit.recipes.schema import Recipe
from mimkit.tasks import Task
from mimkit.verbs.files import writing

log = logging.getLogger(__name__)

RESUMABLE = {  # what may differ when a run is resumed: nothing here changes what is learned, but for train.epochs
    "about",
    "data.bad_share",
    "data.path",
    "data.val",
    "data.workers",
    "log",
    "train.checkpoint_every",
    "train.device",
    "train.epochs",
    "train.keep",
    "train.micro_batch",
    "train.parallel",
    "train.run",
}


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, its optimiser steps, its last row of metrics with a finite loss, and a sentence for
    the terminal.
    """

    run: Path
    steps: int
    row: Mapping[str, Any]
    message: str

    @property
    def loss(self) -> float:
        """Of the last step whose loss was finite; NaN where none was."""
        return math.nan if self.row["loss"] is None else float(self.row["loss"])


@dataclass(frozen=True)
class Place:
    """Where a run happens: its folder, whether there is a checkpoint to go on from, device, processes, precision."""

    folder: Path
    resume: bool
    device: torch.device
    here: Processes
    precision: str

    @property
    def autocast(self) -> Callable[[], Any]:
        return partial(devices.autocast, self.precision, self.device)


def is_run(source: str | Path) -> bool:
    """Whether `source` is a folder with a run in it."""
    return (Path(source).expanduser() / load.RUN_RECIPE).is_file()


def check_source(source: str | Path, recipe: Recipe, verb: str, resume: bool) -> None:
    """Raise UserError where a run folder is given without `resume`, or with it a recipe that names none."""
    if is_run(source) and not resume:
        raise UserError(
            f"{source} already holds a run; go on with `{resume_command(Path(source))}`, or start another with its "
            f"recipe: `mimkit {verb} {Path(source) / load.RUN_RECIPE} train.run=NAME`."
        )
    if resume and recipe.train.run is None:
        raise UserError(_no_run(source))


def check_resumed(source: str | Path, overrides: Sequence[str], resume: bool) -> None:
    """Raise UserError where `resume` is asked of a folder that holds no run, before it is looked at as images."""
    recipe = str(source) in load.names() or Path(source).suffix in (".yaml", ".yml")
    if resume and not (recipe or is_run(source) or any(text.startswith("train.run=") for text in overrides)):
        raise UserError(_no_run(source))


def _no_run(source: str | Path) -> str:
    return f"{source} is no run folder, so there is nothing to resume; name the run: runs/NAME --resume."


@contextmanager
def place_of(recipe: Recipe, resume: bool) -> Iterator[tuple[Recipe, Place]]:
    """Join the other processes, name the run, claim and lock its folder; what is logged inside goes to its log too."""
    device = devices.choose_device(recipe.train.device)
    precision = devices.choose_precision(recipe.train.precision, device)
    with processes.start(device) as here, ExitStack() as stack:
        recipe, folder, made = name_run(recipe, here)

        def enter() -> bool:
            stack.enter_context(run_folder.occupied(folder, resume, made))
            return bool(checkpoint.saved(folder))

        begun = here.from_first(enter)
        # without a checkpoint it begins: data are measured and weights loaded as for a new run
        yield recipe, Place(folder, resume and begun, device, here, precision)


def settle(recipe: Recipe, images: Source, place: Place) -> Recipe:
    """Fill in what the recipe leaves open about the images; a resumed run has it settled, and keeps to it.

    Raises UserError where it was begun on other images, before these are blamed for anything else.
    """
    if place.resume:
        place.here.from_first(lambda: check_images(place.folder, images.digest(), named(images)))
        return check_unchanged(place.folder, recipe)
    return place.here.from_first(lambda: build.settle_data(recipe, images))


def settle_batch(recipe: Recipe, model: Method | Task, place: Place) -> Recipe:
    """Fill in the micro-batch that fits into the memory of this device."""
    world, cpu = place.here.world, place.device.type == "cpu"
    return place.here.from_first(
        lambda: build.settle_batch(recipe, model, place.autocast, build.free_bytes(place.device), world, cpu)
    )


def named(images: Source) -> str:
    """The images in a few words, as checkpoints remember them."""
    return f"{counted(len(images), 'image')} in {images.name}"


def drawn(recipe: Recipe) -> str:
    """What each micro-batch draws, or averages, for itself: the engine seeds it by the micro-batch's place in the step,
    so it is the same for any number of processes and another for micro-batches of another size.
    """
    task = recipe.task
    of_task = (
        {} if task is None else {"Mixup": task.mixup, "CutMix": task.cutmix, "random erasing": task.erasing}
    )
    parts = {"drop path": recipe.encoder.drop_path, **of_task}
    words = [name for name, amount in parts.items() if amount]
    words += ["batch norm"] if task is not None and task.head == "probe" else []
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def options_of(recipe: Recipe, images: int, place: Place) -> FitOptions:
    """The recipe as the engine wants it. images: how many there are to train on."""
    train, micro = recipe.train, recipe.train.micro_batch
    assert micro is not None, "settle_batch comes first"
    per_epoch = steps_per_epoch(images * recipe.data.repeats, train.batch_size)
    check_batch(images, train.batch_size, micro, place.here.world, recipe.data.repeats)
    course = schedule.Schedule(
        recipe.optimiser.lr or schedule.peak_lr(recipe.optimiser.base_lr, train.batch_size),
        train.epochs,
        per_epoch,
        recipe.schedule.warmup_epochs,
        recipe.schedule.min_lr,
    )
    return FitOptions(
        course,
        micro,
        accumulate=train.batch_size // (micro * place.here.world),
        seed=train.seed,
        precision=place.precision,
        parallel=train.parallel,
        clip=recipe.optimiser.clip,
        ema=train.ema,
        checkpoint_every=train.checkpoint_every,
        keep=train.keep,
        log_every=recipe.log.every,
        rollback_after=train.rollback_after,
        bad_share=recipe.data.bad_share,
        writers=recipe.log.writers,
    )


def train(
    recipe: Recipe,
    model: Method | Task,
    images: Source,
    data: TrainData[Any],
    prepare: Callable[[Any], Batch],
    evaluators: Sequence[Evaluator],
    options: FitOptions,
    place: Place,
    extra: Mapping[str, Any],
) -> Outcome:
    """Let the engine train `model`, or go on with it; the message of what comes back is the caller's.

    data: what the loader draws from `images`. extra: what every checkpoint says of itself besides the statistics.
    """
    here, folder = place.here, place.folder
    here.from_first(lambda: _keep_recipe(recipe, folder))
    if here.first:
        _announce(recipe, model, images, options, place)
    if recipe.train.compile:
        model.compile()
    outcome = fit(
        model,
        build.optimiser(recipe, model),
        partial(_batches, data, recipe, options, place),
        prepare,
        options,
        folder,
        resume=place.resume,
        evaluators=evaluators,
        processes=here,
        about=_about(recipe, model, images, extra),
    )
    rows = run_folder.read_rows(folder / run_folder.METRICS)
    row = next((row for row in reversed(rows) if row["loss"] is not None), rows[-1])
    return Outcome(folder, outcome.state.step, row, "")


def _keep_recipe(recipe: Recipe, folder: Path) -> None:
    """Write the settled recipe."""
    with writing(folder / load.RUN_RECIPE) as file:
        file.write(load.dump(recipe))


def name_run(recipe: Recipe, here: Processes) -> tuple[Recipe, Path, list[Path]]:
    """The run folder, the same for all processes: the recipe's, or runs/<recipe>-<time>; and the folders that this
    start makes for it.
    """
    named, made = here.from_first(lambda: _named(recipe.train.run) or _new_folder(recipe.name))
    train = recipe.train.model_copy(update={"run": named})
    return recipe.model_copy(update={"train": train}), Path(named), made


def _named(run: str | None) -> tuple[str, list[Path]] | None:
    return None if run is None else (run, run_folder.missing(Path(run)))


def _new_folder(recipe: str) -> tuple[str, list[Path]]:
    """runs/<recipe>-<time>, made here: of two runs that start in the same second the later one gets a number."""
    stem = f"runs/{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        made = run_folder.missing(Path(name))
        try:
            Path(name).mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:
            break  # `claim` says why no folder can be made there
        return name, made
    return stem, []


def check_unchanged(folder: Path, wanted: Recipe) -> Recipe:
    """The recipe to go on with. Raises UserError with the differences where more than `RESUMABLE` has changed."""
    saved = load.resolve(folder)
    changed = [
        f"{key}: {old} -> {new}"
        for key, old, new in load.difference(saved, wanted)
        if RESUMABLE.isdisjoint((key, key.partition(".")[0]))
    ]
    if changed:
        raise UserError(
            f"The run in {folder} was made with another recipe ({'; '.join(changed)}); resume it without these "
            f"changes, or start another run with encoder.init={folder}. Only these may change: "
            f"{', '.join(sorted(RESUMABLE))}."
        )
    if wanted.train.epochs != saved.train.epochs:
        log.warning(
            "train.epochs is %d where the run had %d: from here on the learning rate follows the new length.",
            wanted.train.epochs,
            saved.train.epochs,
        )
    return wanted


def _batches(
    data: TrainData[Any], recipe: Recipe, options: FitOptions, place: Place, start: int
) -> Iterator[Any]:
    return train_batches(
        data,
        recipe.train.batch_size,
        options.micro_batch,
        start,
        options.schedule.steps,
        recipe.data.workers or 0,
        place.here.rank,
        place.here.world,
        pin=place.device.type == "cuda",
    )


def _about(recipe: Recipe, model: Method | Task, images: Source, extra: Mapping[str, Any]) -> About:
    """What a checkpoint says of itself: the statistics to normalise by, the depth of the images (8, 16, or 32 bits for
    floats), and what the verb adds.
    """
    part = recipe.data
    facts = {"mean": part.mean, "std": part.std, "channels": part.channels, "encoder": recipe.encoder.name}
    facts["bits"] = deepest(images)[0]
    return About(
        recipe=hashlib.blake2b(load.dump(recipe).encode(), digest_size=16).hexdigest(),
        data=images.digest(),
        data_named=named(images),
        drawn=drawn(recipe),
        extra={**facts, **extra},
        config=recipe.model_dump(mode="json"),
        flops_per_image=float(cost.step_flops(model, part.size)),
    )


def _announce(
    recipe: Recipe, model: Method | Task, images: Source, options: FitOptions, place: Place
) -> None:
    """What will happen, in a few lines."""
    height, width = recipe.data.size
    log.info(
        "%s on %s, %.1f M parameters, %s of %s, crops of %d x %d, %s on %s",
        recipe.method.name if recipe.method is not None else recipe.tuning.name,
        recipe.encoder.name,
        cost.parameters(model) / 1e6,
        counted(len(images), "image"),
        counted(recipe.data.channels or 0, "channel"),
        height,
        width,
        options.precision,
        place.device,
    )
    if recipe.optimiser.lr is None:
        rule = schedule.describe_lr(
            recipe.optimiser.base_lr, options.micro_batch, options.accumulate, place.here.world
        )
        log.info("%s", rule)
    else:
        log.info("lr %s as the recipe gives it", schedule.short(recipe.optimiser.lr))
    if recipe.schedule.warmup_epochs >= recipe.train.epochs:
        log.warning(
            "The warm-up of %s is not shorter than the run of %d: the learning rate never peaks; shorten it "
            "with schedule.warmup_epochs=.",
            counted(recipe.schedule.warmup_epochs, "epoch", "g"),
            recipe.train.epochs,
        )
    log.info(
        "%s of %s = %s; run folder %s",
        counted(recipe.train.epochs, "epoch"),
        counted(options.schedule.steps_per_epoch, "step"),
        counted(options.schedule.steps, "step"),
        place.folder,
    )
