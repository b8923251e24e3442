"""From a source of images to batches: for pre-training (random crops, masks) and for evaluation (the centre, labels).

A sample is decided by (seed, epoch, id, attempt) alone: `sampling` says which images a step sees, the sample's own
generator draws crops, mirroring and masks, and an unreadable image is replaced by another draw and reported in
`Batch.skipped`. So the batches are the same for any number of workers and processes and from any step on.

Repeated augmentation (Hoffer et al. 2020; MAE on video, Feichtenhofer et al. 2022, "repeated sampling"): an image is
decoded once and cropped `repeats` times, each crop with a mask of its own. A batch counts crops, and the crops of one
image lie next to each other, so `batch_size / repeats` images make a step. An epoch stays one pass over the images:
with 4 repeats it has 4 times as many steps, 4 "effective epochs" in the words of the second paper.
"""

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from mimkit.data.augment import (
    MAE_RATIO,
    MAE_SCALE,
    check_crop,
    decode_size,
    draw_view,
    resize_centre,
    take_view,
)
from mimkit.data.batch import Batch, Skip
from mimkit.data.decode import MAX_PIXELS, DecodeError, decode, read_header
from mimkit.data.sampling import replacement, sample_generator, step_ids
from mimkit.data.sources import Source
from mimkit.data.workers import ordered_map
from mimkit.errors import DataError, UserError, counted
from mimkit.masks import Mask, Masker, collate

log = logging.getLogger(__name__)

Place = tuple[int, int]  # (epoch, id)
Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class PretrainBatch(Batch):
    """small: ids of the images that are smaller than the crop and were scaled up."""

    small: tuple[int, ...] = ()


B = TypeVar("B", bound=PretrainBatch)
B_co = TypeVar("B_co", bound=PretrainBatch, covariant=True)


class TrainData(Protocol[B_co]):
    """What `train_batches` asks of the images of a source: `batch` makes the crops of `places`, `repeats` of each."""

    @property
    def seed(self) -> int: ...

    @property
    def repeats(self) -> int: ...

    def __len__(self) -> int: ...

    def batch(self, places: Sequence[Place]) -> B_co: ...


