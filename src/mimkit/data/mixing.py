"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) as the fine-tuning of MAE uses them.

Every image is mixed with its partner from the other end of the micro-batch: blended, or with a rectangle of it pasted
in; its target becomes as soft. It happens on the device, on normalised images, with numbers from torch's generator,
which the engine seeds for each micro-batch by (seed, step, place).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from mimkit.data.batch import Batch
from mimkit.data.erasing import inside
from mimkit.errors import UserError

MODES = ("batch", "pair", "elem")
B = TypeVar("B", bound=Batch)


class Draws(Protocol):
    """The part of NumPy's generators that the rule needs."""

    def random(self, size: int) -> np.ndarray: ...

    def beta(self, a: float, b: float, size: int) -> np.ndarray: ...

    def integers(self, low: int, high: int) -> int: ...


class Mix(NamedTuple):
    """How each image of a batch is mixed.

    share: (B,) float, the image's own share of the target. blend: (B,), its factor in a blend (1 where a rectangle is
    pasted). boxes: (B, 4) int64, top, left, height, width of what is pasted from the partner; empty for blends.
    """

    share: np.ndarray
    blend: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Mixing:
    """mixup, cutmix: parameter of the Beta distribution of each; 0 leaves it out. probability: of mixing at all;
    switch: of CutMix where both are on. smoothing: of the targets, spread over `classes`. mode: one draw for the
    micro-batch ("batch", as published), for each pair of partners, or for each image ("elem").
    """

    classes: int
    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1
    mode: str = "batch"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"Unknown mode of mixing {self.mode!r}; known are {', '.join(MODES)}.")
        if self.mixup < 0 or self.cutmix < 0 or self.mixup == self.cutmix == 0:
            raise UserError(
                f"Mixup {self.mixup} and CutMix {self.cutmix}: give positive parameters, 0 for one of them at most; "
                "without mixing leave both out."
            )

    def __call__(self, batch: B) -> B:
        """A prepared batch with labels (B,) -> the same with mixed images and soft targets (B, classes).

        Raises UserError for an odd number of images: each needs a partner.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        images, targets = self.apply(rng, batch.images, batch.targets)
        return replace(batch, images=images, targets=targets)

    def apply(self, rng: Draws, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) int64 -> mixed images and soft targets (B, classes)."""
        check_even(len(images))
        mix = self.draw(rng, len(images), (images.shape[2], images.shape[3]))
        targets = smooth_targets(labels, self.classes, self.smoothing)
        share = torch.from_numpy(mix.share).to(targets)[:, None]
        return mix_images(images, mix), share * targets + (1 - share) * targets.flip(0)

    def draw(self, rng: Draws, count: int, size: tuple[int, int]) -> Mix:
        """The mix of `count` images of `size` (h, w) pixels."""
        draws = {"batch": 1, "pair": count // 2, "elem": count}[self.mode]
        pasted, blend = self._kinds(rng, draws)
        share, boxes = blend.copy(), np.zeros((draws, 4), np.int64)
        for i in np.flatnonzero(pasted & (blend != 1)):
            boxes[i] = cut_box(rng, size, float(blend[i]))
            share[i] = 1 - boxes[i, 2] * boxes[i, 3] / (size[0] * size[1])
        blend = np.where(pasted, 1.0, blend)
        return Mix(*(self._for_all(values, count) for values in (share, blend, boxes)))

    def _kinds(self, rng: Draws, draws: int) -> tuple[np.ndarray, np.ndarray]:
        """(whether a rectangle is pasted, the image's own share) of each draw; 1 where nothing is mixed."""
        one = (
            self.mode == "batch"
        )  # which asks first whether to mix at all, and draws the one kind that it uses
        on = rng.random(1) < self.probability if one else None
        if on is not None and not on[0]:
            return np.zeros(1, bool), np.ones(1)
        both = self.mixup > 0 and self.cutmix > 0
        pasted = rng.random(draws) < self.switch if both else np.full(draws, self.cutmix > 0)
        if one:
            alpha = self.cutmix if pasted[0] else self.mixup
            return pasted, rng.beta(alpha, alpha, 1)
        cut, mixed = (rng.beta(a, a, draws) if a > 0 else 1.0 for a in (self.cutmix, self.mixup))
        blend = np.where(pasted, cut, mixed)
        return pasted, np.where(rng.random(draws) < self.probability, blend, 1.0)

    def _for_all(self, values: np.ndarray, count: int) -> np.ndarray:
        """The draws' values -> those of all images: partners share them, except with a draw for each."""
        if self.mode == "batch":
            return np.repeat(values, count, axis=0)
        return np.concatenate([values, values[::-1]]) if self.mode == "pair" else values


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """(B, C, H, W), each blended with, or pasted over by, its partner from the other end."""
    partners = images.flip(0)
    if (mix.blend == 1).all():
        mixed = images
    else:
        blend = torch.from_numpy(mix.blend).to(images)[:, None, None, None]
        mixed = images * blend + partners * (1 - blend)
    if not mix.boxes.any():
        return mixed
    boxes = torch.from_numpy(mix.boxes).to(images.device, non_blocking=True)
    return torch.where(inside(boxes, images.shape[2:]), partners, mixed)


def cut_box(rng: Draws, size: tuple[int, int], share: float) -> tuple[int, int, int, int]:
    """Top, left, height, width of what CutMix pastes: about 1 - share of the area, cut at the image's borders.

    The centre is uniform over the image; sides are centre -/+ side // 2, so odd ones lose a pixel (as published).
    """
    spans = []
    for side in size:
        half = int(side * np.sqrt(1 - share)) // 2
        centre = int(rng.integers(0, side))
        low, high = max(0, centre - half), min(side, centre + half)
        spans.append((low, high - low))
    (top, height), (left, width) = spans
    return top, left, height, width


def smooth_targets(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Labels (B,) int64 -> (B, classes) float: 1 - s + s / classes for the label, s / classes for the others."""
    off = smoothing / classes
    targets = torch.full((len(labels), classes), off, device=labels.device, dtype=torch.get_default_dtype())
    return targets.scatter_(1, labels[:, None], 1 - smoothing + off)


def check_even(count: int) -> None:
    """Raises UserError for an odd micro-batch, in which an image would be left without a partner."""
    if count % 2:
        raise UserError(
            f"Mixup and CutMix pair the images of a micro-batch, and {count} is odd; "
            "choose an even train.micro_batch, or leave mixing out."
        )
