"""What a chosen patch looks at: attention maps of single queries (iTPN, figure 6) for any layer and head.

For a few images at a time, since here the attention itself is kept. Windows are put back to their place in the whole
grid; what lies outside a query's window is zero.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mimkit.analysis.capture import checked, listening
from mimkit.analysis.flow import rollout, rollout_map
from mimkit.analysis.geometry import Geometry
from mimkit.analysis.probe import frozen
from mimkit.analysis.subjects import (
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

MOST = 16  # images at once: attention of all layers is held


@dataclass(frozen=True)
class LayerMaps:
    """attention: (B, H, prefix + h * w, prefix + h * w) float32, rows sum to 1 over what the layer looks at, on the
    CPU.
    """

    name: str
    grid: tuple[int, int]
    prefix: int
    attention: Tensor

    def of(self, query: tuple[int, int] | int) -> Tensor:
        """(B, H, h, w): where the patch (row, column) looks, or the prefix token number `query`; prefix keys
        dropped and rows renormalised.
        """
        if isinstance(query, int):
            if not 0 <= query < self.prefix:
                raise UserError(f"{self.name!r} has {self.prefix} prefix tokens; there is no token {query}.")
            place = query
        else:
            row, column = query
            if not (0 <= row < self.grid[0] and 0 <= column < self.grid[1]):
                raise UserError(f"There is no patch {query} in a grid of {self.grid}.")
            place = self.prefix + row * self.grid[1] + column
        own = self.attention[:, :, place, self.prefix :]
        return (own / own.sum(-1, keepdim=True)).unflatten(-1, self.grid)


@dataclass(frozen=True)
class AttentionMaps:
    """The attention of some layers for a batch of images."""

    model: str
    layers: tuple[LayerMaps, ...]

    def rollout(self, heads: str = "mean") -> Tensor:
        """(B, h, w), sums to 1: `flow.rollout` over these layers. Raises UserError where their grids differ."""
        first = self.layers[0]
        rolled = rollout([layer.attention for layer in self.layers], heads)
        return rollout_map(rolled, first.prefix).unflatten(-1, first.grid)


def attention_maps(model: nn.Module, images: Tensor, layers: Sequence[int] | None = None) -> AttentionMaps:
    """The attention of `layers` (numbers from 1; None: all) for normalised images (B, C, H, W), at most 16.

    Memory: 4 x H x N^2 bytes an image and layer (1.9 MB for ViT-B/16 at 224).
    """
    model = bare(model)
    name = name_of(model)
    if len(images) > MOST:
        raise UserError(
            f"Attention maps are kept for at most {MOST} images at a time, not {len(images)}; for numbers over many "
            "images there is attention_statistics."
        )
    check_weights(model, name)
    known = attention_sites(model)
    if not known:
        raise UserError(f"{name} has no attention layers to show.")
    wanted = list(range(1, len(known) + 1)) if layers is None else list(layers)
    if wrong := [number for number in wanted if not 1 <= number <= len(known)]:
        raise UserError(f"{name} has attention layers 1 to {len(known)}; there is no layer {wrong[0]}.")
    sites = [known[number - 1] for number in wanted]
    size = tuple(images.shape[2:])
    where = [geometry_of(site, size) for site in sites]
    kept: dict[int, Tensor] = {}

    def take(place: int, scores: Iterator[Tensor]) -> None:
        parts = checked(scores, sites[place], where[place].keys)
        kept[place] = torch.cat([part.softmax(-1).float().cpu() for part in parts], 2)

    with frozen(model), listening(sites, take):
        forward_of(model)(images.to(device_of(model)))
    made = (
        _maps(site, geometry, kept[i]) for i, (site, geometry) in enumerate(zip(sites, where, strict=True))
    )
    return AttentionMaps(name, tuple(made))


def _maps(site: AttentionSite, geometry: Geometry, p: Tensor) -> LayerMaps:
    if site.window is None:
        return LayerMaps(site.name, geometry.grid, site.prefix, p)
    return LayerMaps(site.name, geometry.grid, 0, scattered(p, geometry))


def scattered(p: Tensor, geometry: Geometry) -> Tensor:
    """Attention of windows (B * W, H, n, n) on the whole grid, (B, H, h * w, h * w); padding dropped, rows
    renormalised.
    """
    p = p.unflatten(0, (-1, geometry.windows))  # (B, W, H, n, n)
    cells = geometry.grid[0] * geometry.grid[1]
    made = p.new_zeros(p.shape[0], p.shape[2], cells, cells)
    for window in range(geometry.windows):
        real = geometry.inside[window]
        at = geometry.index[window][real]
        own = p[:, window][:, :, real][..., real]
        made[:, :, at[:, None], at[None]] = own / own.sum(-1, keepdim=True)
    return made
