"""`mimkit pretrain`: from images, a recipe or a run folder to a trained encoder.

The order: find the recipe (or choose one), open the images, settle what the recipe leaves open, build model and
optimiser, say in words what will happen, and hand all of it to the engine. A run folder keeps the settled recipe; a
resumed run takes everything from there and lets only a few fields change.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mimkit.analysis import cost
from mimkit.data.batch import Batch
from mimkit.data.decode import DecodeError
from mimkit.data.loader import PretrainData, train_batches, upright_size
from mimkit.data.normalise import prepare
from mimkit.data.sampling import steps_per_epoch
from mimkit.data.sources import Source, open_source
from mimkit.engine import devices, optimiser, processes, run_folder, schedule
from mimkit.engine.loop import fit
from mimkit.engine.options import About, FitOptions
from mimkit.engine.processes import Processes
from mimkit.errors import UserError
from mimkit.methods.base import Method
from mimkit.recipes import build, load
from mimkit.recipes.choose import choose
from mimkit.recipes.schema import Recipe
from mimkit.verbs import watch
from mimkit.zoo.load import initialise

log = logging.getLogger(__name__)

RESUMABLE = (  # what may differ when a run is resumed: nothing here changes what is learned, but for train.epochs
    "about",
    "data.bad_share",
    "data.path",
    "data.workers",
    "log.",
    "train.checkpoint_every",
    "train.device",
    "train.epochs",
    "train.keep",
    "train.run",
)
WARMUP_SHARE = 20  # a chosen warm-up is so small a part of the epochs
SIZED = 32  # images whose headers tell the usual size


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, its optimiser steps, its last loss, and a sentence for the terminal."""

    run: Path
    steps: int
    loss: float
    message: str


def run(source: str | Path, overrides: Sequence[str] = (), resume: bool = False) -> Outcome:
    """See `mimkit.api.pretrain`."""
    if is_run(source) and not resume:
        raise UserError(
            f"{source} already holds a run; go on with `mimkit pretrain {source} --resume`, or start another with "
            f"its recipe: `mimkit pretrain {Path(source) / load.RUN_RECIPE} train.run=NAME`."
        )
    recipe = find_recipe(source, overrides)
    if resume and recipe.train.run is None:
        raise UserError(
            f"{source} is no run folder, so there is nothing to resume; name the run: runs/NAME --resume."
        )
    device = devices.choose_device(recipe.train.device)
    with processes.start(device) as here:
        recipe, folder = _name_run(recipe, here)
        here.from_first(lambda: run_folder.claim(folder, resume))
        images = here.from_first(lambda: build.source(recipe))
        if resume:
            recipe = _check_resumed(folder, recipe)
        else:
            recipe = here.from_first(lambda: build.settle_data(recipe, images))
        with run_folder.log_file(folder) if here.first else nullcontext():
            return _train(recipe, images, folder, resume, device, here)


def is_run(source: str | Path) -> bool:
    """Whether `source` is a folder with a run in it."""
    return (Path(source).expanduser() / load.RUN_RECIPE).is_file()


def find_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe behind a name, a YAML file, a run folder or images (one is chosen then)."""
    text, path = str(source), Path(source).expanduser()
    if is_run(source):
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
        raise UserError(
            f"None of the images looked at in {images.name} can be read; `mimkit data check {images.name}` says why."
        )
    heights, widths = zip(*sorted(sizes), strict=True)
    middle = len(sizes) // 2
    return sorted(heights)[middle], sorted(widths)[middle], max(channels, key=channels.count)


def _name_run(recipe: Recipe, here: Processes) -> tuple[Recipe, Path]:
    """The run folder, the same for all processes: the recipe's, or runs/<recipe>-<time>."""
    named = here.from_first(
        lambda: recipe.train.run or f"runs/{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    train = recipe.train.model_copy(update={"run": named})
    return recipe.model_copy(update={"train": train}), Path(named)


def _check_resumed(folder: Path, wanted: Recipe) -> Recipe:
    """The recipe to go on with. Raises UserError with the differences where more than `RESUMABLE` has changed."""
    saved = load.resolve(folder)
    changed = [
        f"{key}: {old} -> {new}"
        for key, old, new in load.difference(saved, wanted)
        if not key.startswith(RESUMABLE)
    ]
    if changed:
        raise UserError(
            f"The run in {folder} was made with another recipe ({'; '.join(changed)}); resume it without these "
            f"changes, or start another run with encoder.init={folder}. Only these may change: "
            f"{', '.join(name.rstrip('.') for name in RESUMABLE)}."
        )
    if wanted.train.epochs != saved.train.epochs:
        log.warning(
            "train.epochs is %d where the run had %d: from here on the learning rate follows the new length.",
            wanted.train.epochs,
            saved.train.epochs,
        )
    return wanted


def _train(
    recipe: Recipe, images: Source, folder: Path, resume: bool, device: torch.device, here: Processes
) -> Outcome:
    """Build everything and let the engine run."""
    precision = devices.choose_precision(recipe.train.precision, device)
    autocast = partial(devices.autocast, precision, device)
    model = build.method(recipe).to(device)
    if recipe.encoder.init is not None and not resume:
        initialise(model, recipe.encoder.init)
    recipe = here.from_first(
        lambda: build.settle_batch(
            recipe, model, autocast, build.free_bytes(device), here.world, device.type == "cpu"
        )
    )
    options = _options(recipe, images, precision, here)
    data = build.pretrain_data(recipe, images, model.masker)
    if here.first:
        (folder / load.RUN_RECIPE).write_text(load.dump(recipe), encoding="utf-8")
        _announce(recipe, model, images, folder, options, device, here)
    if recipe.train.compile:
        model.compile()
    outcome = fit(
        model,
        _optimiser(recipe, model),
        partial(_batches, data, recipe, options, here, device),
        partial(_prepare, recipe, device),
        options,
        folder,
        resume=resume,
        evaluators=watch.evaluators(recipe, images, folder, device, options.schedule.steps_per_epoch),
        processes=here,
        about=_about(recipe, model, images),
    )
    rows = run_folder.read_rows(folder / run_folder.METRICS)
    loss = next(float(row["loss"]) for row in reversed(rows) if row["loss"] is not None)
    message = (
        f"Done: {outcome.state.step} steps, loss {loss:.4f}. Run folder {folder}; "
        f"look with `mimkit reconstruct {folder}` and `mimkit report {folder}`."
    )
    return Outcome(folder, outcome.state.step, loss, message)


def _options(recipe: Recipe, images: Source, precision: str, here: Processes) -> FitOptions:
    """The recipe as the engine wants it."""
    train, micro = recipe.train, recipe.train.micro_batch
    assert micro is not None, "settle_batch comes first"
    per_epoch = steps_per_epoch(len(images) * recipe.data.repeats, train.batch_size)
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
        accumulate=train.batch_size // (micro * here.world),
        seed=train.seed,
        precision=precision,
        clip=recipe.optimiser.clip,
        ema=train.ema,
        checkpoint_every=train.checkpoint_every,
        keep=train.keep,
        log_every=recipe.log.every,
        rollback_after=train.rollback_after,
        bad_share=recipe.data.bad_share,
        writers=recipe.log.writers,
    )


