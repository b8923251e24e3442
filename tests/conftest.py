"""One thread for every test and for the processes it starts, Ctrl-C for all of them, and how many tests run at once.

Small tensors gain nothing from a second thread, and two of them beside loader workers on two cores wait for each other
(libgomp waits busily): the suite would take many times as long. It must stand before torch is imported.

A shell without job control lets its background jobs ignore Ctrl-C, and so would the processes that tests stop with it.
"""

import os
import signal
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GIB_EACH = 4  # what a worker and the processes that its tests start take at the most, and some room
MOST = 8  # the longest tests end no sooner with more


@pytest.hookimpl(optionalhook=True)  # pytest without xdist runs in one process
def pytest_xdist_auto_num_workers() -> int:
    """The workers of `-n auto`, as `make test` says: one a core, fewer where memory is short."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(cores, int(gib / GIB_EACH), MOST))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that tests start, so that losses agree to the bit, whatever a test before has set."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
