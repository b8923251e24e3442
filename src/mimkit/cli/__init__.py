"""The command line: arguments in, a call of `mimkit.api`, text out. One short file a verb.

This file is the way in and the way out: what is raised becomes one sentence and an exit code (2 a user's mistake,
3 data that cannot be used, 130 an interrupt), and the library's log goes to the terminal. `mimkit --help` and mistakes
in the arguments must stay quick, so nothing here or in the verbs' files imports torch before a verb runs.
"""

import errno
import logging
import os
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType

from mimkit.errors import MimkitError

__all__ = ["main"]

BROKEN_PIPE, INTERRUPTED = 141, 130  # what a shell reports for SIGPIPE and SIGINT
# What the machine refuses is no fault of the program: a full disk, a quota, a folder that may not be written.
_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command (`sys.argv` where none is given) and give its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    _wait_politely()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid text
    with _log_on_terminal(), _ears() as heard:
        return _answer(words, debug, heard)


def _wait_politely() -> None:
    """Keep torch's threads from spinning while they wait for each other; read when torch is loaded, so it comes first.

    GNU's OpenMP spins for milliseconds by default. Where another program wants a core too, the spinning thread holds
    up the one it waits for: a training step then takes five times as long. A choice of the user's own stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _answer(words: list[str], debug: bool, heard: list[int]) -> int:
    """The exit code of one command; what it raises becomes a sentence. heard: see `_ears`."""
    try:
        code = _call(words)
        sys.stdout.flush()
        return code
    except MimkitError as error:
        return _fail(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return _fail("interrupted.", INTERRUPTED, debug)
    except BrokenPipeError:
        # The reader has left (`mimkit recipes show mae_base | head`): nothing more to say, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in _REFUSED:
            return _fault()
        return _fail(f"{error.filename or 'a file'}: {error.strerror}.", 2, debug)
    except Exception:
        return _fail("interrupted.", INTERRUPTED, debug) if heard else _fault()


def _call(words: list[str]) -> int:
    """Hand the words to typer; its own complaints about them are reported here too."""
    import typer

    from mimkit.cli.app import command

    try:
        # Without "standalone mode" errors come back as they are instead of ending the process.
        code = command()(words or ["--help"], prog_name="mimkit", standalone_mode=False)
    except typer.Abort as abort:  # what typer makes of an interrupt or of the end of the input
        raise (abort.__cause__ or KeyboardInterrupt()) from None
    except SystemExit as leave:  # what typer makes of a reader that has left
        raise (leave if leave.__context__ is None else leave.__context__) from None
    except Exception as error:
        # Newer typers bring their own copy of click, so the class of a wrong usage is known by what it can do.
        if not hasattr(error, "format_message"):
            raise
        return _misused(error)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _misused(error: Exception) -> int:
    """Report a wrong verb, option or argument."""
    from mimkit.cli.text import takes_out

    context = getattr(error, "ctx", None)
    path = context.command_path if context else "mimkit"
    sentence = error.format_message()  # type: ignore[attr-defined]
    if context and sentence.startswith("Got unexpected extra argument") and takes_out(context.command):
        sentence += "; what to write is named with --out"
    _say(f"mimkit: {sentence.rstrip('.?')}{'?' if sentence.endswith('?') else '.'}\nSee `{path} --help`.")
    return 2


def _fail(sentence: str, code: int, debug: bool) -> int:
    """Report what a person can do something about, without a traceback unless it was asked for."""
    if debug:
        traceback.print_exc()
    _say(f"mimkit: {sentence}")
    return code


def _say(lines: str) -> None:
    """Print to standard error, of several processes that have the same to say by one alone."""
    if _are_several():
        from mimkit.engine.voices import first_to_say

        if not first_to_say(lines):
            return
    print(lines, file=sys.stderr, flush=True)


def _are_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _fault() -> int:
    """Report an error that nobody foresaw: our fault, so the traceback stays."""
    if _are_several():
        from mimkit.engine.voices import others_have_said_why

        if others_have_said_why():
            return 1
    traceback.print_exc()
    print(
        "mimkit: this is a fault in mimkit, not in what you did; please report it with the lines above.",
        file=sys.stderr,
    )
    return 1


@contextmanager
def _ears() -> Iterator[list[int]]:
    """What came of Ctrl-C while this lasts. Outside the main thread Python lets nobody handle signals, and in the
    background of a script (`nohup mimkit ... &`) Ctrl-C is meant for others: what was started to ignore it goes on.
    """
    heard: list[int] = []
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):
        yield heard
        return

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        if _is_loading(frame):
            _leave_at_once()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)


def _is_loading(frame: FrameType | None) -> bool:
    """Whether libraries are being imported and nothing is open yet: their C code would turn KeyboardInterrupt into
    errors of its own, or lose it.
    """
    lock = sys.modules.get("mimkit.engine.run_lock")
    if lock is not None and lock.is_held():
        return False
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _leave_at_once() -> None:
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"mimkit: interrupted.\n")
    os._exit(INTERRUPTED)


class _Terminal(logging.Handler):
    """Writes to whatever `sys.stderr` is at the time, so that a progress bar can make room for a line. A warning that
    several processes have to say is said by one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._warned: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if record.levelno <= logging.INFO or self._is_first(line):
                print(line, file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)

    def _is_first(self, line: str) -> bool:
        if not _are_several():
            return True
        from mimkit.engine.voices import first_to_warn

        self._warned[line] += 1
        return first_to_warn(line, self._warned[line])


class _Plain(logging.Formatter):
    """The message alone; the level in front where it is more than information."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


@contextmanager
def _log_on_terminal() -> Iterator[None]:
    """While this lasts the library's log goes to the terminal; of several processes only the first tells its story."""
    log, handler = logging.getLogger("mimkit"), _Terminal()
    handler.setFormatter(_Plain())
    level = log.level
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
