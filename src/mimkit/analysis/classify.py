"""The two classifiers that read frozen features, as pure functions of features and labels; `probe` decides on what.

k-NN is the weighted vote of DINO (Caron et al. 2021, section 4.1 and its released code): cosine similarity, k = 20,
temperature 0.07. The linear probe is multinomial logistic regression on standardised features with a ridge penalty that
is chosen on a held-out fifth of the training images: deterministic, and without a learning rate, a schedule or a batch
norm that could be set wrong (most probe numbers that nobody could reproduce differ in one of these).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.errors import UserError, counted

K, TEMPERATURE = 20, 0.07
PENALTIES = (
    1.0,
    0.1,
    1e-2,
    1e-3,
    1e-4,
)  # strong first; on the mean loss of an image and standardised features
HOLDOUT = 5  # a fifth of the training images chooses the penalty
ITERATIONS, GRADIENT, CHANGE = 100, 1e-4, 1e-6  # of L-BFGS; about 15 suffice in the coordinates used here


def knn_classify(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int,
    k: int = K,
    temperature: float = TEMPERATURE,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted k-NN of test (Q, C) among train (n, C) with labels (n,): neighbours, scores and ranking.

    neighbours: (Q, k) int64, most similar first, ties: lower index. scores: (Q, classes), the sum over a class's
    neighbours of exp(similarity / temperature). ranking: (Q, classes), best first, ties: lower class. k is cut to n.
    `chunk` queries are compared at a time. Features are L2-normalised here.
    """
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    k = min(k, len(train))
    found, scores = [], []
    for queries in test.split(chunk):
        values, places = _nearest(queries @ train.T, k)  # (q, k)
        weights = (values / temperature).exp()
        votes = F.one_hot(labels[places], classes).to(weights.dtype)  # (q, k, classes)
        found.append(places)
        scores.append((weights[..., None] * votes).sum(1))
    total = torch.cat(scores)
    return torch.cat(found), total, total.argsort(dim=1, descending=True, stable=True)


