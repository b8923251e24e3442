"""Keep a verb that runs other verbs from repeating what they say: their progress goes to their own logs alone."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Only(logging.Filter):
    """Lets through what `name` says, and each warning of others once."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name, self._warned = name, set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == self._name:
            return True
        text = record.getMessage()
        if record.levelno < logging.WARNING or text in self._warned:
            return False
        self._warned.add(text)
        return True


@contextmanager
def only_from(name: str) -> Iterator[None]:
    """While this lasts, handlers of mimkit's log that do not write to files hear the logger `name` and warnings."""
    hearing = [h for h in logging.getLogger("mimkit").handlers if not isinstance(h, logging.FileHandler)]
    quiet = _Only(name)
    for handler in hearing:
        handler.addFilter(quiet)
    try:
        yield
    finally:
        for handler in hearing:
            handler.removeFilter(quiet)
