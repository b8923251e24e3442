"""Class labels: counted, weighed, split evenly, and matched with the classes of a checkpoint."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from data_samples import fill

from mimkit.data.classes import (
    balancing_weights,
    counts_of,
    labels_of,
    part_of,
    renumbered,
    share_of,
    shots_of,
    unequal,
)
from mimkit.data.sources import Source, open_source
from mimkit.errors import DataError, UserError

LABELS = np.repeat([0, 1, 2], [100, 50, 7])


@pytest.fixture
def source(tmp_path: Path) -> Source:
    names = [f"{label}/{i}.jpg" for label, n in (("bird", 3), ("cat", 2), ("dog", 1)) for i in range(n)]
    return open_source(fill(tmp_path, *names), labels=True)


def test_labels_and_counts(source: Source) -> None:
    assert labels_of(source).tolist() == [0, 0, 0, 1, 1, 2]
    assert counts_of(source).tolist() == [3, 2, 1]


def test_a_source_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no labels"):
        labels_of(open_source(fill(tmp_path, "1.jpg")))


def test_a_part_is_numbered_anew_and_keeps_names_labels_and_bytes(source: Source) -> None:
    part = part_of(source, [5, 1])
    assert [part.key(i) for i in range(len(part))] == ["dog/0.jpg", "bird/1.jpg"]
    assert labels_of(part).tolist() == [2, 0] and part.classes == source.classes
    assert part.read(0) == source.read(5)


def test_a_part_of_images_that_are_not_there_is_refused(source: Source) -> None:
    with pytest.raises(IndexError):
        part_of(source, [6])


def test_views_of_a_source_go_to_workers_and_have_digests_of_their_own(source: Source) -> None:
    views = [part_of(source, ids) for ids in ([0, 1], [1, 0], [0, 1, 2])] + [
        renumbered(source, ["dog", "cat", "bird"])
    ]
    assert len({view.digest() for view in views} | {source.digest()}) == 5
    for view in views:
        again = pickle.loads(pickle.dumps(view))
        assert again.digest() == view.digest() and labels_of(again).tolist() == labels_of(view).tolist()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_a_share_takes_as_much_of_each_class_and_at_least_one(share: float) -> None:
    counts = np.bincount(LABELS[share_of(LABELS, share, seed=3)])
    assert counts.tolist() == [max(1, round(share * n)) for n in (100, 50, 7)]


def test_smaller_shares_lie_in_larger_ones_and_seeds_differ() -> None:
    small, large = (set(share_of(LABELS, share, seed=1).tolist()) for share in (0.1, 0.4))
    assert small < large
    assert small != set(share_of(LABELS, 0.1, seed=2).tolist())


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="above 0 and up to 1"):
        share_of(LABELS, share, 0)


def test_shots_are_equal_for_all_classes_and_refused_where_a_class_has_fewer() -> None:
    assert np.bincount(LABELS[shots_of(LABELS, 7, 0, "abc")]).tolist() == [7, 7, 7]
    with pytest.raises(DataError, match=r"class 'c' has 7 images to train on, fewer than the 8.*data\.shots"):
        shots_of(LABELS, 8, 0, "abc")
    with pytest.raises(UserError, match="at least 1"):
        shots_of(LABELS, 0, 0, "abc")


def test_the_classes_of_a_checkpoint_number_the_images_whatever_their_order(source: Source) -> None:
    seen = renumbered(source, ["dog", "ant", "cat", "bird"])
    assert labels_of(seen).tolist() == [3, 3, 3, 2, 2, 0]
    assert seen.classes == ("dog", "ant", "cat", "bird") and len(seen) == 6


def test_equal_classes_need_no_view(source: Source) -> None:
    assert renumbered(source, ["bird", "cat", "dog"]) is source


def test_classes_that_the_model_does_not_know_are_named(source: Source) -> None:
    with pytest.raises(UserError, match=r"has 2 of 3 classes that the model does not know \('bird', 'dog'\)"):
        renumbered(source, ["cat", "horse"])


def test_a_mistyped_class_is_met_with_the_nearest_name(source: Source) -> None:
    with pytest.raises(UserError, match="Did you mean 'birds'"):
        renumbered(source, ["birds", "cat", "dog"])


def test_very_unequal_classes_are_said_with_counts() -> None:
    said = unequal(np.array([1000, 30, 50]), ["a", "b", "c"])
    assert said is not None and "'a', has 1000" in said and "'b' 30" in said
    assert unequal(np.array([100, 30, 50]), ["a", "b", "c"]) is None


def test_a_class_of_one_image_is_said() -> None:
    said = unequal(np.array([8, 1]), ["a", "b"])
    assert said is not None and said.endswith(": 'a' has 8 images, 'b' 1")


def test_balancing_weights_make_classes_count_alike_and_images_count_one_on_average() -> None:
    counts = np.array([100, 50, 0, 7])
    weights = balancing_weights(counts)
    assert weights[2] == 0
    np.testing.assert_allclose((weights * counts)[[0, 1, 3]], counts.sum() / 3)
    np.testing.assert_allclose((weights * counts).sum() / counts.sum(), 1)