@dataclass(frozen=True)
class Sample:
    """One image as pre-training sees it: `images`, its crops (C, h, w), with a mask for each.

    id: the image that was read; it differs from the one asked for when that was unreadable (`skipped`).
    """

    images: list[Tensor]
    masks: list[Mask]
    id: int
    small: bool
    skipped: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class PretrainData:
    """The images of a source as pre-training sees them.

    size: (h, w) of a crop in pixels. scale, ratio, flip: see `augment.draw_view`. repeats: crops of each decoded
    image. masker: None for crops without masks. attempts: draws in place of one unreadable image before giving up.
    """

    source: Source
    size: tuple[int, int]
    channels: int
    masker: Masker | None
    seed: int
    scale: tuple[float, float] = MAE_SCALE
    ratio: tuple[float, float] = MAE_RATIO
    flip: float = 0.5
    repeats: int = 1
    attempts: int = 10
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        check_crop(self.scale, self.ratio)

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, places: Sequence[Place]) -> PretrainBatch:
        """The samples of `places` as one batch; B = len(places) * repeats, the crops of an image side by side."""
        samples = [self.sample(epoch, id) for epoch, id in places]
        masks = [mask for sample in samples for mask in sample.masks]
        views = torch.arange(self.repeats).repeat(len(samples)) if self.repeats > 1 else None
        return PretrainBatch(
            images=stack([image for sample in samples for image in sample.images]),
            ids=torch.tensor([sample.id for sample in samples]).repeat_interleave(self.repeats),
            mask=collate(masks) if masks else None,
            views=views,
            skipped=tuple(skip for sample in samples for skip in sample.skipped),
            small=tuple(sample.id for sample in samples if sample.small),
        )

    def sample(self, epoch: int, id: int) -> Sample:
        """The image `id` in `epoch`, or one in its place; see `first_readable`."""
        return first_readable(self.source, self.seed, epoch, id, self.attempts, self._read)

    def _read(self, place: int, rng: np.random.Generator, skipped: tuple[Skip, ...]) -> Sample:
        """Everything random is drawn from the header's size, before the pixels are decoded no larger than needed."""
        data, key = self.source.read(place), self.source.key(place)
        height, width = upright_size(data, key)
        views = [
            draw_view(rng, height, width, self.scale, self.ratio, self.flip) for _ in range(self.repeats)
        ]
        masks = self._masks(rng)
        pixels = decode(data, key, self.channels, decode_size(views, self.size), self.max_pixels)
        images = [take_view(pixels, view, self.size) for view in views]
        return Sample(images, masks, place, height < self.size[0] or width < self.size[1], skipped)

    def _masks(self, rng: np.random.Generator) -> list[Mask]:
        if self.masker is None:
            return []
        grid = tuple(-(-side // cell) for side, cell in zip(self.size, self.masker.unit, strict=True))
        return [self.masker(rng, grid) for _ in range(self.repeats)]


def first_readable(
    source: Source,
    seed: int,
    epoch: int,
    id: int,
    attempts: int,
    read: Callable[[int, np.random.Generator, tuple[Skip, ...]], Drawn],
) -> Drawn:
    """What `read(place, generator, skipped)` makes of image `id` in `epoch`, or of the first of those drawn in its
    place that can be read.

    Raises DataError when none of `attempts` draws can be read.
    """
    skipped: list[Skip] = []
    for attempt in range(attempts):
        place = id if attempt == 0 else replacement(seed, epoch, id, attempt, len(source))
        try:
            return read(place, sample_generator(seed, epoch, id, attempt), tuple(skipped))
        except DecodeError as error:
            skipped.append(Skip(place, source.key(place), error.reason))
    last = skipped[-1]
    raise DataError(
        f"{attempts} images in a row could not be read from {source.name}, the last one {last.name!r}: "
        f"{last.reason}; `mimkit data check {source.name}` lists them all."
    )


def upright_size(data: bytes | np.ndarray, key: str) -> tuple[int, int]:
    """(height, width) of an encoded picture or an array, in pixels, once it is turned upright."""
    height, width = data.shape[:2] if isinstance(data, np.ndarray) else read_header(data, key).upright
    if height < 1 or width < 1:
        raise DecodeError(key, f"declares {width} x {height} pixels")
    return height, width


def stack(images: Sequence[Tensor]) -> Tensor:
    """(B, C, h, w) out of (C, h, w) tensors of equal size; mixed types are brought to one that holds them all.

    uint8 beside uint16 becomes uint16 (x 257, so that white stays white); either beside float32 becomes float32 in
    0..1. Pictures that are channels last in memory stay so: copying whole rows is 20 times faster than sorting
    planes.
    """
    kinds = {image.dtype for image in images}
    if torch.float32 in kinds:
        scales = {torch.uint8: 255.0, torch.uint16: 65535.0, torch.float32: 1.0}
        images = [image.float().div(scales[image.dtype]) for image in images] if len(kinds) > 1 else images
    elif len(kinds) > 1:
        images = [
            image.int().mul_(257).to(torch.uint16) if image.dtype == torch.uint8 else image
            for image in images
        ]
    if images[0].is_contiguous():
        return torch.stack(list(images))
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def train_batches(
    data: TrainData[B],
    batch_size: int,
    micro_batch: int,
    start_step: int,
    steps: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
) -> Generator[B, None, None]:
    """The micro-batches of process `rank` of `world` for the optimiser steps start_step .. steps - 1, in order.

    `batch_size / (micro_batch * world)` of them make a step. Micro-batch j of process r holds the crops [(j * world +
    r) * micro_batch, ... + micro_batch] of the step's batch, so what one process sees in a step is what two see
    together. workers: processes that read; 0 reads in this one. pin: pinned memory, for a GPU. Close the iterator to
    stop the workers. Raises UserError at once when the sizes do not fit each other or the data.
    """
    check_batch(len(data), batch_size, micro_batch, world, data.repeats)
    places = _places(data, batch_size, micro_batch, start_step, steps, rank, world)
    return _warned(ordered_map(data.batch, places, workers, pin=pin))


def _warned(batches: Generator[B, None, None]) -> Generator[B, None, None]:
    """The same batches, with a warning at the 1st, 10th, 100th ... image that is smaller than the crop."""
    small: set[int] = set()
    with closing(batches):
        for batch in batches:
            before = len(small)
            small.update(batch.small)
            if len(str(len(small))) > len(str(before)) or before == 0 < len(small):
                log.warning("Smaller than the crop, so scaled up: %s so far", counted(len(small), "image"))
            yield batch


def _places(
    data: TrainData[B], batch_size: int, micro_batch: int, start_step: int, steps: int, rank: int, world: int
) -> Iterator[list[Place]]:
    images, share = batch_size // data.repeats, micro_batch // data.repeats
    for step in range(start_step, steps):
        epoch, ids = step_ids(data.seed, step, len(data), images)
        for first in range(rank * share, images, world * share):
            yield [(epoch, int(id)) for id in ids[first : first + share]]


def check_batch(n: int, batch_size: int, micro_batch: int, world: int = 1, repeats: int = 1) -> None:
    """Raises UserError, with the override that fits, unless `batch_size` crops of `n` images divide as they must."""
    if batch_size > n * repeats:
        whole = micro_batch * world
        if n * repeats >= whole:
            fits = f"train.batch_size={n * repeats // whole * whole}"
        else:
            each = n // world * repeats  # not one micro-batch per process: that must shrink too
            fits = (
                f"train.batch_size={each * world} train.micro_batch={each}"
                if each
                else f"{counted(n, 'process')}" + " or fewer" * (n > 1)
            )
        crops = f" ({n * repeats} crops)" if repeats > 1 else ""
        raise UserError(
            f"A batch of {batch_size} is larger than the data set of {counted(n, 'image')}{crops}; use {fits}, or more "
            "images."
        )
    if micro_batch % repeats:
        raise UserError(
            f"train.micro_batch is {micro_batch}, which the {repeats} crops of an image (data.repeats) do not divide; "
            f"use train.micro_batch={max(1, micro_batch // repeats) * repeats}."
        )
    if batch_size % (micro_batch * world):
        whole = max(1, batch_size // (micro_batch * world)) * micro_batch * world
        share = batch_size // world
        smaller = [n for n in range(repeats, min(micro_batch, share) + 1, repeats) if share % n == 0]
        fits = f"train.micro_batch={smaller[-1]} or " if smaller and batch_size % world == 0 else ""
        raise UserError(
            f"train.batch_size is {batch_size}, not a multiple of {counted(micro_batch, 'image')} a micro-batch x "
            f"{counted(world, 'process')}; use {fits}train.batch_size={whole}."
        )


@dataclass(frozen=True)
class EvalData:
    """The images of a source as evaluation sees them: whole decode, shorter side resized, centre cut out."""

    source: Source
    size: tuple[int, int]
    channels: int
    max_pixels: int = MAX_PIXELS

    def batch(self, ids: Sequence[int]) -> Batch:
        """The readable ones of `ids`; the others are in `skipped`. Labels, when the source has any, in `targets`."""
        images, kept, skipped = [], [], []
        for id in ids:
            try:
                images.append(self.image(id))
                kept.append(id)
            except DecodeError as error:
                skipped.append(Skip(id, self.source.key(id), error.reason))
        pixels = stack(images) if images else torch.empty((0, self.channels, *self.size), dtype=torch.uint8)
        labels = [self.source.label(id) for id in kept] if self.source.classes else None
        targets = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        return Batch(pixels, torch.tensor(kept, dtype=torch.int64), targets=targets, skipped=tuple(skipped))

    def image(self, id: int) -> Tensor:
        """(C, h, w) as stored. Raises DecodeError."""
        data, key = self.source.read(id), self.source.key(id)
        return resize_centre(decode(data, key, self.channels, max_pixels=self.max_pixels), self.size)


def eval_batches(
    source: Source,
    size: tuple[int, int],
    channels: int,
    batch_size: int,
    workers: int = 0,
    ids: Sequence[int] | None = None,
    pin: bool = False,
) -> Generator[Batch, None, None]:
    """All images of `source` (or those of `ids`), in order, through the evaluation transform
    (`augment.resize_centre`).

    The last batch may be smaller, and so is one that held unreadable images. See `EvalData.batch`.
    """
    chosen = range(len(source)) if ids is None else ids
    groups = (list(chosen[first : first + batch_size]) for first in range(0, len(chosen), batch_size))
    return ordered_map(EvalData(source, size, channels).batch, groups, workers, pin=pin)
