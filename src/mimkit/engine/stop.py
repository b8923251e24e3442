"""Stopping on request: SIGTERM or Ctrl-C lets the running step finish and be saved; a second Ctrl-C ends it at once."""

import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO = 1.0  # seconds: a terminal and torchrun both pass one Ctrl-C on, which is not a second one


class Stop:
    """While entered, `asked()` says whether somebody wants the run to stop.

    Outside the main thread Python lets nobody handle signals; then it is never asked.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._before: dict[signal.Signals, Any] = {}

    def asked(self) -> bool:
        return self._since is not None

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._since is not None and number == signal.SIGINT and now - self._since > ECHO:
            raise KeyboardInterrupt
        self._since = self._since or now
