"""Sampling is a pure function of (seed, epoch, id, attempt): nothing is stored, nothing depends on who asks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimkit.data.sampling import (
    epoch_order,
    replacement,
    sample_generator,
    step_ids,
    steps_per_epoch,
)
from mimkit.errors import UserError


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own():
    orders = [epoch_order(7, epoch, 100) for epoch in range(3)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])
    assert not np.array_equal(orders[0], epoch_order(8, 0, 100))
    assert np.array_equal(orders[0], epoch_order(7, 0, 100))


def test_the_draws_of_a_sample_depend_on_seed_epoch_id_and_attempt_and_on_nothing_else():
    first = sample_generator(1, 2, 3, 0).random(4)
    assert np.array_equal(first, sample_generator(1, 2, 3, 0).random(4))
    others = [(0, 2, 3, 0), (1, 0, 3, 0), (1, 2, 0, 0), (1, 2, 3, 1), (2, 1, 3, 0), (1, 3, 2, 0)]
    assert all(not np.array_equal(first, sample_generator(*other).random(4)) for other in others)


def test_the_numbers_themselves_are_fixed_so_that_a_run_resumes_under_another_version():
    assert sample_generator(0, 0, 0).random(2).tolist() == [0.011546754286331562, 0.24154919656271812]
    assert epoch_order(0, 0, 10).tolist() == [3, 2, 9, 7, 1, 5, 0, 4, 8, 6]


@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_steps_walk_through_the_epoch_and_drop_its_incomplete_last_batch(batch, n, seed):
    if batch > n:
        with pytest.raises(UserError):
            steps_per_epoch(n, batch)
        return
    per_epoch = steps_per_epoch(n, batch)
    steps = [step_ids(seed, step, n, batch) for step in range(2 * per_epoch)]
    assert [step.epoch for step in steps] == [0] * per_epoch + [1] * per_epoch
    for epoch in (0, 1):
        seen = np.concatenate([step.ids for step in steps if step.epoch == epoch])
        assert np.array_equal(seen, epoch_order(seed, epoch, n)[: per_epoch * batch])


def test_a_batch_larger_than_the_data_names_the_override_that_fits():
    with pytest.raises(
        UserError, match=r"batch of 256 images is larger than the data set of 100; use train.batch_size=100"
    ):
        steps_per_epoch(100, 256)


def test_replacements_differ_by_attempt_and_spread_over_the_images():
    drawn = [replacement(0, 0, 5, attempt, 1000) for attempt in range(1, 200)]
    assert len(set(drawn)) > 150 and min(drawn) < 100 and max(drawn) > 900
    assert drawn == [replacement(0, 0, 5, attempt, 1000) for attempt in range(1, 200)]
    assert replacement(0, 0, 0, 1, 1) == 0
