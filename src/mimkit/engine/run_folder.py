"""The run folder: who may write into it, and the files of one JSON object a line that grow in it.

recipe.yaml (written by the caller), metrics.jsonl (a row per optimiser step), skipped.jsonl (images that could not be
read), nonfinite.jsonl (a diary, never cut), log.txt, tensorboard/, checkpoints/, nonfinite/. On resume, rows behind
the checkpoint are cut, so that the files read as if the run had never been interrupted. A start that fails before its
first checkpoint leaves no folder behind that it has made itself.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mimkit.engine import checkpoint, run_lock
from mimkit.engine.command import RECIPE, resume_command
from mimkit.errors import UserError

FILE_ONLY = logging.getLogger("mimkit.file")  # for what a terminal with a progress bar need not show
FILE_ONLY.setLevel(logging.INFO)
FILE_ONLY.propagate = False
LOG = "log.txt"
METRICS, SKIPPED, NONFINITE = "metrics.jsonl", "skipped.jsonl", "nonfinite.jsonl"
TENSORBOARD = "tensorboard"


@contextmanager
def occupied(run: Path, resume: bool, made: Sequence[Path] = ()) -> Iterator[None]:
    """While this lasts the folder `run` is claimed and locked, and what mimkit logs goes into it.

    made: `missing(run)` before anything was done. Where an error comes before the first checkpoint, those of them
    that hold nothing else are taken away again. Raises UserError as `claim` and `run_lock.hold` do.
    """
    claim(run, resume)
    idle = False
    try:
        with run_lock.hold(run):
            try:
                with log_file(run):
                    yield
            except BaseException:
                idle = run in made and not checkpoint.saved(run)
                if idle:
                    _clear(run)
                raise
    finally:
        if idle:
            _remove_empty(made)


def missing(run: Path) -> list[Path]:
    """`run` and the folders above it, deepest first, that are not there."""
    return [folder for folder in (run, *run.parents) if not folder.exists()]


def claim(run: Path, resume: bool) -> Path:
    """Make the run folder, or make sure that there is a run in it to resume.

    A run that was killed before its first checkpoint left a recipe; it is resumed from the beginning, and may as well
    be started anew. Raises UserError when the folder holds a run and `resume` is off, when it holds none and `resume`
    is on, and when it cannot be made or written.
    """
    begun = bool(checkpoint.saved(run))
    if begun and not resume:
        raise UserError(already_there(run))
    if resume and not begun and not (run / RECIPE).exists():
        raise UserError(f"{run} holds no run that could be resumed; start one there without --resume.")
    try:
        run.mkdir(parents=True, exist_ok=True)
        writable = os.access(run, os.W_OK | os.X_OK)
    except OSError as error:
        raise UserError(
            f"The run folder {run} cannot be made ({error.strerror}); choose another with train.run=NAME."
        ) from error
    if not writable:
        raise UserError(f"The run folder {run} cannot be written; choose another with train.run=NAME.")
    return run


def take_back(run: Path, made: Sequence[Path]) -> None:
    """Undo a start that came to nothing before anybody trained: see `occupied`."""
    if run in made:
        _clear(run)
        _remove_empty(made)


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # something else is in it
            folder.rmdir()


def _clear(run: Path) -> None:
    """Take away what a start writes before its first checkpoint."""
    for name in (LOG, RECIPE, METRICS, SKIPPED, NONFINITE):
        (run / name).unlink(missing_ok=True)
    for name in (TENSORBOARD, checkpoint.FOLDER):
        shutil.rmtree(run / name, ignore_errors=True)


def already_there(run: Path) -> str:
    """The sentence for a folder that holds a run."""
    return (
        f"{run} already holds a run; continue it with `{resume_command(run)}`, or choose another folder with "
        "train.run=NAME."
    )


class JsonLines:
    """A file of one JSON object a line, each written through to the operating system at once: kill -9 loses none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; numbers that are not finite become null, which every JSON reader understands.

        Raises UserError when the disk is full.
        """
        data = (json.dumps({key: _plain(value) for key, value in row.items()}) + "\n").encode()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise UserError(
                f"{self.path} could not be written: {error.strerror or error}; the checkpoints are untouched. "
                f"Make room, then continue with `{resume_command(self.path.parent)}`."
            ) from error

    def sync(self) -> None:
        """Wait until the rows are on the disk."""
        os.fsync(self._file.fileno())

    def cut(self, step: int) -> None:
        """Drop the rows of steps after `step`, and torn lines; the file is replaced as a whole."""
        kept = [line for line in self.path.read_bytes().splitlines(keepends=True) if _belongs(line, step)]
        temporary = self.path.with_name(f".{self.path.name}")
        with temporary.open("wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        self._file.close()
        temporary.replace(self.path)
        self._file = self.path.open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; a torn last line is left out."""
    if not path.exists():
        return []
    return [row for line in path.read_bytes().splitlines(keepends=True) if (row := _parse(line)) is not None]


@contextmanager
def log_file(run: Path) -> Iterator[None]:
    """While this lasts, what mimkit logs goes to run/log.txt too, with the time of day.

    May be entered again inside: the lines stay single.
    """
    logger = logging.getLogger("mimkit")
    path = str((run / LOG).resolve())
    if any(getattr(handler, "baseFilename", None) == path for handler in logger.handlers):
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logger.level
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    for one in (logger, FILE_ONLY):
        one.addHandler(handler)
    try:
        yield
    finally:
        for one in (logger, FILE_ONLY):
            one.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    """A whole row, or None for a torn one: a line without its end, or one that is no JSON object."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _belongs(line: bytes, step: int) -> bool:
    row = _parse(line)
    return row is not None and row.get("step", math.inf) <= step


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
