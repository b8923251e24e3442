"""Random erasing (Zhong et al. 2020, as the fine-tuning of MAE uses it): noise over a rectangle of the image.

The rectangle is drawn in the loader, with the sample's own generator; the noise is put in on the device, behind the
normalisation, where a pixel's noise is standard normal in every channel.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mimkit.data.augment import ATTEMPTS, Box
from mimkit.errors import UserError

NOTHING = Box(0, 0, 0, 0)


class Draws(Protocol):
    """The part of Python's `random.Random` that the rule needs."""

    def random(self) -> float: ...

    def uniform(self, a: float, b: float) -> float: ...

    def randint(self, a: int, b: int) -> int: ...


@dataclass(frozen=True)
class Erasing:
    """probability: of an image. area: share of the image, uniform; aspect: height over width, log-uniform."""

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"The share of erased images is {self.probability}; give a number from 0 to 1.")

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> Box:
        """The rectangle of one image of `size` (h, w) pixels, `NOTHING` for most."""
        return self.box(random.Random(int(rng.integers(2**63))), size)

    def box(self, rng: Draws, size: tuple[int, int]) -> Box:
        """As published: up to ten tries for a rectangle smaller than the image in both sides."""
        height, width = size
        if rng.random() > self.probability:
            return NOTHING
        for _ in range(ATTEMPTS):
            area = rng.uniform(*self.area) * height * width
            aspect = math.exp(rng.uniform(math.log(self.aspect[0]), math.log(self.aspect[1])))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top = rng.randint(0, height - h)
                return Box(top, rng.randint(0, width - w), h, w)
        return NOTHING


def boxes_tensor(boxes: Sequence[Box]) -> Tensor | None:
    """(B, 4) int64: top, left, height, width; None where no box holds anything."""
    return torch.tensor(boxes, dtype=torch.int64) if any(box.height * box.width for box in boxes) else None


def inside(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Bool (B, 1, h, w): the pixels of images of `size` that lie in their box of `boxes` (B, 4)."""
    spans = []
    for axis in (0, 1):
        place = torch.arange(size[axis], device=boxes.device)
        first, length = boxes[:, axis, None], boxes[:, axis + 2, None]
        spans.append((place >= first) & (place < first + length))  # (B, h), (B, w)
    return (spans[0][:, :, None] & spans[1][:, None, :])[:, None]


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Normalised images (B, C, H, W) with standard normal noise, from torch's generator, in their boxes (B, 4)."""
    return torch.where(inside(boxes, images.shape[2:]), torch.randn_like(images), images)
