"""The classifiers of the probe: published protocol, optimum, ties, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mimkit.analysis.classify import check_labels, knn_classify, linear_classify, stratified_folds
from mimkit.errors import UserError

GOLDEN = Path(__file__).parents[3] / "shared" / "reference" / "mae" / "golden"


def blobs(
    n: int, channels: int = 16, classes: int = 4, apart: float = 1.5
) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    centres = apart * rng.standard_normal((classes, channels))
    points = centres[labels] + rng.standard_normal((n, channels))
    return torch.from_numpy(points).float(), torch.from_numpy(labels)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden cases lie beside the checkout")
@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_gives_the_golden_neighbours_scores_and_ranking(k: int) -> None:
    (case,) = (c for c in json.loads((GOLDEN / "cases.json").read_text()) if c["name"] == "knn_probe")
    want = np.load(GOLDEN / "knn_probe.npz")

    def normal(name: str) -> np.ndarray:
        given = case["inputs"][name]
        return np.random.RandomState(given["seed"]).standard_normal(given["shape"])

    centres = normal("centres")
    train_labels, test_labels = np.arange(48) % 6, np.arange(10) % 6
    train = torch.from_numpy(normal("train") + 0.4 * centres[train_labels])
    test = torch.from_numpy(normal("test") + 0.4 * centres[test_labels])
    neighbours, scores, ranking = knn_classify(train, torch.from_numpy(train_labels), test, 6, k, chunk=3)
    np.testing.assert_array_equal(neighbours, want[f"neighbours_{k}"])
    np.testing.assert_array_equal(ranking, want[f"ranking_{k}"])
    largest = np.abs(want[f"scores_{k}"]).max()
    assert np.abs(scores.numpy() - want[f"scores_{k}"]).max() <= 1e-8 * max(1, largest)
    assert want[f"acc_{k}"][0] == (ranking[:, 0].numpy() == test_labels).mean()


def test_equal_neighbours_come_by_lower_index_and_equal_classes_by_lower_class() -> None:
    train = torch.ones(9, 3)
    labels = torch.tensor([2, 1, 0, 2, 1, 0, 0, 0, 0])
    neighbours, scores, ranking = knn_classify(train, labels, torch.ones(2, 3), 3, k=6)
    assert neighbours.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert ranking.tolist() == [[0, 1, 2]] * 2
    assert scores[0, 0] == scores[0, 1] == scores[0, 2]


def test_a_tie_at_the_last_place_keeps_the_nearer_ones() -> None:
    train = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    neighbours, _, _ = knn_classify(train, torch.tensor([0, 0, 1, 0]), torch.tensor([[1.0, 0.1]]), 2, k=2)
    assert neighbours.tolist() == [[2, 0]]


def test_more_neighbours_than_images_means_all_images() -> None:
    x, y = blobs(8)
    assert knn_classify(x, y, x, 4, k=20)[0].shape == (8, 8)


def test_chunks_change_nothing() -> None:
    x, y = blobs(60)
    whole, parts = knn_classify(x, y, x, 4), knn_classify(x, y, x, 4, chunk=7)
    assert torch.equal(whole[0], parts[0]) and torch.equal(whole[2], parts[2])


def test_the_linear_probe_reaches_the_optimum_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    from mimkit.analysis.classify import _fit, _standardise

    x, y = blobs(120, channels=6, apart=0.5)
    scaled = x * torch.tensor([100.0, 10, 1, 1, 0.1, 0.01])
    (x,) = _standardise(scaled, scaled)
    spectrum, axes = torch.linalg.eigh(x.T @ x / len(x))
    weights, bias = _fit(x @ axes, y, spectrum, 0.01, torch.zeros(6, 4), torch.zeros(4))
    other = LogisticRegression(C=1 / (0.01 * 120), tol=1e-8, max_iter=1000).fit(x, y)
    np.testing.assert_allclose((axes @ weights).T, other.coef_, atol=2e-3)
    scores = x @ axes @ weights + bias
    np.testing.assert_allclose(scores.softmax(1), other.predict_proba(x), atol=2e-3)


def test_the_linear_probe_finds_what_separates_and_ignores_dead_channels() -> None:
    x, y = blobs(400)
    x = torch.cat([x, torch.full((400, 3), 5.0)], dim=1)
    guess = linear_classify(x[:300], y[:300], x[300:], 4)
    assert (guess == y[300:]).float().mean() > 0.95


def test_the_linear_probe_works_with_more_channels_than_images_and_two_images_a_class() -> None:
    x, y = blobs(8, channels=50, apart=4)
    assert (linear_classify(x, y, x, 4) == y).float().mean() >= 0.75


def test_the_linear_probe_is_the_same_twice_and_inside_inference_mode() -> None:
    x, y = blobs(200, apart=0.3)
    first = linear_classify(x[:150], y[:150], x[150:], 4)
    with torch.inference_mode():
        second = linear_classify(x[:150], y[:150], x[150:], 4)
    assert torch.equal(first, second)


def test_features_that_say_nothing_score_at_chance() -> None:
    rng = np.random.default_rng(1)
    x, y = torch.from_numpy(rng.standard_normal((800, 32))).float(), torch.from_numpy(rng.integers(0, 4, 800))
    assert abs((linear_classify(x[:600], y[:600], x[600:], 4) == y[600:]).float().mean() - 0.25) < 0.12


def test_folds_hold_equal_shares_of_each_class() -> None:
    labels = np.array([0] * 23 + [1] * 11 + [2] * 7)
    fold = stratified_folds(labels, 5, seed=0)
    for c, count in ((0, 23), (1, 11), (2, 7)):
        sizes = np.bincount(fold[labels == c], minlength=5)
        assert sizes.sum() == count and sizes.max() - sizes.min() <= 1
    assert np.ptp(np.bincount(fold)) <= 1
    assert np.array_equal(fold, stratified_folds(labels, 5, seed=0))
    assert not np.array_equal(fold, stratified_folds(labels, 5, seed=1))


def test_a_class_too_small_for_the_folds_is_named_with_the_number_that_fits() -> None:
    labels = np.array([0] * 9 + [1] * 3)
    with pytest.raises(UserError, match=r"class 'dog' has 3 images, fewer than the 5 folds.*or use 3 folds"):
        check_labels(labels, 5, ["cat", "dog"])
    with pytest.raises(UserError, match=r"class number 1 has 1 image, fewer"):
        check_labels(np.array([0] * 9 + [1]), 5)
    check_labels(labels, 3)
    check_labels(labels, None)


def test_a_single_class_is_no_probe() -> None:
    with pytest.raises(UserError, match="at least two classes"):
        check_labels(np.zeros(10, dtype=int), 5)


def test_two_labels_are_enough_where_the_unlabelled_say_how_features_spread() -> None:
    rng = np.random.default_rng(0)
    scores = {True: [], False: []}
    for _ in range(20):
        truth = rng.integers(0, 2, 400)
        x = torch.from_numpy(
            rng.normal(0, 1, (400, 64)) + 3.0 * (truth[:, None] * (np.arange(64) < 8))
        ).float()
        few = torch.tensor([int(np.flatnonzero(truth == c)[0]) for c in (0, 1)])
        labels = torch.from_numpy(truth)
        for known in scores:
            given = linear_classify(x[few], labels[few], x, 2, unlabelled=x if known else None)
            scores[known].append(float((given == labels).float().mean()))
    assert np.mean(scores[True]) > np.mean(scores[False]) + 0.02
