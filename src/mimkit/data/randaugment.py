"""RandAugment (Cubuk et al. 2020) in the form that MAE's fine-tuning uses, timm's `rand-m9-mstd0.5-inc1`: 15
operations of which each grows stronger with the magnitude, two drawn for an image, each applied with probability 0.5.

The operations are Pillow's, which the published numbers stand on; on 224 x 224 pixels they are also the fastest at hand
for geometry. Pictures of other than one or three channels go through them channel by channel. What is drawn is decided
by the sample's generator before a pixel is touched.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from mimkit.errors import UserError, nearest

LARGEST = 10.0  # magnitude
IMAGENET_FILL = (124, 116, 104)  # ImageNet's mean colour
Fill = tuple[int, ...]  # one value for each channel


class Operation(NamedTuple):
    """argument: magnitude -> what `apply(image, argument, fill)` is given; signed: half of the time turned round,
    about 0, or about 1 for a factor.
    """

    apply: Callable[[Image.Image, float, Fill], Image.Image]
    argument: Callable[[float], float] = lambda magnitude: 0.0
    signed: bool = False
    about: float = 0.0


def _rotate(image: Image.Image, degrees: float, fill: Fill) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=_colour(fill))


def _affine(place: int) -> Callable[[Image.Image, float, Fill], Image.Image]:
    """The map (1, 0, 0, 0, 1, 0) from output to input pixels, about the top left corner, with the argument at a place.

    A shift (places 2 and 5) is a share of the side.
    """

    def apply(image: Image.Image, argument: float, fill: Fill) -> Image.Image:
        side = {2: image.width, 5: image.height}.get(place, 1)
        matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        matrix[place] = argument * side
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            tuple(matrix),
            Image.Resampling.BICUBIC,
            fillcolor=_colour(fill),
        )

    return apply


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[..., Image.Image]:
    return lambda image, factor, fill: kind(image).enhance(factor)


def _posterize(image: Image.Image, bits: float, fill: Fill) -> Image.Image:
    """The highest bits of each value; none at all is black (which Pillow's own function refuses)."""
    kept = 256 - 2 ** (8 - int(bits))
    return image.point([value & kept for value in range(256)] * len(image.getbands()))


def _solarize_add(image: Image.Image, addend: float, fill: Fill) -> Image.Image:
    table = [min(255, value + int(addend)) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _colour(fill: Fill) -> int | Fill:
    return fill[0] if len(fill) == 1 else fill


def _enhancement(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return Operation(_enhance(kind), lambda m: 1 + m / LARGEST * 0.9, signed=True, about=1.0)


def _geometry(apply: Callable[[Image.Image, float, Fill], Image.Image], most: float) -> Operation:
    return Operation(apply, lambda m: m / LARGEST * most, signed=True)


OPERATIONS = {
    "AutoContrast": Operation(lambda image, _, fill: ImageOps.autocontrast(image)),
    "Equalize": Operation(lambda image, _, fill: ImageOps.equalize(image)),
    "Invert": Operation(lambda image, _, fill: ImageOps.invert(image)),
    "Rotate": _geometry(_rotate, 30.0),  # degrees
    "Posterize": Operation(_posterize, lambda m: 4 - int(m / LARGEST * 4)),  # bits that are kept
    "Solarize": Operation(  # from which value on it is inverted
        lambda image, level, fill: ImageOps.solarize(image, int(level)),
        lambda m: 256 - int(m / LARGEST * 256),
    ),
    "SolarizeAdd": Operation(_solarize_add, lambda m: int(m / LARGEST * 110)),
    "Color": _enhancement(ImageEnhance.Color),
    "Contrast": _enhancement(ImageEnhance.Contrast),
    "Brightness": _enhancement(ImageEnhance.Brightness),
    "Sharpness": _enhancement(ImageEnhance.Sharpness),
    "ShearX": _geometry(_affine(1), 0.3),
    "ShearY": _geometry(_affine(3), 0.3),
    "TranslateX": _geometry(_affine(2), 0.45),  # share of the side
    "TranslateY": _geometry(_affine(5), 0.45),
}
NAMES = tuple(OPERATIONS)


class Step(NamedTuple):
    """One operation to apply, by its name, and its argument with its sign."""

    name: str
    argument: float


@dataclass(frozen=True)
class RandAugment:
    """count: operations drawn for an image, with replacement. magnitude, spread: mean and deviation of a normal, cut
    to 0..10. probability: of each that was drawn to be applied. fill: colour of what geometry uncovers, 0..255, one
    value for each channel.
    """

    magnitude: float = 9.0
    spread: float = 0.5
    count: int = 2
    probability: float = 0.5
    fill: Fill = IMAGENET_FILL

    def filled_with(self, mean: Sequence[float]) -> "RandAugment":
        """The same, uncovering the data's mean colour (0..1 for each channel)."""
        return replace(self, fill=tuple(min(255, round(255 * value)) for value in mean))

    def draw(self, rng: np.random.Generator) -> list[Step]:
        """What one image goes through. Always takes the same number of draws from `rng`."""
        chosen = rng.integers(len(NAMES), size=self.count)
        applied = rng.random(self.count) < self.probability
        magnitudes = np.clip(rng.normal(self.magnitude, self.spread, self.count), 0, LARGEST)
        turned = rng.random(self.count) < 0.5
        return [
            Step(NAMES[i], argument(NAMES[i], magnitude, bool(turn)))
            for i, on, magnitude, turn in zip(chosen, applied, magnitudes.tolist(), turned, strict=True)
            if on
        ]

    def apply(self, image: Tensor, steps: Sequence[Step]) -> Tensor:
        """The picture (C, h, w), uint8, after `steps`. Raises UserError for other than 8 bits."""
        if not steps:
            return image
        if image.dtype != torch.uint8:
            raise UserError(
                f"RandAugment works on pictures of 8 bits and these are {str(image.dtype).removeprefix('torch.')}; "
                "leave it out with task.randaugment=null."
            )
        pixels = image.permute(1, 2, 0).numpy()  # (h, w, C)
        changed = _together(pixels, steps, self.fill)
        return torch.from_numpy(changed).permute(2, 0, 1)


def argument(name: str, magnitude: float, turned: bool = False) -> float:
    """The argument of the operation `name` at a magnitude of 0..10; turned: of the other sign, where it has one."""
    operation = OPERATIONS[name]
    value = operation.argument(magnitude)
    return 2 * operation.about - value if turned and operation.signed else value


def parse(text: str) -> RandAugment:
    """timm's way to write it: `rand-m9-mstd0.5-inc1`, with n (operations) and p (probability) where they differ.

    Raises UserError for what is no RandAugment of the increasing set.
    """
    fields = {"m": "magnitude", "mstd": "spread", "n": "count", "p": "probability", "inc": "inc"}
    first, *parts = text.split("-")
    given: dict[str, float] = {}
    for part in parts:
        found = re.fullmatch(r"([a-z]+)([\d.]+)", part)
        if first != "rand" or not found or found[1] not in fields:
            known = ", ".join(fields)
            raise UserError(
                f"{text!r} is no RandAugment that is known here ({part!r}); write it like rand-m9-mstd0.5-inc1, with "
                f"{known}.{nearest(part, fields)}"
            )
        given[fields[found[1]]] = float(found[2])
    if first != "rand" or given.pop("inc", 0) != 1:
        raise UserError(
            f"{text!r}: only the increasing set is known here; write it like rand-m9-mstd0.5-inc1."
        )
    return RandAugment(**{name: int(value) if name == "count" else value for name, value in given.items()})  # type: ignore[arg-type]


def _together(pixels: np.ndarray, steps: Sequence[Step], fill: Fill) -> np.ndarray:
    """(h, w, C) uint8 after all steps, through as few conversions as possible."""
    channels = pixels.shape[2]
    if channels in (1, 3):
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        for name, value in steps:
            image = OPERATIONS[name].apply(image, value, fill)
        return np.array(image).reshape(pixels.shape)
    for name, value in steps:
        if name == "Color":
            pixels = _saturate(pixels, value)
            continue
        bands = [
            np.array(OPERATIONS[name].apply(Image.fromarray(pixels[..., c]), value, fill[c : c + 1]))
            for c in range(channels)
        ]
        pixels = np.stack(bands, axis=-1)
    return pixels


def _saturate(pixels: np.ndarray, factor: float) -> np.ndarray:
    """`Color` for other counts of channels than RGB's: away from, or towards, the mean over the channels."""
    grey = pixels.mean(axis=2, keepdims=True)
    return np.clip(grey + factor * (pixels - grey) + 0.5, 0, 255).astype(np.uint8)
