"""From a recipe to the objects it describes, and from an open recipe to a settled one.

A recipe may leave things open: channels, mean and deviation of the data, loader workers, the micro-batch. `settle_data`
and `settle_batch` fill them from the images and the machine; the settled recipe is what a run folder keeps, so that a
resumed run needs no second guess.
"""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch

from mimkit import encoders, methods, tasks
from mimkit.analysis import cost
from mimkit.data import randaugment
from mimkit.data.classes import balancing_weights
from mimkit.data.decode import read_header
from mimkit.data.erasing import Erasing
from mimkit.data.labelled import Augmentation, FinetuneData
from mimkit.data.loader import PretrainData
from mimkit.data.mixing import Mixing
from mimkit.data.normalise import IMAGENET_MEAN, IMAGENET_STD
from mimkit.data.sources import Source, open_source
from mimkit.data.stats import channel_stats
from mimkit.data.workers import available_cores
from mimkit.encoders import Encoder
from mimkit.engine.lars import LARS
from mimkit.engine.memory import available_bytes
from mimkit.engine.optimiser import adamw, layer_decay_groups, pretrain_groups
from mimkit.engine.trainable import trainable_parameters
from mimkit.errors import UserError, counted
from mimkit.masks import Masker, build_masker
from mimkit.methods.base import Method
from mimkit.recipes.model_parts import MCMAE
from mimkit.recipes.schema import Recipe
from mimkit.tasks import Task

log = logging.getLogger(__name__)

STATS_IMAGES = 2000  # images that channels, mean and deviation are measured on
FEW_IMAGES = 512  # up to which starting processes takes longer than reading does
CPU_MICRO_BATCH = 64  # larger ones only cost memory there
MEMORY_SHARE = 0.7  # of what is free; the rest is for the loader and the allocator's gaps


def source(recipe: Recipe) -> Source:
    """The images of `recipe`, with labels where it has a task. Raises UserError when it names none."""
    labelled = recipe.task is not None
    if recipe.data.path is None:
        what = "labelled images" if labelled else "images"
        forms = (
            "of class folders, or a table with labels"
            if labelled
            else "(or a glob, a list, a table, tar shards)"
        )
        raise UserError(f"The recipe names no {what}; add data.path=FOLDER {forms}.")
    return open_source(recipe.data.path, labels=labelled)


def encoder(recipe: Recipe, again: bool = False) -> Encoder:
    """The backbone of `recipe` with random weights; `recipe.data.channels` must be settled.

    again: it stands beside another one of this recipe, at whose making everything was said.
    """
    part = recipe.encoder
    options = {"channels": recipe.data.channels, "size": recipe.data.size}
    foreign = part.name.startswith("timm:")
    options |= part.model_dump(
        include={"drop_path", "checkpointing"} if foreign else None, exclude={"name", "init"}
    )
    built = encoders.build(part.name, **options)
    if not again:
        _say_padding(part.name, recipe.data.size, built.levels[-1].stride)
    return built


