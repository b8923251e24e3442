"""Two health signs of features that need no labels: effective rank, and how broadly attention looks.

Effective rank (Roy & Vetterli 2007; RankMe, Garrido et al. 2023): exp of the entropy of the normalised singular values
of the centred features. It falls towards 1 when features collapse onto few directions, and is at most the smaller of
channels and images - 1: compare it between steps of one run or between runs on the same images, not as such. Attention
entropy (nats): of each patch's attention over the patches, then the mean over patches, heads and images (Xie et al.
2023, "Revealing the Dark Secrets of Masked Image Modeling", section 3.1): ln(patches) when all are attended alike, 0
for one.

Prefix tokens (class token, registers) are left out of the entropy and rows are renormalised over the patches. Whole
images, no mask. These are two numbers of the analysis suite (`attention`, `spectrum`), cheap enough to follow in a run.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mimkit.analysis.capture import listening
from mimkit.analysis.measures import Meter
from mimkit.analysis.probe import frozen
from mimkit.analysis.spectrum import Covariance
from mimkit.analysis.subjects import geometry_of
from mimkit.data.batch import Batch
from mimkit.encoders.base import Encoder
from mimkit.errors import UserError
from mimkit.ops.attention import Attention


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
        site for site in encoder.attentions() if site.window is None and isinstance(site.module, Attention)
    ]
    meters: dict[int, Meter] = {}
    with frozen(encoder), listening(sites, lambda place, scores: meters[place].add(scores)):
        for batch in batches:
            for place, site in enumerate(sites):
                if place not in meters:
                    meters[place] = Meter(geometry_of(site, tuple(batch.images.shape[2:])), site.prefix)
            covariance.add(encoder(batch.images.to(device)).pooled("mean"))
    if covariance.count < 2:
        raise UserError(f"The effective rank needs at least two images; there {_were(covariance.count)}.")
    return Quality(
        covariance.count,
        covariance.effective_rank(),
        tuple(tuple(meter.mean("entropy").tolist()) for meter in meters.values()),
        math.log(meters[0].geometry.keys) if meters else None,
        tuple(float(meter.mean("mass").mean()) for meter in meters.values()),
    )


def measure(encoder: Encoder, images: Tensor, chunk: int = 32) -> dict[str, float]:
    """The columns of `quality` for images (B, C, H, W) that are at hand, `chunk` at a time; none for a single image."""
    if len(images) < 2:
        return {}
    batches = (Batch(part, torch.arange(len(part))) for part in images.split(chunk))
    return quality(encoder, batches, images.device).metrics()


def _were(count: int) -> str:
    return "was one" if count else "were none"
