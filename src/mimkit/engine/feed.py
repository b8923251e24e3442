"""The stream of micro-batches from a given step on, and how long the loop waited for each."""

import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from mimkit.engine.trainable import BatchLike

B = TypeVar("B", bound=BatchLike)


class Feed(Generic[B]):
    """What `batches(start_step)` yields. Opened again at another step when the run goes back."""

    def __init__(self, batches: Callable[[int], Iterator[B]], start_step: int) -> None:
        self._open = batches
        self._stream = batches(start_step)

    def next(self) -> tuple[B, float]:
        """The next micro-batch and the seconds that it was waited for."""
        began = time.perf_counter()
        batch = next(self._stream, None)
        if batch is None:
            raise RuntimeError(
                "The loader ended before the schedule; it must give accumulate micro-batches a step."
            )
        return batch, time.perf_counter() - began

    def restart(self, start_step: int) -> None:
        self.close()
        self._stream = self._open(start_step)

    def close(self) -> None:
        """Let the loader end its workers, where it is a generator that does so when closed."""
        close = getattr(self._stream, "close", None)
        if close is not None:
            close()
