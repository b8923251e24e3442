"""Attention through all layers at once (rollout; Abnar & Zuidema 2020), for attention over the whole grid.

R_l = (A_l / 2 + I / 2) R_(l-1) with A_l the mean over heads; rows stay distributions. The map of a model with a
class token is that token's row over the patches, of one without the mean over all rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mimkit.errors import UserError


def rollout(attention: Sequence[Tensor], heads: str = "mean") -> Tensor:
    """(..., N, N) from each layer's attention (..., H, N, N), prefix tokens included, first layer first.

    heads: "mean" of the heads, half identity; or their "max" plus identity, rows normalised.
    """
    if heads not in ("mean", "max"):
        raise UserError(f"Rollout cannot fuse heads by {heads!r}; known are mean, max.")
    rolled: Tensor | None = None
    for layer in attention:
        eye = torch.eye(layer.shape[-1], dtype=layer.dtype, device=layer.device)
        step = (layer.mean(-3) if heads == "mean" else layer.amax(-3)) + eye
        step = step / step.sum(-1, keepdim=True)
        if rolled is not None and rolled.shape != step.shape:
            raise UserError(
                f"Rollout needs layers over the same tokens; one has {rolled.shape[-1]} and the next {step.shape[-1]}."
            )
        rolled = step if rolled is None else step @ rolled
    if rolled is None:
        raise UserError("Rollout needs at least one layer of attention.")
    return rolled


def rollout_map(rolled: Tensor, prefix: int) -> Tensor:
    """(..., patches), sums to 1: the first prefix token's row over the patches, or the mean of all rows without one."""
    row = rolled[..., 0, prefix:] if prefix else rolled.mean(-2)
    return row / row.sum(-1, keepdim=True)
