"""Two health signs of features that need no labels: effective rank, and how broadly attention looks.

Effective rank (Roy & Vetterli 2007; RankMe, Garrido et al. 2023): exp of the entropy of the normalised singular values
of the centred features. It falls towards 1 when features collapse onto few directions, and is at most the smaller of
channels and images - 1: compare it between steps of one run or between runs on the same images, not as such. Attention
entropy (nats): of each patch's attention over the patches, then the mean over patches, heads and images (Xie et al.
2023, "Revealing the Dark Secrets of Masked Image Modeling", section 3.1): ln(patches) when all are attended alike, 0
for one.

Prefix tokens (class token, registers) are left out of the entropy and rows are renormalised over the patches. Whole
images, no mask. Everything streams: a batch, and of its attention a slice of queries, at a time, summed in float64.
"""

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mimkit.analysis.probe import frozen
from mimkit.data.batch import Batch
from mimkit.encoders.base import AttentionSite, Encoder
from mimkit.errors import UserError


@dataclass(frozen=True)
class Quality:
    """effective_rank: of the mean-pooled features of `images` images. entropy: per attention layer, nats, (H,) by head.

    uniform: the entropy of attention that looks everywhere alike. patch_mass: share of the patches' attention that goes
    to patches and not to prefix tokens, per layer; where it is small the entropy speaks of little. All three are empty
    or None for encoders without global attention.
    """

    images: int
    effective_rank: float
    entropy: tuple[tuple[float, ...], ...] = ()
    uniform: float | None = None
    patch_mass: tuple[float, ...] = ()

    def metrics(self) -> dict[str, float]:
        """Columns for metrics.jsonl: `effective_rank`, `entropy_layer1`, ... (mean over heads), `entropy_uniform`."""
        made = {"effective_rank": self.effective_rank}
        for layer, heads in enumerate(self.entropy, start=1):
            made[f"entropy_layer{layer}"] = sum(heads) / len(heads)
        if self.uniform is not None:
            made["entropy_uniform"] = self.uniform
        return made


def quality(encoder: Encoder, batches: Iterable[Batch], device: torch.device | str = "cpu") -> Quality:
    """Effective rank and attention entropy over normalised `batches`; a few hundred images are enough.

    The encoder comes back in the mode it was in. Raises UserError where there are fewer than two images.
    """
    covariance = Covariance()
    sites = [
        site for site in encoder.attentions() if site.window is None and hasattr(site.module, "probabilities")
    ]
    meters = [Entropy(site.prefix) for site in sites]
    with frozen(encoder), ExitStack() as stack:
        for site, meter in zip(sites, meters, strict=True):
            stack.callback(_watch(site, meter).remove)
        for batch in batches:
            covariance.add(encoder(batch.images.to(device)).pooled("mean"))
    if covariance.count < 2:
        raise UserError(f"The effective rank needs at least two images; there {_were(covariance.count)}.")
    return Quality(
        covariance.count,
        covariance.effective_rank(),
        tuple(tuple(meter.mean().tolist()) for meter in meters),
        math.log(meters[0].keys) if meters else None,
        tuple(meter.mass / meter.rows for meter in meters),
    )


def measure(encoder: Encoder, images: Tensor, chunk: int = 32) -> dict[str, float]:
    """The columns of `quality` for images (B, C, H, W) that are at hand, `chunk` at a time; none for a single image."""
    if len(images) < 2:
        return {}
    batches = (Batch(part, torch.arange(len(part))) for part in images.split(chunk))
    return quality(encoder, batches, images.device).metrics()


def _were(count: int) -> str:
    return "was one" if count else "were none"


def effective_rank(features: Tensor) -> float:
    """exp(entropy of the singular values of the centred features (n, C), normalised to sum 1), in float64."""
    covariance = Covariance()
    covariance.add(features)
    return covariance.effective_rank()


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

    def effective_rank(self) -> float:
        """1 for features that are all alike. Singular values are the roots of the scatter's eigenvalues."""
        values = torch.linalg.eigvalsh(self.scatter)
        noise = torch.finfo(values.dtype).eps * len(values) * values.abs().max()
        singular = torch.where(values > noise, values, 0.0).sqrt()
        if not bool(singular.any()):
            return 1.0
        return math.exp(float(torch.special.entr(singular / singular.sum()).sum()))


@dataclass
class Entropy:
    """Sums of the entropy of attention rows over patches. prefix: tokens in front that are no patches."""

    prefix: int
    rows: int = 0
    keys: int = 0
    mass: float = 0.0
    total: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def add(self, probabilities: Tensor, first: int) -> None:
        """probabilities: (B, H, q, N), rows of the queries first .. first + q; those of prefix tokens are left out."""
        own = probabilities[:, :, max(0, self.prefix - first) :, self.prefix :]  # (B, H, q, patches)
        if not own.shape[2]:
            return
        mass = own.sum(-1, keepdim=True)
        entropy = torch.special.entr(own / mass.clamp_min(1e-30)).sum(-1)  # (B, H, q)
        summed = entropy.sum((0, 2), dtype=torch.float64).cpu()
        self.total = summed if not self.rows else self.total + summed
        self.mass += float(mass.sum(dtype=torch.float64)) / own.shape[1]
        self.rows += own.shape[0] * own.shape[2]
        self.keys = own.shape[3]

    def mean(self) -> Tensor:
        """(H,) nats."""
        return self.total / self.rows


def _watch(site: AttentionSite, meter: Entropy) -> torch.utils.hooks.RemovableHandle:
    """Recompute the probabilities of `site` from what goes into it: fused attention never shows them."""

    def look(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        first = 0
        for part in module.probabilities(*arguments):  # type: ignore[operator]
            meter.add(part, first)
            first += part.shape[2]

    return site.module.register_forward_pre_hook(look)
