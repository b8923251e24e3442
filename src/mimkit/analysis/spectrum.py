"""How many directions features use, and what single tokens do: spectra, effective ranks, token norms, frequencies.

Effective rank (Roy & Vetterli 2007; RankMe, Garrido et al. 2023): exp of the entropy of the singular values of the
centred features, normalised to sum 1. Tokens of large norm (Darcet et al. 2024) show at the output of the last
block, before the final norm. Frequencies: amplitudes of the Fourier transform of the token map (Park & Kim 2022).
Covariances stream in float64, so memory does not grow with the number of images.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mimkit.analysis.frames import Frame, frame
from mimkit.analysis.layers import block_names, map_of, tapping
from mimkit.analysis.probe import frozen
from mimkit.analysis.subjects import Feed, bare, check_weights, device_of, forward_of, name_of
from mimkit.errors import UserError

OUTLIER = 10 * 1.4826  # times the median absolute deviation; 1.4826 makes it a standard deviation


@dataclass(frozen=True)
class LayerSpectrum:
    """Block outputs of C channels. singular: (min(C, n),) of the centred features, descending.

    effective_rank, participation ((sum s^2)^2 / sum s^4) and stable_rank (sum s^2 / s_1^2) are at most C and n - 1.
    norms: quantiles 0, 1/4, 1/2, 3/4, 1 of the tokens' norms. outliers: share of tokens above median + 10 x 1.4826 MAD.
    high_minus_low: log amplitude of the highest minus that of the lowest frequency of the token map; nan for one token.
    """

    name: str
    effective_rank: float
    participation: float
    stable_rank: float
    norms: tuple[float, float, float, float, float]
    outliers: float
    high_minus_low: float
    singular: np.ndarray = field(repr=False)
    amplitude: np.ndarray = field(repr=False)

    @property
    def log_spectrum(self) -> np.ndarray:
        """ln(s_i / s_1)."""
        with np.errstate(divide="ignore"):
            return np.log(self.singular / self.singular[0])


@dataclass(frozen=True)
class LayerStatistics:
    """All blocks of a model over `images` images; examples: "tokens" or "pooled" make the rows of the covariances."""

    model: str
    images: int
    examples: str
    layers: tuple[LayerSpectrum, ...]

    def to_frame(self) -> Frame:
        """Columns model, layer (1..), head (None), metric, value; and the layer's name."""
        return frame(self._rows(), ("model", "layer", "head", "metric", "value", "name"))

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        for number, layer in enumerate(self.layers, start=1):
            values = {
                "effective_rank": layer.effective_rank,
                "participation": layer.participation,
                "stable_rank": layer.stable_rank,
                "norm_median": layer.norms[2],
                "norm_max": layer.norms[4],
                "outliers": layer.outliers,
                "high_minus_low": layer.high_minus_low,
            }
            for metric, value in values.items():
                if not math.isnan(value):
                    yield self.model, number, None, metric, value, layer.name
            for place, value in enumerate(layer.singular.tolist()):
                yield self.model, number, None, f"singular_{place + 1}", value, layer.name


def layer_statistics(
    model: nn.Module,
    loader: Iterable[Any],
    name: str | None = None,
    images: int | None = None,
    examples: str = "tokens",
) -> LayerStatistics:
    """Spectrum, effective rank, token norms and frequencies of every block's output.

    loader: as for `attention_statistics`. examples: rows of the covariance are all "tokens", or one "pooled" row
    (the mean over tokens) an image. Prefix tokens are left out. Raises UserError for fewer than two images or NaN
    weights.
    """
    if examples not in ("tokens", "pooled"):
        raise UserError(f"Spectra cannot take {examples!r} as examples; known are tokens, pooled.")
    model = bare(model)
    name = name or name_of(model)
    check_weights(model, name)
    meters = {key: Spectrum(examples) for key in block_names(model)}
    feed = Feed(loader, images)
    with frozen(model), tapping(model, list(meters)) as outputs:
        for x in feed:
            forward_of(model)(x.to(device_of(model)))
            for key, meter in meters.items():
                meter.add(map_of(outputs[key], model, x))
    if len(feed.ids) < 2:
        raise UserError(f"Spectra of features need at least two images, and there were {len(feed.ids)}.")
    return LayerStatistics(
        name, len(feed.ids), examples, tuple(meter.result(key, name) for key, meter in meters.items())
    )


