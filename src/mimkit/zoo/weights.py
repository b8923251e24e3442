"""Weights at hand, with what the files beside them say about the model they belong to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """tensors: by the names of their format. label: how reports call them.

    The rest is None where nothing says. grid: (h, w) of the position table. norm_pix: whether a decoder among them
    predicts normalised pixels. eps: of the layer norms. heads, decoder_heads: of the attention, which shapes do not
    tell. size: (h, w) of the images in pixels. mean, std: per channel, how they were normalised. architecture: timm's
    name of the model, and the arguments it was built with. classes: of a classification head, in its order. pooling:
    "mean" or "cls", what a head reads. bits: of the images, 8, 16, or 32 for floats.

    config: the file that names the architecture. recipe: the sections `encoder`, `method` or `task`, and `data` of a
    recipe of mimkit, {} for foreign files.
    """

    tensors: Mapping[str, Tensor]
    label: str
    grid: tuple[int, ...] | None = None
    norm_pix: bool | None = None
    eps: float | None = None
    heads: int | None = None
    decoder_heads: int | None = None
    size: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    architecture: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    pooling: str | None = None
    bits: int | None = None
    config: Path | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
