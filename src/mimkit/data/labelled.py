"""Labelled images for training a classifier: the fine-tuning augmentation of MAE (He et al. 2022, appendix A.1) over
the machinery of `loader`.

In the loader: random resized crop, flip, RandAugment, and the rectangle of random erasing is drawn; on the device, in
`prepare_training`: normalising, erasing, Mixup or CutMix. Evaluation goes through `loader.eval_batches`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mimkit.data.augment import (
    MAE_RATIO,
    Box,
    View,
    check_crop,
    decode_size,
    draw_view,
    take_view,
)
from mimkit.data.batch import Skip
from mimkit.data.decode import MAX_PIXELS, decode
from mimkit.data.erasing import NOTHING, Erasing, boxes_tensor, erase
from mimkit.data.loader import (
    Place,
    PretrainBatch,
    first_readable,
    stack,
    upright_size,
)
from mimkit.data.mixing import Mixing
from mimkit.data.normalise import normalise
from mimkit.data.randaugment import RandAugment
from mimkit.data.sources import Source
from mimkit.data.stats import deepest
from mimkit.errors import UserError, counted

FINETUNE_SCALE = (0.08, 1.0)
CROPS = ("resized", "clipped")


@dataclass(frozen=True)
class LabelledBatch(PretrainBatch):
    """targets: labels (B,) int64; soft (B, classes) after mixing. boxes: (B, 4) what is to be erased, or None."""

    boxes: Tensor | None = None


@dataclass(frozen=True)
class Augmentation:
    """What a training image goes through; the default is that of MAE's fine-tuning.

    scale, ratio, flip: see `augment.draw_view`. crop: "resized" (random resized crop) or "clipped" (the published
    linear probe's own rule, `clipped_sides`). randaugment, erasing: None leaves them out.
    """

    scale: tuple[float, float] = FINETUNE_SCALE
    ratio: tuple[float, float] = MAE_RATIO
    flip: float = 0.5
    crop: str = "resized"
    randaugment: RandAugment | None = field(default_factory=RandAugment)
    erasing: Erasing | None = field(default_factory=Erasing)

    def __post_init__(self) -> None:
        check_crop(self.scale, self.ratio)
        if self.crop not in CROPS:
            raise UserError(f"Unknown rule of crops {self.crop!r}; known are {' and '.join(CROPS)}.")

    def view(self, rng: np.random.Generator, height: int, width: int) -> View:
        if self.crop == "resized":
            return draw_view(rng, height, width, self.scale, self.ratio, self.flip)
        box = clipped_box(rng, height, width, self.scale, self.ratio)
        return View(box, bool(rng.random() < self.flip), (height, width))


FINETUNE = Augmentation()


@dataclass(frozen=True)
class LabelledSample:
    """One image as training sees it: `images`, its crops (C, h, w), what is erased of each, and its label."""

    images: list[Tensor]
    boxes: list[Box]
    label: int
    id: int
    small: bool
    skipped: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class FinetuneData:
    """The images of a source with labels as training a classifier sees them; see `loader.PretrainData`.

    Raises UserError when the source has no labels.
    """

    source: Source
    size: tuple[int, int]
    channels: int
    seed: int
    augmentation: Augmentation = FINETUNE
    repeats: int = 1
    attempts: int = 10
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if not self.source.classes:
            raise UserError(
                f"{self.source.name} holds no labels: give class folders, or a table (.csv, .parquet) with a "
                "label column."
            )
        rand = self.augmentation.randaugment
        if rand is not None and len(rand.fill) != self.channels:
            raise UserError(
                f"RandAugment fills with {counted(len(rand.fill), 'value')} and the images have "
                f"{counted(self.channels, 'channel')}; fill with the mean of the data."
            )
        if rand is not None:
            check_depth(self.source)

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, places: Sequence[Place]) -> LabelledBatch:
        """The samples of `places` as one batch; B = len(places) * repeats, the crops of an image side by side."""
        samples = [self.sample(epoch, id) for epoch, id in places]
        labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
        return LabelledBatch(
            images=stack([image for sample in samples for image in sample.images]),
            ids=torch.tensor([sample.id for sample in samples]).repeat_interleave(self.repeats),
            targets=labels.repeat_interleave(self.repeats),
            views=torch.arange(self.repeats).repeat(len(samples)) if self.repeats > 1 else None,
            skipped=tuple(skip for sample in samples for skip in sample.skipped),
            small=tuple(sample.id for sample in samples if sample.small),
            boxes=boxes_tensor([box for sample in samples for box in sample.boxes]),
        )

    def sample(self, epoch: int, id: int) -> LabelledSample:
        """The image `id` in `epoch`, or one in its place, with its own label; see `loader.first_readable`."""
        return first_readable(self.source, self.seed, epoch, id, self.attempts, self._read)

    def _read(self, place: int, rng: np.random.Generator, skipped: tuple[Skip, ...]) -> LabelledSample:
        """Everything random is drawn from the header's size, before the pixels are decoded no larger than needed."""
        data, key = self.source.read(place), self.source.key(place)
        height, width = upright_size(data, key)
        steps = self.augmentation
        views = [steps.view(rng, height, width) for _ in range(self.repeats)]
        plans = [steps.randaugment.draw(rng) if steps.randaugment else [] for _ in views]
        boxes = [steps.erasing.draw(rng, self.size) if steps.erasing else NOTHING for _ in views]
        pixels = decode(data, key, self.channels, decode_size(views, self.size), self.max_pixels)
        images = [take_view(pixels, view, self.size) for view in views]
        if steps.randaugment:
            images = [steps.randaugment.apply(x, plan) for x, plan in zip(images, plans, strict=True)]
        label = self.source.label(place)
        assert label is not None
        small = height < self.size[0] or width < self.size[1]
        return LabelledSample(images, boxes, label, place, small, skipped)


def check_depth(source: Source) -> None:
    """Raises UserError when pictures of more than 8 bits are among a few of `source`, which RandAugment cannot take."""
    bits, key = deepest(source)
    if bits > 8:
        raise UserError(
            f"RandAugment works on pictures of 8 bits, and {key!r} of {source.name} has {bits}; leave it out with "
            "task.randaugment=null."
        )


def prepare_training(
    batch: LabelledBatch,
    device: torch.device | str,
    mean: Sequence[float],
    std: Sequence[float],
    mixing: Mixing | None = None,
) -> LabelledBatch:
    """`batch` on `device`: normalised (`normalise.prepare`), erased where it has boxes, mixed where `mixing` says.

    The noise and the mixing come from torch's generators, which the engine seeds for each micro-batch.
    """
    moved = batch.to(torch.device(device), non_blocking=True)
    images = normalise(moved.images, mean, std)
    if moved.boxes is not None:
        images = erase(images, moved.boxes)
    ready = replace(moved, images=images)
    return ready if mixing is None else mixing(ready)


def clipped_box(
    rng: np.random.Generator, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """A crop by the rule of the published linear probe: no second try, what is too long is cut to the image."""
    share, shape, down, right = rng.random(4).tolist()
    low, high = math.log(ratio[0]), math.log(ratio[1])
    area, aspect = scale[0] + share * (scale[1] - scale[0]), math.exp(low + shape * (high - low))
    h, w = clipped_sides(height, width, area, aspect)
    return Box(int(down * (height - h + 1)), int(right * (width - w + 1)), h, w)


def clipped_sides(height: int, width: int, area: float, aspect: float) -> tuple[int, int]:
    """(h, w) of a crop with that share of the area and that width over height, each side cut to the image's."""
    pixels = height * width * area
    h, w = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
    return max(1, min(h, height)), max(1, min(w, width))