def _say_padding(name: str, size: Sequence[int], unit: Sequence[int]) -> None:
    """A log line where the encoder `name` has to pad images of `size` to whole units."""
    padded = [-(-side // cell) * cell for side, cell in zip(size, unit, strict=True)]
    if padded != list(size) and not name.startswith("timm:"):
        log.info(
            "Images of %d x %d pixels are padded with zeros to %d x %d, whole units of %d x %d pixels of %s.",
            *(*size, *padded, *unit, name),
        )


def method(recipe: Recipe) -> Method:
    """The pre-training model of `recipe`, its weights drawn from `train.seed`."""
    torch.manual_seed(recipe.train.seed)
    part = recipe.pretraining
    form = getattr(recipe.encoder, "form", "classifier")
    if form != "classifier":
        raise UserError(
            f"encoder.form={form}: such an encoder cannot leave hidden units out; pre-train with form=classifier, "
            "whose weights start every form (encoder.init=)."
        )
    backbone = encoder(recipe)
    rule = part.mask
    return methods.build(
        part.name,
        backbone,
        masker=build_masker(rule.kind, rule.ratio, backbone.unit, part.decode, rule.complementary),
        size=recipe.data.size,
        decoder_width=part.decoder.width,
        decoder_depth=part.decoder.depth,
        decoder_heads=part.decoder.heads,
        mlp_ratio=part.decoder.mlp_ratio,
        norm_pix=part.norm_pix,
        min_std=part.min_std,
        **({"multi_scale": part.multi_scale} if isinstance(part, MCMAE) else {}),
    )


def task(recipe: Recipe, classes: Sequence[str], counts: np.ndarray | None = None) -> Task:
    """The downstream model of `recipe`, its weights drawn from `train.seed`.

    classes: their names in order. counts: (classes,) training images of each, for `task.balance`.
    """
    torch.manual_seed(recipe.train.seed)
    part = recipe.tuning
    weights = balancing_weights(counts).tolist() if part.balance and counts is not None else None
    return tasks.build(
        part.name,
        encoder(recipe),
        classes=classes,
        pooling=part.pooling,
        smoothing=part.smoothing,
        weights=weights,
        blocks=part.blocks,
        probe=part.head == "probe",
    )


def optimiser(recipe: Recipe, model: Method | Task) -> torch.optim.Optimizer:
    """The optimiser of `recipe` over the parameters of `model` that train, in the groups of the paper's code."""
    part, encoder = recipe.optimiser, model.encoder
    if part.name == "lars":
        trained = list(trainable_parameters(model).items())
        return LARS(trained, momentum=part.momentum, weight_decay=part.weight_decay, trust=part.trust)
    if part.layer_decay is None and isinstance(model, Method):
        return adamw(pretrain_groups(model, part.weight_decay), part.betas, part.eps)

    def depth_of(name: str) -> int:
        if part.layer_decay is None:
            return 0  # all alike, for encoders too that know no layers
        inner = name.removeprefix("encoder.")
        return encoder.depth_of(inner) if inner != name else encoder.deepest

    layers = 0 if part.layer_decay is None else encoder.deepest
    groups = layer_decay_groups(model, part.weight_decay, part.layer_decay or 1.0, depth_of, layers)
    return adamw(groups, part.betas, part.eps)


def finetune_data(recipe: Recipe, images: Source) -> FinetuneData:
    """What the loader needs to draw labelled training samples."""
    part, steps = recipe.data, recipe.tuning
    assert part.channels is not None and part.mean is not None, "settle_data comes first"
    rand = None if steps.randaugment is None else randaugment.parse(steps.randaugment).filled_with(part.mean)
    augmentation = Augmentation(
        scale=part.crop_scale,
        ratio=part.crop_ratio,
        flip=part.flip,
        crop=steps.crop,
        randaugment=rand,
        erasing=Erasing(steps.erasing) if steps.erasing else None,
    )
    return FinetuneData(images, part.size, part.channels, recipe.train.seed, augmentation, part.repeats)


def mixing(recipe: Recipe, classes: int) -> Mixing | None:
    """Mixup and CutMix of `recipe`, None where it has neither."""
    part = recipe.tuning
    if part.mixup == part.cutmix == 0:
        return None
    return Mixing(classes, part.mixup, part.cutmix, switch=part.switch, smoothing=part.smoothing)


def pretrain_data(recipe: Recipe, images: Source, masker: Masker | None) -> PretrainData:
    """What the loader needs to draw training samples, masked by `masker`."""
    part = recipe.data
    assert part.channels is not None, "settle_data comes first"
    return PretrainData(
        images,
        size=part.size,
        channels=part.channels,
        masker=masker,
        seed=recipe.train.seed,
        scale=part.crop_scale,
        ratio=part.crop_ratio,
        flip=part.flip,
        repeats=part.repeats,
    )


def settle_data(recipe: Recipe, images: Source) -> Recipe:
    """Fill in what is open about the data: channels, mean, deviation, workers."""
    part = recipe.data
    filled: dict[str, object] = {}
    if part.workers is None:
        filled["workers"] = default_workers(torch.cuda.is_available())
    if part.channels is None or part.mean is None or part.std is None:
        filled |= _measured(recipe, images)
    settled = part.model_copy(update=filled)
    _check_shown(recipe.log.channels, settled.channels)
    return recipe.model_copy(update={"data": settled})


def _check_shown(shown: tuple[int, ...] | None, channels: int | None) -> None:
    """Before the first step, not at the first picture. Raises UserError."""
    if shown is None or channels is None:
        return
    if len(shown) not in (1, 3) or max(shown) >= channels:
        raise UserError(
            f"log.channels: {list(shown)} given; allowed: one or three channels from 0 to {channels - 1}."
        )


def _measured(recipe: Recipe, images: Source) -> dict[str, object]:
    """Channels, mean and deviation from the recipe where it gives them, else from ImageNet or the images themselves."""
    part = recipe.data
    jobs = available_cores() if len(images) > FEW_IMAGES else 1
    stats = channel_stats(images, channels=part.channels, limit=STATS_IMAGES, jobs=jobs)
    ordinary = stats.channels == 3 and stats.bits == 8
    mean = part.mean or (IMAGENET_MEAN if ordinary else stats.mean)
    std = part.std or (IMAGENET_STD if ordinary else stats.std)
    if not ordinary:
        log.info(
            "%s of %d bits: normalised by the mean and deviation of these images",
            counted(stats.channels, "channel"),
            stats.bits,
        )
    return {"channels": stats.channels, "mean": tuple(mean), "std": tuple(std)}


def stored_channels(data: bytes | np.ndarray, key: str) -> int:
    """Channels of an encoded picture (from its header) or of an array (H, W, C)."""
    return data.shape[2] if isinstance(data, np.ndarray) else read_header(data, key).channels


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device: the GPU's, or the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_bytes()


def default_workers(cuda: bool) -> int:
    """Loader processes: all cores but one for a GPU (at most 12); one on a CPU that has to train as well."""
    cores = available_cores()
    return min(12, max(1, cores - 1)) if cuda else min(1, cores - 1)


def check_processes(recipe: Recipe, world: int) -> None:
    """Raise UserError unless the batch divides over `world` processes."""
    share, rest = divmod(recipe.train.batch_size, world)
    if rest:
        raise UserError(
            f"train.batch_size={recipe.train.batch_size} does not divide over {world} processes; "
            f"use train.batch_size={max(1, share) * world}, or a number of processes that divides it."
        )


def settle_batch(
    recipe: Recipe,
    model: Method | Task,
    autocast: Callable[[], AbstractContextManager[object]],
    free_bytes: int,
    world: int,
    cpu: bool,
) -> Recipe:
    """Fill in the micro-batch: the largest that divides the batch and fits into `free_bytes` on this device.

    Gradients and the optimiser's two moments are counted, of which each process holds a share with `fsdp`; activations
    are measured (`cost.activation_bytes`). One that was settled for fewer processes is cut to what these can share.
    """
    check_processes(recipe, world)
    share, given = recipe.train.batch_size // world, recipe.train.micro_batch
    if given is not None:
        if recipe.train.batch_size % given or share % given == 0:
            return recipe  # it fits, or the loader says why it does not
        cut = _with_micro_batch(recipe, share, given, world)
        words = "train.micro_batch=%d is more than %d processes can share; it is cut down to %d"
        log.info(words, given, world, cut.train.micro_batch)
        return cut
    holders = world if recipe.train.parallel == "fsdp" else 1
    fixed = 4 * 3 * cost.parameters(model) // holders
    each = cost.activation_bytes(model, recipe.data.size, autocast)
    fits = max(1, int((free_bytes * MEMORY_SHARE - fixed) // each))
    return _with_micro_batch(recipe, share, min(fits, CPU_MICRO_BATCH) if cpu else fits, world)


def _with_micro_batch(recipe: Recipe, share: int, most: int, world: int) -> Recipe:
    """The largest micro-batch up to `most` that divides a process's `share` of the batch and is a `_multiple`."""
    step = _multiple(recipe)
    sizes = [m for m in range(step, min(share, max(most, step)) + 1, step) if share % m == 0]
    if not sizes:
        reason = (
            "" if recipe.data.repeats == 1 else f" of {recipe.data.repeats} crops an image (data.repeats)"
        )
        pairs = (
            " with an even number of images, as Mixup and CutMix pair them"
            if step > recipe.data.repeats
            else ""
        )
        raise UserError(
            f"train.batch_size={recipe.train.batch_size} over {world} processes cannot be cut into micro-batches"
            f"{reason}{pairs}; use train.batch_size={max(1, share // step) * step * world}."
        )
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"micro_batch": max(sizes)})})


def _multiple(recipe: Recipe) -> int:
    """What divides every micro-batch: the crops of an image stay together, and mixing pairs images."""
    mixes = recipe.task is not None and mixing(recipe, 2) is not None
    return math.lcm(recipe.data.repeats, 2 if mixes else 1)
