"""Crops and resizing on arrays as they were decoded: uint8, uint16 or float32, any number of channels.

Pre-training sees one random resized crop of an image or its mirror image, nothing else (MAE, He et al. 2022, table
1e); evaluation sees the centre. The crop is decided from the size that the header declares, before anything is
decoded, so that the decoder may hand over a picture reduced by a power of two: `draw_view` -> `decode_size` -> decode
-> `take_view`. Cropping comes first, then the resize (bicubic, antialiased, the arithmetic of Pillow and torchvision)
straight on the stored type; normalising is the device's work (`normalise.py`).

8-bit pictures stay in the layout in which decoders write them, channels last, since the vector code of torch's resize
wants that (0.16 ms for a crop of 288 to 224 where planes take 0.43 ms and Pillow 1.1 ms); so the tensors that come
out are (C, h, w) with the strides of (h, w, C).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mimkit.errors import UserError

ATTEMPTS = 10  # draws of a crop before the central one is taken (torchvision's rule)
VECTOR_CHANNELS = 4  # torch resizes 8-bit pictures of at most this many channels with vector code
MAE_SCALE = (0.2, 1.0)
MAE_RATIO = (3 / 4, 4 / 3)


class Box(NamedTuple):
    """A rectangle of pixels: rows top .. top + height, columns left .. left + width."""

    top: int
    left: int
    height: int
    width: int


class View(NamedTuple):
    """What is drawn for one crop of an image whose upright size is `full`, (height, width) in pixels."""

    box: Box
    mirrored: bool
    full: tuple[int, int]


def random_resized_crop(
    rng: np.random.Generator,
    image: np.ndarray,
    size: tuple[int, int],
    scale: tuple[float, float] = MAE_SCALE,
    ratio: tuple[float, float] = MAE_RATIO,
    flip: float = 0.5,
) -> Tensor:
    """A random crop of `image` (H, W, C) at `size` (h, w), mirrored with probability `flip`: (C, h, w)."""
    return take_view(image, draw_view(rng, image.shape[0], image.shape[1], scale, ratio, flip), size)


def draw_view(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float] = MAE_SCALE,
    ratio: tuple[float, float] = MAE_RATIO,
    flip: float = 0.5,
) -> View:
    """Box and mirroring of one crop of an image of `height` x `width` pixels."""
    return View(crop_box(rng, height, width, scale, ratio), bool(rng.random() < flip), (height, width))


def crop_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float] = MAE_SCALE,
    ratio: tuple[float, float] = MAE_RATIO,
) -> Box:
    """The rule of random resized crops (Szegedy et al. 2015, as torchvision draws them).

    The share of the area is uniform in `scale`, width over height log-uniform in `ratio`; a box that does not fit is
    drawn anew, ten times, then the largest central box within `ratio` is taken. The box always lies inside the image.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(ATTEMPTS):
        share, shape, down, right = rng.random(4).tolist()
        area = height * width * (scale[0] + share * (scale[1] - scale[0]))
        aspect = math.exp(low + shape * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(down * (height - h + 1)), int(right * (width - w + 1)), h, w)
    h = min(height, max(1, round(width / ratio[0])))
    w = min(width, max(1, round(height * ratio[1])))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def decode_size(views: Sequence[View], size: tuple[int, int]) -> tuple[int, int]:
    """The least (height, width) to decode a picture to, so that no view falls below `size` for lack of pixels."""
    height, width = views[0].full
    rows = max(min(height, math.ceil(size[0] * height / view.box.height)) for view in views)
    columns = max(min(width, math.ceil(size[1] * width / view.box.width)) for view in views)
    return rows, columns


def take_view(image: np.ndarray, view: View, size: tuple[int, int]) -> Tensor:
    """The view of `image` (H, W, C), full or reduced, resized to `size`: (C, h, w)."""
    box = on_reduced(view, image.shape[0], image.shape[1])
    part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    resized = resize(part, size)
    return resized.flip(-1) if view.mirrored else resized


def on_reduced(view: View, height: int, width: int) -> Box:
    """The view's box on a picture decoded to `height` x `width`, to the nearest pixel."""
    if (height, width) == view.full:
        return view.box
    top, h = _scale_span(view.box.top, view.box.height, view.full[0], height)
    left, w = _scale_span(view.box.left, view.box.width, view.full[1], width)
    return Box(top, left, h, w)


def _scale_span(start: int, length: int, full: int, reduced: int) -> tuple[int, int]:
    shorter = min(reduced, max(1, round(length * reduced / full)))
    return min(round(start * reduced / full), reduced - shorter), shorter


def resize(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """`image` (H, W, C) of uint8, uint16 or float32 at `size`: (C, h, w) of the same type; bicubic with antialias.

    uint16 goes through float32 and is rounded and cut to its range; float32 may overshoot, as bicubic does.
    """
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"]))  # (H, W, C)
    if tuple(image.shape[:2]) == size:
        return pixels.permute(2, 0, 1)
    if pixels.dtype == torch.uint8:
        groups = [_resize_bytes(part.contiguous(), size) for part in pixels.split(VECTOR_CHANNELS, dim=2)]
        return groups[0] if len(groups) == 1 else torch.cat(groups)
    resized = _interpolate(pixels.float().permute(2, 0, 1)[None], size)[0]
    return resized.clamp_(0, 65535).round_().to(torch.uint16) if pixels.dtype == torch.uint16 else resized


def _resize_bytes(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W, C) uint8 -> (C, h, w), channels last in memory."""
    height, width, channels = pixels.shape
    # A batch of one hides its layout from torch unless the batch stride is the picture's size (pytorch issue 68430)
    strides = (pixels.numel(), 1, width * channels, channels)
    return _interpolate(pixels.as_strided((1, channels, height, width), strides), size)[0]


def _interpolate(images: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def evaluation_size(size: tuple[int, int]) -> tuple[int, int]:
    """What is covered before the centre is cut out: `size` / 0.875 up to 224 pixels, above it `size` itself."""
    crop = 224 / 256 if max(size) <= 224 else 1.0
    return int(size[0] / crop), int(size[1] / crop)


def resize_centre(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """The evaluation view of `image` (H, W, C): (C, *size), same type (as published with MAE: 224 is cut out of 256).

    The image is resized to just cover `evaluation_size` (for a square: its shorter side has that length, the longer
    one is truncated) and the centre is cut out.
    """
    height, width = image.shape[:2]
    rows, columns = evaluation_size(size)
    if rows * width >= columns * height:  # the height decides
        columns = max(columns, int(rows * width / height))
    else:
        rows = max(rows, int(columns * height / width))
    resized = resize(image, (rows, columns))
    top, left = round((rows - size[0]) / 2), round((columns - size[1]) / 2)
    return resized[:, top : top + size[0], left : left + size[1]]


def check_crop(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    """Raises UserError unless the bounds of a random crop are in order and possible."""
    if not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(
            f"data.crop_scale is {list(scale)}; give two shares of the image's area, 0 < smallest <= largest <= 1."
        )
    if not 0 < ratio[0] <= ratio[1]:
        raise UserError(f"data.crop_ratio is {list(ratio)}; give two positive numbers, the smaller first.")
