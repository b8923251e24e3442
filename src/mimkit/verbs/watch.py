"""What looks at a model while it trains: the evaluators of a recipe.

`samples` fills in hidden patches of a few images, sets the loss on them beside trivial predictors, and measures the
features without labels; `probe` asks what they are worth on a small labelled set. Both see the same images and the same
masks every time, so that their numbers can be compared along the run and between runs.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mimkit import plots
from mimkit.analysis.layers import by_blocks
from mimkit.analysis.probe import probe
from mimkit.analysis.quality import measure
from mimkit.analysis.trivial import trivial_losses
from mimkit.data.batch import Batch
from mimkit.data.loader import eval_batches
from mimkit.data.normalise import denormalise, prepare
from mimkit.data.sampling import epoch_order
from mimkit.data.sources import Source, open_source
from mimkit.encoders.base import pad_to
from mimkit.engine.trainable import Evaluator
from mimkit.errors import DataError, UserError, none_readable
from mimkit.masks import GridMasker, Mask
from mimkit.methods.base import Method, Reconstruction
from mimkit.recipes.schema import Probe, Recipe

log = logging.getLogger(__name__)

PICTURED = 8  # images in a picture of reconstructions
MEASURED = 64  # images for trivial predictors and label-free quality
CHUNK = 32  # images that go through the encoder at once
MASK_SEED = 0
RATIOS = (0.5, 0.75, 0.9)  # of the panels where nobody asks for others


def evaluators(
    recipe: Recipe, images: Source, run: Path, device: torch.device, steps_per_epoch: int
) -> list[Evaluator]:
    """The evaluators that `recipe` asks for, at their cadence in steps."""
    every = recipe.log.samples_every * steps_per_epoch
    chosen = [Evaluator("samples", every, _Samples(recipe, images, run / "samples", device))]
    if recipe.log.probe is not None:
        cadence = recipe.log.probe.every_epochs * steps_per_epoch
        chosen.append(Evaluator("probe", cadence, _Probe(recipe, recipe.log.probe, device)))
    return chosen


def fixed_batch(recipe: Recipe, images: Source, count: int, device: torch.device) -> Batch:
    """`count` images (fewer when there are fewer), the same ones every time, whole and centred, on the device.

    Raises DataError when none of them can be read.
    """
    ids = np.sort(epoch_order(0, 0, len(images))[:count]).tolist()
    part = recipe.data
    assert part.channels is not None and part.mean is not None and part.std is not None
    (batch,) = eval_batches(images, part.size, part.channels, len(ids), ids=ids)
    if not len(batch.ids):
        reason = batch.skipped[0].reason
        raise DataError(f"{none_readable(len(ids), images.name)}, the first one: {reason}.")
    return prepare(batch, device, part.mean, part.std)


class _Samples:
    """Pictures of reconstructions, and numbers without labels; the images are read at the first call."""

    def __init__(self, recipe: Recipe, images: Source, folder: Path, device: torch.device) -> None:
        self.recipe, self.images, self.folder, self.device = recipe, images, folder, device
        self.batch: Batch | None = None

    def __call__(self, module: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(module, Method)
        if self.batch is None:
            self.batch = fixed_batch(self.recipe, self.images, MEASURED, self.device)
        pixels = self.batch.images
        mask = module.draw_mask(pixels, MASK_SEED)
        few = slice(0, PICTURED)
        shown = module.reconstruct(pixels[few], module.draw_mask(pixels[few], MASK_SEED))
        names = [self.images.key(int(i)) for i in self.batch.ids[few]]
        draw(self.recipe, shown, names, f"step {step}", self.folder / f"step-{step:07}.png")
        part = self.recipe.pretraining
        unit = module.encoder.unit
        trivial = trivial_losses(pad_to(pixels, unit), mask, unit, part.norm_pix, part.min_std)
        with torch.no_grad():
            model = float(module(Batch(pixels, self.batch.ids, mask)).total)
        numbers = {f"trivial/{name}": value for name, value in {"model": model, **trivial}.items()}
        return numbers | {
            f"quality/{name}": value for name, value in measure(module.encoder, pixels, CHUNK).items()
        }


class _Probe:
    """kNN and linear probe on the labelled set; its images are opened at the first call."""

    def __init__(self, recipe: Recipe, part: Probe, device: torch.device) -> None:
        self.recipe, self.part, self.device = recipe, part, device
        self.source: Source | None = None

    def __call__(self, module: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(module, Method)
        if self.source is None:
            self.source = open_source(self.part.path, labels=True)
        batches = labelled(self.recipe, self.source, self.part.size, self.part.max_images, self.device)
        classes = self.source.classes
        table = probe(
            by_blocks(module.encoder),
            batches,
            folds=self.part.folds,
            seed=self.recipe.train.seed,
            device=self.device,
            classes=classes,
        )
        log.info("step %d, probe: %s", step, table.verdict())
        return {f"probe/{name}": value for name, value in table.metrics().items()}


def labelled(
    recipe: Recipe, source: Source, size: tuple[int, int] | None, limit: int, device: torch.device
) -> Iterator[Batch]:
    """Batches of at most `limit` labelled images, drawn evenly over the classes, normalised as the training data is."""
    part = recipe.data
    assert part.channels is not None and part.mean is not None and part.std is not None
    workers = 0 if part.workers is None else part.workers
    ids = even_draw([source.label(i) or 0 for i in range(len(source))], limit, recipe.train.seed)
    for batch in eval_batches(source, size or part.size, part.channels, CHUNK, workers, ids):
        yield prepare(batch, device, part.mean, part.std)


def even_draw(labels: list[int], limit: int, seed: int) -> list[int]:
    """At most `limit` indices, ascending, as many of each class as can be: the rarest classes are kept whole."""
    if len(labels) <= limit:
        return list(range(len(labels)))
    order = epoch_order(seed, 0, len(labels))
    ranked = np.asarray(labels)[order]
    place = np.empty(len(labels), dtype=np.int64)  # how many of its class come before each image in the order
    for label in np.unique(ranked):
        same = np.flatnonzero(ranked == label)
        place[same] = np.arange(same.size)
    return np.sort(order[np.argsort(place, kind="stable")[:limit]]).tolist()


def usual_masks(method: Method, images: torch.Tensor) -> dict[float, Mask]:
    """Masks for images (B, C, H, W) at the usual ratios, less those that so few cells cannot hold, which is said.

    Grid masking has no other ratio than its own. Raises UserError where no ratio is left.
    """
    if isinstance(method.masker, GridMasker):
        mask = method.draw_mask(images, MASK_SEED)
        return {mask.hidden.float().mean().item(): mask}
    masks: dict[float, Mask] = {}
    left_out: dict[float, UserError] = {}
    for ratio in RATIOS:
        try:
            masks[ratio] = method.draw_mask(images, MASK_SEED, ratio)
        except UserError as error:
            left_out[ratio] = error
    if not masks:
        raise left_out[RATIOS[0]]
    for ratio, why in left_out.items():
        log.info("No panel with %.0f %% hidden: %s", 100 * ratio, why)
    return masks


def views(recipe: Recipe, shown: Reconstruction, label: str) -> plots.Views:
    """A reconstruction as the arrays that `plots` draws, in 0..1."""
    leaking = None if shown.leaked is None else _pixels(recipe, shown.leaked)
    return plots.Views(label, shown.hidden[:, 0].cpu().numpy(), _pixels(recipe, shown.pasted), leaking)


def draw(recipe: Recipe, shown: Reconstruction, names: list[str], title: str, path: Path) -> Path:
    """Write the picture of one reconstruction: original, masked, prediction (two panels for normalised targets)."""
    share = shown.hidden.float().mean().item()
    figure = plots.reconstruction(
        _pixels(recipe, shown.original),
        views(recipe, shown, f"{share:.0%} hidden"),
        names,
        title,
        recipe.log.channels,
    )
    return plots.save(figure, path)


def _pixels(recipe: Recipe, images: torch.Tensor) -> Any:
    """(B, C, H, W) normalised -> (B, H, W, C) in 0..1."""
    part = recipe.data
    assert part.mean is not None and part.std is not None
    return denormalise(images, part.mean, part.std).permute(0, 2, 3, 1).cpu().numpy()


def originals(recipe: Recipe, batch: Batch) -> Any:
    """The images of a prepared batch as (B, H, W, C) in 0..1."""
    return _pixels(recipe, batch.images)
