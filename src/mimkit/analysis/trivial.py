"""What predictors without any learning would reach, so that a reconstruction loss means something on any data.

A loss of 0.4 says nothing by itself: on fog it is bad, on gravel good. These answers are compared with the same target,
on the same patches, by the same error as the model's, and all of them live where the model's answer lives: in pixels
(normalised by the data's mean and deviation), or, with per-patch normalised targets (MAE's `norm_pix_loss`), in pixels
normalised by their own patch.

- `zero`: the answer 0 everywhere. In pixels that is the mean colour of the data; for normalised targets it is the
  patch's own mean, and the loss is 1 by construction (a little less where patches are flatter than `min_std` or the
  published 1e-6). A loss that stays here has learned nothing.
- `image_mean`: the mean of the image's visible patches, per channel. For normalised targets only a tint is left of it.
- `nearest_visible`: a copy of the nearest visible patch; for normalised targets a copy of its pattern, normalised by
  its own statistics, so that nothing hidden is used. Worse than a mean where textures are fine.
- `patch_mean`: the true mean colour of each hidden patch. This one looks at the answer: a model below it has learned
  more than colours, namely edges or texture. For normalised targets it knows the true tint: close to 1 for grey images,
  about a half on colour photographs.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mimkit.masks import Mask, indices
from mimkit.methods.mae import patch_errors, patch_targets
from mimkit.ops import units


@torch.no_grad()
def trivial_losses(
    images: Tensor, mask: Mask, patch: Sequence[int], norm_pix: bool, min_std: float = 0.0
) -> dict[str, float]:
    """Mean squared error of the trivial predictors on the patches that `mask` asks for.

    images: (B, C, H, W), normalised, as the model gets them. patch: (ph, pw) pixels, dividing the mask's cells.
    norm_pix, min_std: the method's target. Deterministic and cheap: one pass over the patches, no gradient.
    """
    everywhere = units.patchify(images, patch)  # (B, N, ph * pw * C)
    if norm_pix:
        everywhere, _, _ = patch_targets(everywhere, min_std)
    visible = indices(~mask.at(patch))  # (B, K)
    decoded = _decoded(mask, patch)  # (B, P)
    target = units.take(everywhere, decoded)
    channels = images.shape[1]
    grid = [side // cell for side, cell in zip(images.shape[2:], patch, strict=True)]
    guesses = {
        "zero": torch.zeros_like(target),
        "image_mean": _colour(units.take(everywhere, visible), channels, across=1),
        "nearest_visible": units.take(everywhere, nearest_visible(visible, decoded, grid, patch)),
        "patch_mean": _colour(target, channels, across=2),
    }
    return {name: float(patch_errors(guess, target).mean()) for name, guess in guesses.items()}


def nearest_visible(visible: Tensor, wanted: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """(B, P): for each cell of `wanted` (B, P) the nearest of `visible` (B, K), centre to centre; ties: lower index.

    All are raster indices on `grid` (h, w); patch: pixels of a cell, so that oblong cells are measured right.
    """
    rows, columns = (torch.arange(n, device=visible.device) * p for n, p in zip(grid, patch, strict=True))
    centres = torch.cartesian_prod(rows, columns).view(-1, 2)  # (N, 2), whole pixels
    chosen = []
    for seen, asked in zip(visible, wanted, strict=True):  # an image at a time: P x K distances
        away = (centres[asked][:, None] - centres[seen][None]).square().sum(-1)  # (P, K)
        chosen.append(seen[_first_minimum(away)])
    return torch.stack(chosen)


def _first_minimum(values: Tensor) -> Tensor:
    """(P, K) -> (P,): place of the smallest value of each row, the first of equals (argmin leaves that open)."""
    smallest = values == values.amin(1, keepdim=True)
    return smallest.to(torch.int8).cumsum(1).eq(0).sum(1)


def _colour(patches: Tensor, channels: int, across: int) -> Tensor:
    """Mean per channel, as pixels that broadcast against (B, P, values): of each patch (across=2) or image (1)."""
    batch, count, values = patches.shape
    pixels = patches.view(batch, count, values // channels, channels)
    means = pixels.mean(2) if across == 2 else pixels.mean((1, 2))[:, None]  # (B, P or 1, C)
    return means.repeat(1, 1, values // channels)  # channel fastest, as in a patch


def _decoded(mask: Mask, patch: Sequence[int]) -> Tensor:
    """(B, P) raster indices, on the grid of patches, of the cells that the mask asks to predict."""
    cells = torch.zeros_like(mask.hidden.flatten(1)).scatter(1, mask.decoded, True)
    return indices(replace(mask, hidden=cells.view_as(mask.hidden)).at(patch))
