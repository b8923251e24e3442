"""Attention distance, entropy, divergence between heads and mutual information, on arrays of attention and streamed.

Definitions of "Revealing the Dark Secrets of Masked Image Modeling" (Xie et al. 2023, section 3.1, figures 1-4) where
the paper gives them. What it leaves open is fixed here: prefix tokens (class token, registers) are dropped, rows and
columns, and rows renormalised; logarithms are natural; both logarithms of the KL divergence are of max(a, 1e-8).

p is attention after softmax: (B, H, q, k), rows sum to 1.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mimkit.analysis.geometry import Geometry
from mimkit.ops.attention import precise

EPS = 1e-8
NOTHING = (
    -1e4
)  # a logarithm whose exponential is zero in every float; unlike -inf it gives 0 when multiplied by 0


def without_prefix(p: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """(attention of the patches over the patches, rows renormalised; the mass (..., q) that they gave to patches)."""
    own = p[..., prefix:, prefix:]
    mass = own.sum(-1)
    return own / mass[..., None], mass


def attention_distance(p: Tensor, distance: Tensor) -> Tensor:
    """(..., q): expected distance between a query and what it looks at; distance: (q, k) in pixels (`geometry`)."""
    return (p * distance.to(p)).sum(-1)


def entropy(p: Tensor) -> Tensor:
    """(..., q) nats: of each row; 0 ln 0 = 0."""
    return torch.special.entr(p).sum(-1)


def kl_matrix(p: Tensor, eps: float = EPS) -> Tensor:
    """(H, H) nats: [i, j] is the mean over images and queries of KL(head i || head j).

    All pairs at once by one matrix product: sum a_i ln a_i - a_i . ln a_j.
    """
    log_p = p.clamp_min(eps).log()
    cross = torch.einsum("bhqk,bgqk->hg", p, log_p) / (p.shape[0] * p.shape[2])
    return cross.diagonal()[:, None] - cross


def js_matrix(p: Tensor) -> Tensor:
    """(H, H) nats: mean Jensen-Shannon divergence between heads; at most ln 2, where KL is unbounded."""
    return _js_sums(p).mean(0) / p.shape[2]


def _js_sums(p: Tensor) -> Tensor:
    """(B, H, H), summed over queries; a head at a time, so that no H x H x q x k is made."""
    own = entropy(p).sum(-1)  # (B, H)
    rows = [entropy((p + p[:, i, None]) / 2).sum(-1) - (own + own[:, i, None]) / 2 for i in range(p.shape[1])]
    return torch.stack(rows, 1)


def _double(x: Tensor) -> Tensor:
    """In float64; Apple's GPUs have none, and small tensors go to the CPU for it."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def per_head(pairs: Tensor) -> Tensor:
    """(..., H, H) -> (..., H): each head's mean over the others, the small dots of figure 4; NaN for a single head."""
    heads = pairs.shape[-1]
    off = pairs.sum(-1) - pairs.diagonal(dim1=-2, dim2=-1)
    return off / (heads - 1) if heads > 1 else torch.full_like(off, math.nan)


def mutual_information(marginal: Tensor, row_entropy: Tensor, queries: Tensor | int) -> Tensor:
    """Normalised: I(query; key) / sqrt(H(query) H(key)) of uniform queries; 0 when every query looks alike, 1 when
    one to one.

    marginal: (..., k) mean over queries of p. row_entropy: (...) mean entropy of its rows.
    """
    keys = torch.special.entr(marginal).sum(-1)
    return (keys - row_entropy).clamp_min(0) / (
        keys * torch.as_tensor(queries, dtype=keys.dtype).log()
    ).sqrt().clamp_min(EPS)


def attention_nmi(p: Tensor, eps: float = EPS) -> Tensor:
    """(B, H): `mutual_information` of p with eps added and rows renormalised."""
    p = (p + eps) / (1 + eps * p.shape[-1])
    return mutual_information(p.mean(-2), entropy(p).mean(-1), p.shape[-2])