def _nearest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and places of the k largest of each row (q, n), ties to the lower place (topk alone leaves them open)."""
    least = similarity.topk(k, dim=1).values[:, -1:]
    several = int((similarity >= least).sum(1).max())  # k, or more where the k-th value occurs again
    places = similarity.topk(several, dim=1).indices.sort(dim=1).values
    values, order = similarity.gather(1, places).sort(dim=1, descending=True, stable=True)
    return values[:, :k], places.gather(1, order)[:, :k]


def linear_classify(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int,
    seed: int = 0,
    unlabelled: Tensor | None = None,
) -> Tensor:
    """Predicted classes (Q,) of test (Q, C) by logistic regression on train (n, C) with labels (n,) int64.

    Nothing of `test` enters standardisation, penalty or fit. Deterministic for a seed (it picks the held-out fifth).
    unlabelled: (m, C) features to standardise by instead of `train`, where labels are so few that their own deviations
    would blow up channels in which they happen to agree.
    """
    train, test = _standardise(train if unlabelled is None else unlabelled, train, test)
    # Rotation into the principal axes changes neither the penalty nor the optimum, but lets each axis be scaled to its
    # own curvature: 15 iterations instead of several hundred. Behind the n-th axis there is nothing to learn.
    spectrum, axes = torch.linalg.eigh(train.T @ train / len(train))
    axes, spectrum = axes[:, -len(train) :], spectrum[-len(train) :]
    train, test = train @ axes, test @ axes
    held = torch.from_numpy(stratified_folds(labels.cpu().numpy(), HOLDOUT, seed) == 0).to(train.device)
    weights, bias, penalty = _choose(train, labels, held, spectrum, classes)
    weights, bias = _fit(train, labels, spectrum, penalty, weights, bias)
    return (test @ weights + bias).argmax(1)


def _choose(
    x: Tensor, labels: Tensor, held: Tensor, spectrum: Tensor, classes: int
) -> tuple[Tensor, Tensor, float]:
    """The penalty with the smallest loss on the rows `held` (bool), with the weights and bias that gave it."""
    weights, bias = x.new_zeros(x.shape[1], classes), x.new_zeros(classes)
    best = (float("inf"), weights, bias, PENALTIES[0])
    for penalty in PENALTIES:  # each fit starts from the one before
        weights, bias = _fit(x[~held], labels[~held], spectrum, penalty, weights, bias)
        loss = float(F.cross_entropy(x[held] @ weights + bias, labels[held]))
        if loss >= best[0]:  # weaker ones only overfit more, and take longest
            break
        best = (loss, weights, bias, penalty)
    return best[1:]


def _fit(
    x: Tensor, labels: Tensor, spectrum: Tensor, penalty: float, weights: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Minimise mean cross-entropy + penalty / 2 * |weights|^2 from a start: weights (C, classes), bias (classes,).

    x: (n, C) in principal axes with variances `spectrum` (C,), by which the axes are scaled for the solver.
    """
    classes = weights.shape[1]
    scale = (spectrum.clamp_min(0) / classes + penalty).rsqrt()[:, None]  # (C, 1), about 1 / sqrt(curvature)
    scaled = x * scale.T
    shrink = penalty * scale.square()
    slopes = (weights / scale).requires_grad_()
    shift = bias.clone().requires_grad_()
    target = F.one_hot(labels, classes).to(x.dtype)
    solver = torch.optim.LBFGS(
        [slopes, shift],
        max_iter=ITERATIONS,
        tolerance_grad=GRADIENT,
        tolerance_change=CHANGE,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def loss() -> float:
        logs = F.log_softmax(scaled @ slopes + shift, dim=1)  # (n, classes)
        wrong = (logs.exp() - target) / len(x)
        slopes.grad = scaled.T @ wrong + shrink * slopes
        shift.grad = wrong.sum(0)
        return float(-(logs * target).sum() / len(x) + (shrink * slopes.square()).sum() / 2)

    solver.step(loss)
    return slopes.detach() * scale, shift.detach()


def _standardise(reference: Tensor, *features: Tensor) -> list[Tensor]:
    """By the mean and deviation of `reference`, in float64, then float32; channels that are constant there are 0."""
    exact = reference.double()
    std, mean = torch.std_mean(exact, dim=0, correction=0)
    inverse = torch.where(std > 1e-7 * exact.abs().amax(), 1 / std, 0.0)
    return [((x.double() - mean) * inverse).float() for x in features]


def stratified_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(n,) the fold of each image: every class is shuffled by `seed` and dealt out evenly, the folds differ by one.

    A class smaller than `folds` is missing in some folds (the inner split of a small set needs that, which
    scikit-learn's splitter refuses).
    """
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)])
    place = np.empty(len(labels), dtype=np.int64)
    place[order] = np.arange(len(labels)) % folds  # dealt on from class to class
    return place


def check_labels(labels: np.ndarray, folds: int | None, classes: Sequence[str] = ()) -> None:
    """Raise UserError where labels (n,) do not allow a probe with `folds` folds (None: a test split is given)."""
    found, counts = np.unique(labels, return_counts=True)
    if len(found) < 2:
        raise UserError(
            f"A probe needs images of at least two classes; {counted(len(labels), 'image')} of {len(found)} came. "
            "Name a folder with one folder per class, or a table with a label column."
        )
    fewest, place = int(counts.min()), int(found[counts.argmin()])
    if folds is None or fewest >= folds:
        return
    name = repr(classes[place]) if place < len(classes) else f"number {place}"
    advice = f", or use {fewest} folds" if fewest > 1 else ""
    raise UserError(
        f"The class {name} has {counted(fewest, 'image')}, fewer than the {folds} folds of the probe; "
        f"add images to it or leave it out{advice}."
    )
