"""Attention maps for a page that needs no network: every query of a sample image, a few layers, all heads, in bytes.

Figure 6 of iTPN shows single maps; here a reader chooses the query. A map is kept as 8 bits per key, the root of its
share of the map's largest value, so that faint attention is seen too; the largest values stand beside it as float32.
Layers, queries and images are thinned until all models together stay within `BYTES` before compression; the page says
what was left out and how large it is.
"""

import base64
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mimkit.analysis.maps import AttentionMaps, LayerMaps
from mimkit.analysis.subjects import geometry_of
from mimkit.encoders.base import AttentionSite
from mimkit.plots.sheets import evenly

BYTES = 4 * 2**20  # of all maps of a page, before compression
QUERIES = 200  # of a map; more are thinned to every second, third ... along both axes
KEYS = 28 * 28  # finer maps (the first stages of a Swin) would fill the page alone
LAYERS, IMAGES = 6, 3
MANY = 16  # heads of a module that does not say
SIDE = 320  # pixels of a sample image on the page


@dataclass(frozen=True)
class Choice:
    """What of a model goes onto the page. layers: from 0. step: every how many patches a query is kept."""

    layers: tuple[int, ...]
    steps: tuple[int, ...]
    images: int


class Layout(NamedTuple):
    """The heads of a layer and its grid of patches."""

    heads: int
    grid: tuple[int, int]


def layouts(sites: Sequence[AttentionSite], size: tuple[int, int]) -> list[Layout]:
    """Of each attention layer on images of `size`; heads are read from the module."""
    grids = [geometry_of(site, size).grid for site in sites]
    return [Layout(_heads(site.module), grid) for site, grid in zip(sites, grids, strict=True)]


def _heads(module: Any) -> int:
    for name in ("num_heads", "heads", "num_attention_heads"):
        if isinstance(found := getattr(module, name, None), int):
            return found
    return MANY


def choose(found: Sequence[Layout], models: int) -> Choice | None:
    """Which of the layers `found` fit where `models` share the page; None where every map is too fine."""
    usable = [i for i, layer in enumerate(found) if layer.grid[0] * layer.grid[1] <= KEYS]
    if not usable:
        return None
    room = BYTES // models
    for count in range(min(LAYERS, len(usable)), 0, -1):
        picked = tuple(usable[i] for i in evenly(len(usable), count))
        layers = [found[i] for i in picked]
        steps = tuple(_step(layer, room if count == 1 else None) for layer in layers)
        cost = sum(_cost(layer, step) for layer, step in zip(layers, steps, strict=True))
        if cost <= room:
            return Choice(picked, steps, min(IMAGES, room // cost))
    return None


def _step(layer: Layout, room: int | None) -> int:
    """Every how many patches a query is kept so that there are at most QUERIES, and within `room` bytes."""
    height, width = layer.grid
    for step in range(1, max(height, width)):
        queries = -(-height // step) * -(-width // step)
        if queries <= QUERIES and (room is None or _cost(layer, step) <= room):
            return step
    return max(height, width)


def _cost(layer: Layout, step: int) -> int:
    height, width = layer.grid
    return layer.heads * -(-height // step) * -(-width // step) * height * width


def pack(
    model: str, maps: AttentionMaps, choice: Choice, images: Sequence[np.ndarray], names: Sequence[str]
) -> dict[str, Any]:
    """What the page's script reads: one entry a layer, in it one text an image.

    maps: all queries of the chosen layers. images: (h, w, 3) in 0..1, as the model saw them. names: of the images.
    """
    layers = []
    for number, step, layer in zip(choice.layers, choice.steps, maps.layers, strict=True):
        kept = patch_maps(layer)[: choice.images, :, ::step, ::step]  # (B, H, qh, qw, h, w)
        layers.append(
            {
                "layer": number + 1,
                "heads": kept.shape[1],
                "grid": list(layer.grid),
                "step": step,
                "queries": list(kept.shape[2:4]),
                "data": [_bytes(one) for one in kept],
            }
        )
    pictures = [picture(image) for image in images[: choice.images]]
    return {"model": model, "images": pictures, "names": list(names[: choice.images]), "layers": layers}


def patch_maps(layer: LayerMaps) -> np.ndarray:
    """(B, H, h, w, h, w): where each patch looks among the patches, rows brought back to a sum of one."""
    own = layer.attention[:, :, layer.prefix :, layer.prefix :]
    own = own / own.sum(-1, keepdim=True).clamp_min(1e-30)
    return own.unflatten(3, layer.grid).unflatten(2, layer.grid).float().cpu().numpy()


def _bytes(maps: np.ndarray) -> str:
    """(H, qh, qw, h, w) -> base64 of deflated float32 maxima (H * Q) and then uint8 roots (H * Q * N)."""
    flat = maps.reshape(-1, maps.shape[-2] * maps.shape[-1])
    top = flat.max(1)
    roots = np.sqrt(flat / np.maximum(top, 1e-30)[:, None])
    raw = top.astype("<f4").tobytes() + np.round(255 * roots).astype(np.uint8).tobytes()
    return base64.b64encode(zlib.compress(raw, 6)).decode()


def picture(image: np.ndarray, side: int = SIDE) -> str:
    """(h, w, 3) in 0..1 -> a JPEG as data, no larger than `side`; small images are enlarged by a whole factor."""
    from PIL import Image

    made = Image.fromarray(np.round(255 * np.clip(np.nan_to_num(image), 0, 1)).astype(np.uint8))
    if max(made.size) > side:
        made.thumbnail((side, side), Image.Resampling.LANCZOS)
    elif (factor := side // max(made.size)) > 1:
        made = made.resize((made.width * factor, made.height * factor), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    made.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