def _optimiser(recipe: Recipe, model: Method) -> torch.optim.Optimizer:
    part = recipe.optimiser
    if part.layer_decay is None:
        groups = optimiser.pretrain_groups(model, part.weight_decay)
    else:
        encoder = model.encoder

        def depth_of(name: str) -> int:
            inner = name.removeprefix("encoder.")
            return encoder.depth_of(inner) if inner != name else encoder.depth + 1

        groups = optimiser.layer_decay_groups(
            model, part.weight_decay, part.layer_decay, depth_of, encoder.depth + 1
        )
    return optimiser.adamw(groups, part.betas, part.eps)


def _batches(
    data: PretrainData, recipe: Recipe, options: FitOptions, here: Processes, device: torch.device, start: int
) -> Iterator[Batch]:
    return train_batches(
        data,
        recipe.train.batch_size,
        options.micro_batch,
        start,
        options.schedule.steps,
        recipe.data.workers or 0,
        here.rank,
        here.world,
        pin=device.type == "cuda",
    )


def _prepare(recipe: Recipe, device: torch.device, batch: Batch) -> Batch:
    assert recipe.data.mean is not None and recipe.data.std is not None
    return prepare(batch, device, recipe.data.mean, recipe.data.std)


def _about(recipe: Recipe, model: Method, images: Source) -> About:
    """What a checkpoint says of itself: the statistics to normalise by and what the decoder predicts."""
    extra: dict[str, Any] = {
        "mean": recipe.data.mean,
        "std": recipe.data.std,
        "channels": recipe.data.channels,
        "method": recipe.method.name,
        "target": "pixels normalised per patch" if recipe.method.norm_pix else "pixels",
        "encoder": recipe.encoder.name,
    }
    return About(
        recipe=hashlib.blake2b(load.dump(recipe).encode(), digest_size=16).hexdigest(),
        data=images.digest(),
        extra=extra,
        config=recipe.model_dump(mode="json"),
        flops_per_image=float(cost.step_flops(model, recipe.data.size)),
    )


def _announce(
    recipe: Recipe,
    model: Method,
    images: Source,
    folder: Path,
    options: FitOptions,
    device: torch.device,
    here: Processes,
) -> None:
    """What will happen, in a few lines."""
    height, width = recipe.data.size
    log.info(
        "%s on %s, %.1f M parameters, %d images of %d channel(s), crops of %d x %d, %s on %s",
        recipe.method.name,
        recipe.encoder.name,
        cost.parameters(model) / 1e6,
        len(images),
        recipe.data.channels,
        height,
        width,
        options.precision,
        device,
    )
    if recipe.optimiser.lr is None:
        log.info(
            "%s",
            schedule.describe_lr(
                recipe.optimiser.base_lr, options.micro_batch, options.accumulate, here.world
            ),
        )
    else:
        log.info("lr %s as the recipe gives it", schedule.short(recipe.optimiser.lr))
    if recipe.schedule.warmup_epochs >= recipe.train.epochs:
        log.warning(
            "The warm-up of %g epochs is as long as the run of %d: the learning rate never peaks; shorten it "
            "with schedule.warmup_epochs=.",
            recipe.schedule.warmup_epochs,
            recipe.train.epochs,
        )
    log.info(
        "%d epochs of %d steps = %d steps; run folder %s",
        recipe.train.epochs,
        options.schedule.steps_per_epoch,
        options.schedule.steps,
        folder,
    )
