"""The Hilbert-Schmidt independence criterion for linear kernels: biased, unbiased, and for many layers at once.

K = X X', L = Y Y' over n examples. HSIC_0 = tr(K H L H) / (n - 1)^2 with H = I - 1/n (Gretton et al. 2005). HSIC_1,
with zero diagonals: [tr(KL) + (1'K1)(1'L1) / ((n - 1)(n - 2)) - 2 / (n - 2) 1'KL1] / (n (n - 3)) (Song et al.
2012), which may be negative and needs n >= 4. CKA is HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)). All in float64.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mimkit.errors import UserError

LEAST = 4  # examples that HSIC_1 needs
COLUMNS = 16384  # features at a time that a Gram matrix converts to float64
CONSTANT = 1e-12  # share of the features' energy below which their variation is rounding


def gram(features: Tensor) -> tuple[Tensor, float]:
    """(X X' (n, n) of the features' deviations from their mean, the share of the energy that is deviation).

    Both estimators are unchanged by shifts, and centring first keeps the digits.
    """
    x = features.flatten(1)
    made = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    energy = 0.0
    for part in x.split(COLUMNS, dim=1):
        part = part.double()
        energy += float(part.square().sum())
        part = part - part.mean(0)
        made += part @ part.T
    return made, float(made.trace()) / max(energy, 1e-300)


def hsic_biased(k: Tensor, other: Tensor) -> float:
    """HSIC_0 of two Gram matrices (n, n)."""
    return float(pairwise([k], [other], "biased"))


def hsic_unbiased(k: Tensor, other: Tensor) -> float:
    """HSIC_1 of two Gram matrices (n, n), n >= 4."""
    return float(pairwise([k], [other], "unbiased"))


def pairwise(first: Sequence[Tensor], second: Sequence[Tensor], estimator: str) -> Tensor:
    """(len(first), len(second)): HSIC of every pair of Gram matrices, by one product of their entries in a row."""
    n = len(first[0])
    if n < LEAST:
        raise UserError(f"HSIC needs at least {LEAST} examples, not {n}.")
    if estimator == "biased":
        rows = [torch.stack([_centred(k).flatten() for k in grams]) for grams in (first, second)]
        return rows[0] @ rows[1].T / (n - 1) ** 2
    a, b = (torch.stack([k - k.diagonal().diag() for k in grams]) for grams in (first, second))  # (L, n, n)
    rows_a, rows_b = a.sum(2), b.sum(2)  # (L, n)
    products = a.flatten(1) @ b.flatten(1).T
    return _unbiased(products, rows_a.sum(1), rows_b.sum(1), rows_a @ rows_b.T, n)


def _unbiased(products: Tensor, sum_a: Tensor, sum_b: Tensor, rows: Tensor, n: int) -> Tensor:
    whole = torch.outer(sum_a, sum_b) / ((n - 1) * (n - 2))
    return (products + whole - 2 / (n - 2) * rows) / (n * (n - 3))


def _centred(k: Tensor) -> Tensor:
    return k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()


def pairwise_features(first: Sequence[Tensor], second: Sequence[Tensor], estimator: str) -> Tensor:
    """As `pairwise`, from features (n, C) themselves: for more examples than channels, where Grams would not fit."""
    made = torch.zeros(len(first), len(second), dtype=torch.float64)
    for i, x in enumerate(first):
        row = _deviations(x)
        for j, y in enumerate(second):
            if second is first and j < i:  # the same both ways: half the products
                made[i, j] = made[j, i]
            else:
                made[i, j] = _feature_form(row, _deviations(y), estimator)
    return made


def _deviations(x: Tensor) -> Tensor:
    x = x.double()
    return x - x.mean(0)


def _feature_form(x: Tensor, y: Tensor, estimator: str) -> Tensor:
    """HSIC of centred features (n, C), (n, D) without their Grams: O(n C D)."""
    n = len(x)
    product = (x.T @ y).square().sum()
    if estimator == "biased":
        return product / (n - 1) ** 2
    norm_x, norm_y = x.square().sum(1), y.square().sum(1)  # the diagonals; centred rows of a Gram sum to zero
    products = product - norm_x @ norm_y
    return _unbiased(
        products[None, None], -norm_x.sum()[None], -norm_y.sum()[None], (norm_x @ norm_y)[None, None], n
    )[0, 0]


class Sums:
    """HSIC of all pairs of layers, added up over blocks of examples. tokens: each token is an example."""

    def __init__(self, estimator: str, tokens: bool = False) -> None:
        self.estimator, self.tokens = estimator, tokens
        self.count = 0
        self.cross: Tensor | None = None  # (La, Lb)
        self.own: list[Tensor] = []  # (La,), (Lb,)
        self.varies: list[np.ndarray] = []  # per model and layer, the largest share of the energy that varies

    def add(self, *models: Sequence[Tensor]) -> None:
        """One block: the features of every layer of one model or two, (n, F), or (n, T, C) for tokens."""
        self.add_prepared(*([self.prepared(x) for x in own] for own in models))

    def add_prepared(self, *ready: Sequence[tuple[Tensor, float]]) -> None:
        """One block, of which each layer went through `prepared`."""
        made = [[x for x, _ in own] for own in ready]
        if len(counts := sorted({len(x) for own in made for x in own})) > 1:
            raise UserError(
                f"CKA needs the same examples everywhere, and layers have {counts[0]} and {counts[-1]} of them; take "
                "images or their pooled tokens as examples."
            )
        shares = [np.array([share for _, share in own]) for own in ready]
        pairs = pairwise_features if self.tokens else pairwise
        cross = pairs(made[0], made[-1], self.estimator)
        if len(made) == 1:
            alone = [cross.diagonal()]
        else:
            alone = [torch.stack([pairs([x], [x], self.estimator)[0, 0] for x in own]) for own in made]
        if self.cross is None:
            self.cross, self.own, self.varies = cross, alone, shares
        else:
            self.cross = self.cross + cross
            self.own = [a + b for a, b in zip(self.own, alone, strict=True)]
            self.varies = [np.maximum(a, b) for a, b in zip(self.varies, shares, strict=True)]
        self.count += 1

    def prepared(self, features: Tensor) -> tuple[Tensor, float]:
        """(what pairs are made of: the Gram matrix, or all features for tokens; the share of their energy that
        varies).
        """
        if not self.tokens:
            return gram(features)
        x = features.flatten(0, -2)  # (n * T, C)
        return x, float(_deviations(x).square().sum()) / max(float(x.double().square().sum()), 1e-300)

    def ratio(self, models: Sequence[tuple[str, Sequence[str]]]) -> np.ndarray:
        """CKA (La, Lb), of at least one block. models: (name, names of its layers), for errors.

        Raises UserError, naming the layer, where features are constant or no finite numbers.
        """
        assert self.cross is not None
        for (model, layers), own, varies in zip(models, self.own, self.varies, strict=False):
            for layer, value, share in zip(layers, own.tolist(), varies.tolist(), strict=True):
                if not (np.isfinite(value) and np.isfinite(share)):
                    raise UserError(f"The features of {layer!r} in {model} are no finite numbers.")
                if value <= 0 or share < CONSTANT:
                    raise UserError(
                        f"The features of {layer!r} in {model} are the same for all examples, so that CKA is not "
                        "defined; leave the layer out or look at what feeds it."
                    )
        root = torch.outer(self.own[0].sqrt(), self.own[-1].sqrt())
        return (self.cross / root).numpy()
