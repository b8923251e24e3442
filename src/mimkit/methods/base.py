"""The contract of a pre-training method: a module that turns a batch into a loss, and shows what it reconstructs."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from mimkit.encoders.base import Encoder
from mimkit.masks import Mask, Masker, at_ratio, collate


@dataclass(frozen=True)
class Loss:
    """total: the scalar that is minimised. parts: named scalars that are logged."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Reconstruction:
    """What a method makes of hidden cells, as normalised images (B, C, H, W) all.

    original: the input. hidden: bool (B, 1, H, W). pasted: the prediction with the visible pixels put back, made
    without looking at anything hidden. leaked: for targets normalised per patch, the prediction brought back with
    the TRUE mean and deviation of each hidden patch, which gives away much of the answer; None otherwise.
    """

    original: Tensor
    hidden: Tensor
    pasted: Tensor
    leaked: Tensor | None = None


class Method(nn.Module):
    """Base of all methods. It owns decoder, mask token, teacher; never the data or the optimiser."""

    encoder: Encoder
    masker: Masker
    """Draws the mask of one sample; the loader calls it."""

    def forward(self, batch: Any) -> Loss:
        """Loss of a prepared batch (`data.batch.Batch` with float images and a mask)."""
        raise NotImplementedError

    def reconstruct(self, images: Tensor, mask: Mask) -> Reconstruction:
        """The prediction for the hidden cells of images (B, C, H, W)."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called after each optimiser step: moving averages."""

    def frozen(self) -> set[str]:
        """Names of parameters that are kept in checkpoints but never trained."""
        return {name for name, parameter in self.named_parameters() if not parameter.requires_grad}

    def draw_mask(self, images: Tensor, seed: int, ratio: float | None = None) -> Mask:
        """A mask for images (B, C, H, W) on their device that depends on `seed` and the place in the batch alone.

        For pictures. ratio: another one than training uses.
        """
        masker = self.masker if ratio is None else at_ratio(self.masker, ratio)
        grid = tuple(-(-size // cell) for size, cell in zip(images.shape[2:], masker.unit, strict=True))
        mask = collate([masker(np.random.default_rng([seed, i]), grid) for i in range(images.shape[0])])
        return mask.to(images.device)