class Spectrum:
    """Sums of one layer over batches of feature maps."""

    def __init__(self, examples: str) -> None:
        self.examples, self.covariance = examples, Covariance()
        self.norms: list[Tensor] = []
        self.amplitude = torch.zeros(0, 0)
        self.images = 0

    def add(self, maps: Tensor) -> None:
        """maps: (B, h, w, C)."""
        x = maps.float() if maps.dtype != torch.float64 else maps
        self.covariance.add(x.flatten(0, 2) if self.examples == "tokens" else x.mean((1, 2)))
        self.norms.append(token_norms(x).flatten().cpu())
        found = amplitude(x).cpu().double() * len(x)
        self.amplitude = found if not self.images else self.amplitude + found
        self.images += len(x)

    def result(self, layer: str, model: str) -> LayerSpectrum:
        singular = self.covariance.singular()
        if not bool(torch.isfinite(singular).all()):
            raise UserError(f"The features of {layer!r} in {model} are no finite numbers.")
        norms = torch.cat(self.norms)
        quantiles = [float(value) for value in np.quantile(norms.numpy(), [0, 0.25, 0.5, 0.75, 1])]
        mean = self.amplitude / self.images
        return LayerSpectrum(
            layer,
            effective_rank_of(singular),
            participation_ratio(singular),
            stable_rank(singular),
            (quantiles[0], quantiles[1], quantiles[2], quantiles[3], quantiles[4]),
            outlier_share(norms),
            high_minus_low(mean) if mean.numel() > 1 else math.nan,
            singular.numpy(),
            mean.numpy(),
        )


class Covariance:
    """Count, mean and scatter of features that arrive in batches (Chan et al. 1983), in float64 on the CPU."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """features: (B, C)."""
        x = features.detach().cpu().double()
        mean = x.mean(0)
        scatter = (x - mean).T @ (x - mean)
        if not self.count:
            self.count, self.mean, self.scatter = len(x), mean, scatter
            return
        total, shift = self.count + len(x), mean - self.mean
        self.scatter += scatter + torch.outer(shift, shift) * (self.count * len(x) / total)
        self.mean += shift * (len(x) / total)
        self.count = total

    def singular(self) -> Tensor:
        """Singular values of the centred features, descending: roots of the scatter's eigenvalues."""
        if not bool(torch.isfinite(self.scatter).all()):
            return torch.full((len(self.scatter),), math.nan, dtype=torch.float64)
        values = torch.linalg.eigvalsh(self.scatter).flip(0)
        noise = torch.finfo(values.dtype).eps * len(values) * values.abs().max()
        return torch.where(values > noise, values, 0.0).sqrt()

    def effective_rank(self) -> float:
        """1 for features that are all alike."""
        return effective_rank_of(self.singular())


def effective_rank(features: Tensor) -> float:
    """exp(entropy of the singular values of the centred features (n, C), normalised to sum 1), in float64."""
    covariance = Covariance()
    covariance.add(features)
    return covariance.effective_rank()


def effective_rank_of(spectrum: Tensor) -> float:
    """exp of the entropy of `spectrum`, normalised to sum 1: of singular values, or of their squares for
    eigenvalues.
    """
    if not bool(spectrum.any()):
        return 1.0
    return math.exp(float(torch.special.entr(spectrum / spectrum.sum()).sum()))


def participation_ratio(singular: Tensor) -> float:
    """(sum s^2)^2 / sum s^4: another count of directions; 1 for features that are all alike."""
    energy = singular.square()
    return float(energy.sum().square() / energy.square().sum()) if bool(energy.any()) else 1.0


def stable_rank(singular: Tensor) -> float:
    """sum s^2 / s_1^2; 1 for features that are all alike."""
    energy = singular.square()
    return float(energy.sum() / energy.max()) if bool(energy.any()) else 1.0


def token_norms(maps: Tensor) -> Tensor:
    """(B, h, w): length of each token of (B, h, w, C)."""
    return maps.norm(dim=-1)


def outlier_threshold(norms: Tensor) -> float:
    """median + 10 x 1.4826 x the median absolute deviation: above it lie artefact tokens."""
    flat = norms.flatten().double()
    middle = flat.quantile(0.5) if flat.numel() < 2**24 else flat.median()
    away = (flat - middle).abs()
    spread = away.quantile(0.5) if flat.numel() < 2**24 else away.median()
    return float(middle + OUTLIER * spread)


def outlier_share(norms: Tensor) -> float:
    """Share of the tokens above `outlier_threshold`."""
    return float((norms.double() > outlier_threshold(norms)).double().mean())


def amplitude(maps: Tensor) -> Tensor:
    """(h, w): |FFT2| of the maps (B, h, w, C) over the grid, mean over images and channels, zero frequency at the
    centre.
    """
    found = torch.fft.fft2(maps, dim=(1, 2)).abs().mean((0, 3))
    return torch.fft.fftshift(found)


def high_minus_low(amplitudes: Tensor) -> float:
    """Log amplitude at (-pi, -pi) minus that at 0."""
    height, width = amplitudes.shape
    logs = amplitudes.clamp_min(1e-30).log()
    return float(logs[0, 0] - logs[height // 2, width // 2])
