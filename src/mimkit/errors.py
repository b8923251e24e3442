"""The two kinds of failure that a person can do something about, the nearest known word for a mistyped one, and numbers
of things in words.

A message is one sentence: what, where, what was found, what is allowed, what to do next. The command line prints it
without a traceback and exits with `exit_code`; anything else that is raised is a fault of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class MimkitError(Exception):
    """Base of all errors that mimkit raises on purpose."""

    exit_code = 1


class UserError(MimkitError):
    """A mistake in a command, a recipe or a path."""

    exit_code = 2


class DataError(MimkitError):
    """Data or a checkpoint that cannot be used."""

    exit_code = 3


class Interrupted(MimkitError):
    """The run was asked to stop (Ctrl-C, SIGTERM, SIGUSR2) and has saved its state.

    signals: the numbers of those that came to this process; none where another one was asked.
    """

    exit_code = 130

    def __init__(self, message: str, signals: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.signals = frozenset(signals)


def nearest(word: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the known word closest to `word`, or an empty string when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def counted(number: float, noun: str, form: str = "") -> str:
    """ "1 image", "2 images", "0.5 blocks", "3 classes". form: of the number, as in a format string."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "x", "sh")) else "s"
    return f"{number:{form}} {noun}{ending}"


def none_readable(images: int, name: str) -> str:
    """ "None of the 12 images of photos can be read", without a full stop."""
    if images == 1:
        return f"The only image of {name} cannot be read"
    return f"None of the {images} images of {name} can be read"
