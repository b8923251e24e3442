"""Mean and deviation of each channel, and how many channels and bits the images have.

What normalises a batch (`normalise.py`) and what fills `data.channels` when a recipe leaves it open. Sums run in
float64 over whole pictures; each picture counts the same, whatever its size, as each gives crops of the same size.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from mimkit.data.decode import DecodeError, decode
from mimkit.data.header import read_header
from mimkit.data.sampling import epoch_order
from mimkit.data.sources import Source
from mimkit.data.workers import chunks, ordered_map
from mimkit.errors import DataError, none_readable

ENOUGH = (256, 256)  # pictures are decoded no smaller than this: crops are not seen larger either
FULL_SCALE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 1.0}
BITS = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 16, np.dtype(np.float32): 32}
LOOKED_AT = 16  # pictures whose depth is looked at before anything starts


@dataclass(frozen=True)
class Stats:
    """mean, std: per channel, in 0..1 (float images: in their own units). images: how many were measured.

    channels: as most images have (or as asked for). bits: of the deepest image; 32 for float. unreadable: how many
    were met. other: those of another count of channels, which are left out.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int
    channels: int
    bits: int
    unreadable: int = 0
    other: int = 0


@dataclass(frozen=True)
class Moments:
    """Mean and mean square of each channel of one picture, float64 (C,)."""

    mean: np.ndarray
    square: np.ndarray
    bits: int


def deepest(source: Source) -> tuple[int, str]:
    """(bits per channel, key) of the deepest of a few pictures of `source`: 8, 16, or 32 for floats.

    Headers alone are read, of LOOKED_AT pictures spread over the whole; those that cannot be read are passed over.
    """
    found = [(8, source.key(0))]
    for place in sorted(set(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int).tolist())):
        key = source.key(place)
        try:
            found.append((_depth(source.read(place), key), key))
        except DecodeError:
            continue
    return max(found, key=lambda one: one[0])


def _depth(data: bytes | np.ndarray, key: str) -> int:
    if isinstance(data, np.ndarray):
        return BITS.get(data.dtype, 32)
    bits = read_header(data, key).bits
    return 8 if bits <= 8 else 16 if bits <= 16 else 32


def channel_stats(
    source: Source,
    channels: int | None = None,
    limit: int | None = 2000,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Stats:
    """Statistics of `source`, or of `limit` of its images drawn evenly, the same ones every time.

    channels: how images are to be decoded; None: the count that most have, where grey joins RGB as three equal
    channels and what differs otherwise is left out. jobs: processes. progress: called with images done and images in
    all. Raises DataError when no image can be read.
    """
    n = len(source)
    chosen = np.arange(n) if limit is None or n <= limit else np.sort(epoch_order(0, 0, n)[:limit])
    found: list[Moments] = []
    reasons: list[str] = []
    for moments in _measure_all(source, channels, chosen, jobs, progress):
        (reasons if isinstance(moments, str) else found).append(moments)  # type: ignore[arg-type]
    if not found:
        raise DataError(f"{none_readable(len(chosen), source.name)}: {reasons[0]}.")
    count = channels or Counter(len(one.mean) for one in found).most_common(1)[0][0]
    used = [one for one in found if len(one.mean) == count or (len(one.mean) == 1 and count == 3)]
    mean = np.mean([np.broadcast_to(one.mean, count) for one in used], axis=0)
    square = np.mean([np.broadcast_to(one.square, count) for one in used], axis=0)
    return Stats(
        tuple(mean.tolist()),
        tuple(_deviation(mean, square).tolist()),
        len(used),
        count,
        max(one.bits for one in used),
        len(reasons),
        len(found) - len(used),
    )


def _measure_all(
    source: Source,
    channels: int | None,
    ids: np.ndarray,
    jobs: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Moments | str]:
    done = 0
    measure = partial(_measure, source, channels)
    for part in ordered_map(measure, chunks(ids.tolist(), 8), jobs if jobs > 1 else 0):
        yield from part
        done += len(part)
        if progress is not None:
            progress(done, len(ids))


def _measure(source: Source, channels: int | None, ids: list[int]) -> list[Moments | str]:
    """The moments of each image, or why it cannot be read."""
    results: list[Moments | str] = []
    for id in ids:
        try:
            results.append(moments(decode(source.read(id), source.key(id), channels, min_size=ENOUGH)))
        except DecodeError as error:
            results.append(str(error))
    return results


def moments(image: np.ndarray) -> Moments:
    """Of one picture (H, W, C) of uint8, uint16 or float32, brought to 0..1."""
    # (C, H * W): sums along whole rows take a ninth of the time of sums down interleaved columns
    values = np.ascontiguousarray(image.reshape(-1, image.shape[2]).T).astype(np.float64)
    values /= FULL_SCALE[image.dtype]
    square = np.einsum("cn,cn->c", values, values) / values.shape[1]
    return Moments(values.mean(axis=1), square, BITS[image.dtype])


def _deviation(mean: np.ndarray, square: np.ndarray) -> np.ndarray:
    """A channel that never varies gets 1: dividing by its deviation would make NaN of it."""
    std = np.sqrt(np.maximum(square - mean * mean, 0))
    return np.where(std < 1e-6, 1.0, std)
