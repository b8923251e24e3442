"""Which images a step sees, and the generator that decides about each: pure functions, no state.

Everything random in the data hangs on (seed, epoch, id, attempt) through the counter of a Philox generator, so order,
crops and masks are the same for any number of loader workers and processes, and a run resumes at any step without
stored generators. An id is an image's place in the frozen index; an epoch is one pass over the images in an order of
its own.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mimkit.errors import UserError

SAMPLE, ORDER, REPLACEMENT = range(3)  # streams that never share a counter


class StepIds(NamedTuple):
    """The images of one optimiser step: `ids`, int64, all of one `epoch`."""

    epoch: int
    ids: np.ndarray


def _generator(seed: int, epoch: int, stream: int, id: int = 0, attempt: int = 0) -> np.random.Generator:
    """Key (seed, epoch), counter (0, attempt, id, stream); draws only move the first word."""
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([0, attempt, id, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def sample_generator(seed: int, epoch: int, id: int, attempt: int = 0) -> np.random.Generator:
    """The generator of a sample's crops, mirroring and masks. attempt: how many draws before were unreadable."""
    return _generator(seed, epoch, SAMPLE, id, attempt)


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which `epoch` (from 0) visits `n` images: a permutation, int64 (n,)."""
    return _generator(seed, epoch, ORDER).permutation(n)


def replacement(seed: int, epoch: int, id: int, attempt: int, n: int) -> int:
    """What stands in for the unreadable image `id`; `attempt` counts from 1 and is raised until one can be read."""
    return int(_generator(seed, epoch, REPLACEMENT, id, attempt).integers(n))


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Whole batches in one pass over `n` images; the incomplete last one is dropped.

    Raises UserError when not one batch can be filled; the message names the override that fits.
    """
    if batch_size > n:
        raise UserError(
            f"A batch of {batch_size} images is larger than the data set of {n}; use train.batch_size={n} or less, "
            "or more images."
        )
    return n // batch_size


def step_ids(seed: int, step: int, n: int, batch_size: int) -> StepIds:
    """The `batch_size` images of optimiser step `step` (from 0), in order."""
    epoch, place = divmod(step, steps_per_epoch(n, batch_size))
    return StepIds(epoch, _cached_order(seed, epoch, n)[place * batch_size : (place + 1) * batch_size])


@lru_cache(maxsize=2)
def _cached_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """A million images take 30 ms to permute: once an epoch, not once a step."""
    order = epoch_order(seed, epoch, n)
    order.setflags(write=False)
    return order
