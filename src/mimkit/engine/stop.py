"""Stopping on request: SIGTERM, SIGUSR2 or Ctrl-C lets the running step finish and be saved; a second Ctrl-C ends it
at once. SIGUSR2 is what batch systems send before a job's time is up (`sbatch --signal=USR2@120`).
"""

import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, *((signal.SIGUSR2,) if hasattr(signal, "SIGUSR2") else ()))
ECHO = 1.0  # seconds: a terminal and torchrun both pass one Ctrl-C on, which is not a second one


class Stop:
    """While entered, `asked()` says whether somebody wants the run to stop.

    Outside the main thread Python lets nobody handle signals; then it is never asked. A Ctrl-C that this process was
    started to ignore, as shells without job control start what runs in the background, stays ignored.
    """

    def __init__(self) -> None:
        self.heard: set[int] = set()
        """The signals that came to this process."""
        self._since: float | None = None
        self._before: dict[signal.Signals, Any] = {}

    def asked(self) -> bool:
        return self._since is not None

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            ignored = {signal.SIGINT} if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else set()
            numbers = [number for number in SIGNALS if number not in ignored]
            self._before = {number: signal.signal(number, self._hear) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        self.heard.add(number)
        if self._since is not None and number == signal.SIGINT and now - self._since > ECHO:
            raise KeyboardInterrupt
        self._since = self._since or now
