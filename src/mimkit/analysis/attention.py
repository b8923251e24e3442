"""Where a model looks: attention distance, entropy and divergence between heads of every layer, over a set of images.

Figures 1 to 4 of "Revealing the Dark Secrets of Masked Image Modeling" (Xie et al. 2023): a dot a head, a line a layer
mean. Whole images, no mask. The scores are overheard while the model runs (`capture`), reduced to sums at once
(`measures`), and true image coordinates are used throughout (`geometry`), so memory depends on neither the number of
images nor the number of layers.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mimkit.analysis.capture import checked, listening
from mimkit.analysis.frames import Frame, frame
from mimkit.analysis.measures import Meter, per_head
from mimkit.analysis.probe import frozen
from mimkit.analysis.subjects import (
    Feed,
    attention_sites,
    bare,
    check_weights,
    device_of,
    forward_of,
    geometry_of,
    name_of,
)
from mimkit.encoders.base import AttentionSite
from mimkit.errors import UserError


@dataclass(frozen=True)
class LayerAttention:
    """One layer. distance (px), entropy (nats), nmi, patch_mass: (H,) a head. kl, js: (H, H) nats, ordered pairs; js
    is None unless it was asked for.

    patch_mass: share of the patches' attention that goes to patches and not to prefix tokens; where it is small, the
    rest speaks of little. uniform_distance, uniform_entropy: of attention that looks alike at all it may see.
    grid, stride (px per position), window, shift: geometry; window None is global attention.
    per_image: "distance", "entropy", "kl", "nmi", "mass" -> (images,) means over heads (pairs), by ascending sample
    index.
    """

    name: str
    distance: np.ndarray
    entropy: np.ndarray
    kl: np.ndarray
    nmi: np.ndarray
    patch_mass: np.ndarray
    uniform_distance: float
    uniform_entropy: float
    grid: tuple[int, int]
    stride: tuple[int, int]
    window: tuple[int, int] | None = None
    shift: tuple[int, int] | None = None
    js: np.ndarray | None = None
    per_image: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def heads(self) -> int:
        return len(self.distance)

    @property
    def kl_heads(self) -> np.ndarray:
        """(H,) each head's mean over the others: the small dots of figure 4; NaN for a single head."""
        return per_head(torch.from_numpy(self.kl)).numpy()

    @property
    def js_heads(self) -> np.ndarray | None:
        """(H,) as `kl_heads`, bounded by ln 2."""
        return None if self.js is None else per_head(torch.from_numpy(self.js)).numpy()

    def by_head(self) -> dict[str, np.ndarray]:
        """metric -> (H,); a layer's value is the mean. relative_...: over the value of uniform attention."""
        made = {
            "distance": self.distance,
            "relative_distance": self.distance / max(self.uniform_distance, 1e-12),
            "entropy": self.entropy,
            "relative_entropy": self.entropy / max(self.uniform_entropy, 1e-12),
            "kl": self.kl_heads,
            "nmi": self.nmi,
            "patch_mass": self.patch_mass,
        }
        return made if self.js_heads is None else made | {"js": self.js_heads}


@dataclass(frozen=True)
class AttentionStatistics:
    """All attention layers of a model, in order. images: how many were read, of `size` (h, w) pixels."""

    model: str
    images: int
    size: tuple[int, int]
    layers: tuple[LayerAttention, ...]
    ids: np.ndarray = field(repr=False, default_factory=lambda: np.zeros(0, dtype=np.int64))

    def to_frame(self) -> Frame:
        """Columns model, layer (1..), head (0..; None is the layer's mean), metric, value; and the layer's name.

        Layers of a single head have no divergence between heads and no row for it.
        """
        return frame(self._rows(), ("model", "layer", "head", "metric", "value", "name"))

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        for number, layer in enumerate(self.layers, start=1):
            for metric, values in layer.by_head().items():
                for head, value in [*enumerate(values.tolist()), (None, float(values.mean()))]:
                    if not math.isnan(value):
                        yield self.model, number, head, metric, value, layer.name
            yield self.model, number, None, "uniform_distance", layer.uniform_distance, layer.name
            yield self.model, number, None, "uniform_entropy", layer.uniform_entropy, layer.name


def attention_statistics(
    model: nn.Module,
    loader: Iterable[Any],
    name: str | None = None,
    images: int | None = None,
    js: bool = False,
    include_prefix: bool = False,
) -> AttentionStatistics:
    """Attention distance, entropy, KL between heads and mutual information of every attention layer of `model`.

    model: an encoder of mimkit, a model of timm or of transformers. loader: batches of normalised images, all of one
    size (`Batch`, tensors (B, C, H, W), or tuples that begin with one). images: read at most so many; None: all.
    js: Jensen-Shannon divergence too (slow). include_prefix: entropy and divergences over all tokens, not over patches
    alone. The model runs where its weights lie and comes back in the mode it was in.

    Raises UserError for models without attention (look at their kernels: `kernel_statistics`) or with NaN weights,
    DataError for images of different sizes.
    """
    model = bare(model)
    name = name or name_of(model)
    sites = attention_sites(model)
    if not sites:
        raise UserError(
            f"{name} has no attention layers that the analysis knows; depth-wise kernels can be read as attention "
            "(kernel_statistics), and CKA and spectra apply to every model."
        )
    check_weights(model, name)
    feed = Feed(loader, images)
    meters = _measure(model, sites, feed, js, include_prefix)
    if not meters:
        raise UserError("Attention statistics need at least one image, and the loader gave none.")
    order = np.argsort(np.asarray(feed.ids), kind="stable")
    layers = [_layer(name, site, meter, order) for site, meter in zip(sites, meters, strict=True)]
    height, width = feed.size or (0, 0)
    return AttentionStatistics(
        name, len(feed.ids), (height, width), tuple(layers), np.asarray(feed.ids)[order]
    )


def _measure(
    model: nn.Module, sites: list[AttentionSite], feed: Feed, js: bool, include_prefix: bool
) -> list[Meter]:
    """A meter for each site, empty without images."""
    run, device = forward_of(model), device_of(model)
    meters: list[Meter] = []

    def take(place: int, scores: Iterator[Tensor]) -> None:
        meters[place].add(checked(scores, sites[place], meters[place].geometry.keys))

    with frozen(model), listening(sites, take):
        for images in feed:
            if not meters:
                meters += [
                    Meter(geometry_of(site, tuple(images.shape[2:])), site.prefix, js, include_prefix)
                    for site in sites
                ]
            run(images.to(device))
    return meters


def _layer(name: str, site: AttentionSite, meter: Meter, order: np.ndarray) -> LayerAttention:
    geometry = meter.geometry
    found = {key: meter.mean(key).numpy() for key in meter.sums}
    for key, values in found.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"The attention of {site.name!r} in {name} is no finite number ({key}); "
                "analyse an earlier checkpoint."
            )
    distance, nats = geometry.uniform()
    return LayerAttention(
        site.name,
        found["distance"],
        found["entropy"],
        found["kl"],
        found["nmi"],
        found["mass"],
        distance,
        nats,
        geometry.grid,
        geometry.stride,
        None if site.window is None else (site.window[0], site.window[1]),
        None if site.shift is None else (site.shift[0], site.shift[1]),
        found.get("js"),
        {key: np.asarray(values)[order] for key, values in meter.images.items()},
    )
