"""Small files that verbs write where the user says, whole or not at all."""

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mimkit.errors import UserError


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON; numbers that are not finite become null, as JSON has no word for them.

    Raises UserError when that cannot be.
    """
    with writing(path) as file:
        json.dump(_plain(content), file, indent=1)


def _plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """A text file that gets its name when all is written; its folder is made. Raises UserError when that cannot be."""
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape") as file,
    ):
        yield file
        file.flush()
        os.fsync(
            file.fileno()
        )  # renamed before it is on the disk, a power cut could leave the name of an empty file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to that becomes `path` when nothing went wrong, and is removed when something did."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "make room" if full else "choose another place"
        raise UserError(f"{path} cannot be written ({error.strerror}); {advice}.") from error
    finally:
        temporary.unlink(missing_ok=True)