class Meter:
    """Sums of one layer's numbers over images. Each call of `add` is one batch; memory holds one slice of queries.

    Everything is taken from the scores before softmax, in float32 or better: their log-softmax over the patches is
    the renormalised attention, and gives the logarithms for free.

    js: the Jensen-Shannon divergence too (a logarithm for each pair of heads: slow). include_prefix: entropy and
    divergences of the patches' rows over all tokens.
    """

    def __init__(
        self, geometry: Geometry, prefix: int = 0, js: bool = False, include_prefix: bool = False
    ) -> None:
        self.geometry, self.prefix, self.js, self.include_prefix = geometry, prefix, js, include_prefix
        self.sums: dict[str, Tensor] = {}  # over images: distance, entropy, nmi, mass (H,); kl, js (H, H)
        self.images: dict[str, list[float]] = {}  # means over heads, or pairs of heads, of each image
        self.count = 0

    def mean(self, name: str) -> Tensor:
        """Over images and queries, float64: distance (px), entropy, nmi, mass (H,); kl, js (H, H)."""
        return self.sums[name] / self.count

    def add(self, scores: Iterable[Tensor]) -> None:
        """scores: slices of queries that follow each other, (B * W, H, q, prefix + n)."""
        sums: dict[str, Tensor] = {}
        first = 0
        for part in scores:
            skip = max(0, self.prefix - first)  # queries that are no patches
            own = part[:, :, skip:].unflatten(0, (-1, self.geometry.windows))  # (B, W, H, q, prefix + n)
            if own.shape[-2]:
                for name, value in self._slice(own, first + skip - self.prefix).items():
                    exact = _double(value)
                    sums[name] = sums[name] + exact if name in sums else exact
            first += part.shape[2]
        self._close(sums)

    def _slice(self, scores: Tensor, first: int) -> dict[str, Tensor]:
        """Sums over the queries first .. first + q of each window, (B, W, H, ...)."""
        scores = precise(scores)
        rows = slice(first, first + scores.shape[-2])
        p, log_p, total = self._attention(scores[..., self.prefix :], rows)
        apart = self.geometry.distance[:, rows].to(p.dtype).to(p.device).flatten(1)[:, None]  # (W, 1, q * n)
        made = {
            "distance": torch.linalg.vecdot(p.flatten(-2), apart)
        }  # six times faster than a product with a column
        if self.prefix:
            made["mass"] = (total - scores[..., : self.prefix].logsumexp(-1)).sigmoid().sum(-1)
            if self.include_prefix:
                p, log_p, _ = self._attention(scores, rows)
        flat, flat_log = p.flatten(-2), log_p.flatten(-2)  # (B, W, H, q * n)
        made["entropy"] = -torch.linalg.vecdot(flat, flat_log)
        made["marginal"] = p.sum(-2)
        if self.js:
            made["js"] = _js_sums(p.flatten(0, 1)).unflatten(0, p.shape[:2])
        made["cross"] = flat @ flat_log.clamp_min_(math.log(EPS)).mT  # (B, W, H, H)
        return made

    def _attention(self, scores: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """(p, its logarithm, the logarithm of the row's sum before softmax); rows of padding are zero."""
        inside = self.geometry.inside.to(scores.device) if self.geometry.padded else None
        if inside is not None:
            scores = scores.masked_fill(~inside[:, None, None], -math.inf)
        log_p = scores.log_softmax(-1)
        total = scores[..., 0] - log_p[..., 0]
        p = log_p.exp()
        if inside is not None:
            p *= inside[:, None, rows, None]
        return p, log_p.clamp_min_(NOTHING), total

    def _close(self, sums: dict[str, Tensor]) -> None:
        """Turn the sums of a batch into means per image, keep those of layers, add those of heads."""
        real = self.geometry.inside.sum(-1).to(sums["entropy"])  # (W,) queries
        nmi = mutual_information(
            sums["marginal"] / real[:, None, None], sums["entropy"] / real[:, None], real[:, None]
        )
        cross = sums["cross"]
        made = {
            "distance": sums["distance"].sum(1) / real.sum(),  # (B, H)
            "entropy": sums["entropy"].sum(1) / real.sum(),
            "nmi": nmi.mean(1),
            "mass": sums.get("mass", real.expand_as(nmi.mT).mT).sum(1) / real.sum(),
            "kl": (cross.diagonal(dim1=-2, dim2=-1)[..., None] - cross).sum(1) / real.sum(),  # (B, H, H)
        }
        if self.js:
            made["js"] = sums["js"].sum(1) / real.sum()
        self.count += len(cross)
        # What stays is added in place, or a plain number: a small tensor of each batch, kept among the large ones that
        # come and go, would leave holes in the heap that nothing fits into, more and more of them.
        for name, value in made.items():
            total = value.sum(0).cpu()
            if name in self.sums:
                self.sums[name] += total
            else:
                self.sums[name] = total
            each = per_head(value) if value.ndim == 3 else value
            self.images.setdefault(name, []).extend(each.mean(1).tolist())
