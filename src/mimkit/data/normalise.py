"""From stored numbers to what a model reads, on the device and in float32: the only place where pixels are
normalised.

Loaders ship uint8, uint16 or float32 as decoded: a quarter of the transfer, and the arithmetic is free on a GPU. The
`denormalise` that pictures need is the inverse.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from mimkit.data.batch import Batch
from mimkit.errors import UserError, counted

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FULL_SCALE = {torch.uint8: 255.0, torch.uint16: 65535.0}


def prepare(batch: Batch, device: torch.device | str, mean: Sequence[float], std: Sequence[float]) -> Batch:
    """`batch` on `device`, its images float32 (B, C, H, W), contiguous: ((x / full scale) - mean) / std per channel.

    uint8 and uint16 are brought to 0..1, float32 is taken as it is; mean and std are in these units. Images that are
    float32 already are not changed in place. Raises UserError when the counts of channels differ.
    """
    device = torch.device(device)
    moved = batch.to(device, non_blocking=True)
    return replace(moved, images=normalise(moved.images, mean, std))


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, C, H, W) as loaded -> float32, contiguous; see `prepare`."""
    mean_, std_ = _per_channel(images, mean, std)
    scale = FULL_SCALE.get(images.dtype, 1.0)
    # Divided, not multiplied by the inverse: 8 bits and their 16-bit form (x 257) then give the same float
    floats = images.to(torch.float32, memory_format=torch.contiguous_format).div(scale)
    return floats.sub_(mean_).div_(std_)


def denormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised (B, C, H, W) -> float32 in 0..1, cut to that range: what a picture shows."""
    mean_, std_ = _per_channel(images, mean, std)
    return images.float().mul(std_).add_(mean_).clamp_(0, 1)


def _per_channel(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Mean and deviation as (C, 1, 1) on the images' device."""
    channels = images.shape[-3]
    if not len(mean) == len(std) == channels:
        raise UserError(
            f"The images have {counted(channels, 'channel')}, data.mean has {counted(len(mean), 'value')} and "
            f"data.std {len(std)}; give one of each per channel, or leave both out to have them measured."
        )
    return _constant(tuple(mean), images.device), _constant(tuple(std), images.device)


@lru_cache(maxsize=16)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(C, 1, 1) on the device, kept: making it anew would wait for a GPU in every step."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
