"""Dense features as colours: the first three principal components of the patches, fitted jointly over a batch.

Fitted over all images together, so that a colour means the same in each. The sign of a component is arbitrary and fixed
by a rule (its largest loading is positive); `flip` turns the first one round where foreground and background come out
exchanged. In two steps, the first component splits foreground from background at zero, and a second fit sees only the
foreground. Features are not standardised.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mimkit.errors import UserError, counted


@dataclass(frozen=True)
class Basis:
    """mean (C,), components (3, C) by falling variance, explained (3,) shares of the variance, low and high (3,): the
    range of the scores that becomes 0 .. 1.
    """

    mean: Tensor
    components: Tensor
    explained: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Picture:
    """rgb: (B, h, w, 3) in 0 .. 1, background black after two steps. foreground: bool (B, h, w). basis: for other
    images; first: the basis that split off the foreground, in two steps.
    """

    rgb: Tensor
    foreground: Tensor
    basis: Basis
    first: Basis | None = None


def pca_rgb(
    features: Tensor, two_steps: bool = False, flip: bool = False, fitted: Picture | None = None
) -> Picture:
    """Colours of feature maps (B, h, w, C).

    two_steps: colour only the foreground, by components of its own. flip: the other side of the first component is the
    foreground. fitted: use the bases of that picture, so that colours agree with it.
    Raises UserError for fewer than 3 channels or 4 tokens, or features that are no finite numbers.
    """
    _check(features)
    x = features.detach().double()
    split = fitted.first or fitted.basis if fitted else fit(x.flatten(0, 2))
    lead = scores(x, split)[..., 0]
    foreground = lead < 0 if flip else lead > 0
    if not two_steps:
        return Picture(_colours(x, split), foreground, split)
    inside = x[foreground]
    if fitted is None and len(inside) < 4:
        raise UserError(
            f"The foreground's side of the first component holds only {counted(len(inside), 'token')}, too few for a "
            "second step; try flip=True."
        )
    basis = fitted.basis if fitted else fit(inside)
    return Picture(_colours(x, basis) * foreground[..., None], foreground, basis, split)


def _check(features: Tensor) -> None:
    if features.ndim != 4 or features.shape[-1] < 3 or features[..., 0].numel() < 4:
        raise UserError(
            "Colours need feature maps (B, h, w, C) of at least 3 channels and 4 tokens in all; these are "
            f"{tuple(features.shape)}."
        )
    if not bool(torch.isfinite(features).all()):
        raise UserError("The features hold values that are no finite numbers; there are no colours for them.")


def fit(rows: Tensor) -> Basis:
    """The three leading components of rows (n, C), float64."""
    mean = rows.mean(0)
    scatter = (rows - mean).T @ (rows - mean)
    values, vectors = torch.linalg.eigh(scatter)
    components = vectors.flip(1)[:, :3].T  # (3, C)
    largest = components.abs().argmax(1, keepdim=True)
    components = components * components.gather(1, largest).sign()
    explained = values.flip(0)[:3].clamp_min(0) / values.sum().clamp_min(1e-300)
    found = (rows - mean) @ components.T
    return Basis(mean, components, explained, found.amin(0), found.amax(0))


def scores(features: Tensor, basis: Basis) -> Tensor:
    """(..., 3): features (..., C) along the components."""
    return (features - basis.mean) @ basis.components.T


def _colours(features: Tensor, basis: Basis) -> Tensor:
    """(..., 3) in 0 .. 1: each component's range over what was fitted."""
    span = (basis.high - basis.low).clamp_min(1e-12)
    return ((scores(features, basis) - basis.low) / span).clamp(0, 1)
