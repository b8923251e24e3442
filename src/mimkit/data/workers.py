"""One ordered parallel map for everything that reads many images: training, evaluation, checks, statistics, copies.

It stands on torch's DataLoader (shared memory for tensors, order kept, prefetching, dead processes noticed) and adds
what a run needs of it: Ctrl-C and SIGTERM reach the main process alone, which finishes its step and saves; an error
of mimkit's comes back as it was raised, without a worker's traceback around it; a process that dies gives one
sentence; torch's global generator is left alone, so that drop path is the same with and without workers.
"""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mimkit.errors import DataError, MimkitError

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    prefetch: int = 2,
    pin: bool = False,
) -> Generator[Result, None, None]:
    """function(item) for each item, in order, computed in `workers` processes (0: in this one).

    prefetch: items that each worker has in hand. pin: results with a `pin_memory` method are pinned for a GPU.
    `function` must be picklable where processes are spawned. Closing the iterator, or an error, stops the workers.
    Raises what `function` raises, and DataError when a process dies.
    """
    if workers == 0:
        yield from map(function, items)
        return
    results = _start(function, items, workers, prefetch, pin)
    try:
        while True:
            try:
                result = next(results)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker (pid" not in str(error):
                    raise
                raise DataError(_obituary(results)) from error
            if isinstance(result, _Raised):
                raise result.error
            yield result
    finally:
        # Not left to the garbage collector: a traceback may keep the iterator, and so its processes, alive
        results._shutdown_workers()


def available_cores() -> int:
    """Cores that this process may run on (a container or a scheduler often grants fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """`items` cut into pieces of `size`: what is quick to do is handed over in handfuls."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _start(function: Callable, items: Iterable, workers: int, prefetch: int, pin: bool) -> Any:
    loader: DataLoader = DataLoader(
        _Calls(function),
        sampler=items,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=prefetch,
        pin_memory=pin,
        worker_init_fn=_leave_signals_to_main,
        generator=torch.Generator(),
    )
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    # torch would raise from a signal handler, in the middle of whatever the main process does when a worker dies;
    # without it the death is noticed within five seconds by the next call for a result
    before = signal.getsignal(signal.SIGCHLD)
    results = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return results


@dataclass(frozen=True)
class _Raised:
    """An error of mimkit's on its way from a worker."""

    error: MimkitError


class _Calls(Dataset):
    """function(item) as a data set, which is what a DataLoader takes."""

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.function(item)
        except MimkitError as error:
            return _Raised(error)


def _as_it_is(result: Any) -> Any:
    return result


def _leave_signals_to_main(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM go to the whole group of processes: the main one decides when a worker ends.

    A second SIGTERM comes from that main process (or from someone in earnest) and is obeyed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, _leave_at_once))


def _leave_at_once(number: int, frame: Any) -> None:
    os._exit(0)


def _obituary(results: Any) -> str:
    dead = [worker for worker in results._workers if worker.exitcode]
    how = "a loader process ended unexpectedly"
    if dead:
        code = dead[0].exitcode
        why = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        how = f"the loader process {dead[0].pid} {why}"
    return (
        f"While images were being read, {how}; most often memory ran out (SIGKILL) or shared memory did (SIGBUS, "
        "/dev/shm): use fewer processes with data.workers=N, or smaller micro-batches."
    )
