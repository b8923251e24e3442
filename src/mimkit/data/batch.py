"""What the loader hands over: one dataclass for pre-training methods and for tasks alike."""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from mimkit.masks import Mask


@dataclass(frozen=True)
class Skip:
    """A sample that could not be read: its place in the index, its name there, and why."""

    id: int
    name: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Images and what belongs to them.

    images: (B, C, H, W), uint8 / uint16 / float32 as loaded; float32 and normalised after `data.normalise.prepare`.
    ids: (B,) int64, the samples' places in the frozen index. mask: what is hidden, on pre-training.
    sizes: (B, 2) true height and width where images were padded to a common size. targets: labels (B,) int64, or what
    a task defines. views: (B,) int64, which crop of its image each row is (repeated augmentation).
    skipped: samples that were replaced because they could not be read.
    """

    images: Tensor
    ids: Tensor
    mask: Mask | None = None
    sizes: Tensor | None = None
    targets: Any = None
    views: Tensor | None = None
    skipped: tuple[Skip, ...] = ()

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        def move(value: Any) -> Any:
            return value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor | Mask) else value

        return replace(self, **{entry.name: move(getattr(self, entry.name)) for entry in fields(self)})

    def pin_memory(self) -> Self:
        """Called by torch's DataLoader when pinning is on."""

        def pin(value: Any) -> Any:
            return value.pin_memory() if isinstance(value, Tensor | Mask) else value

        return replace(self, **{entry.name: pin(getattr(self, entry.name)) for entry in fields(self)})
