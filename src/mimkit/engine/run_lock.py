"""One process trains a run: a lock of the operating system on a file in its folder.

The kernel lets go of it when the process ends, however it ends, so nobody has to clean up after kill -9. The file says
who holds it, for the sentence that a second process gets, and goes when the run is left in good order. NFS carries the
lock to other machines; a file system without locks is named and the run goes on without.
"""

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mimkit.errors import UserError

try:
    import fcntl
except ImportError:  # a system that has no such locks
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

FILE = ".lock"
GRACE = 5.0  # seconds: a killed process lets go only when the kernel has taken its memory apart
PATIENCE = 180.0  # seconds, for one's own job: a server keeps the locks of a machine that failed for 90 or so
PAUSE = 0.5  # seconds between two attempts
_HELD_ELSEWHERE = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
_held: set[int] = set()


@contextmanager
def hold(run: Path) -> Iterator[None]:
    """While this lasts no other process trains the run in the folder `run`, which exists.

    Waits a moment for a holder that is just ending, and a job that its cluster has put back into the queue longer for
    its former self. Raises UserError with the holder's name where that stays.
    """
    file = _take(run)
    try:
        yield
    finally:
        if file in _held:  # not in a forked child, whose parent it is that holds the lock
            _held.remove(file)
            (run / FILE).unlink(missing_ok=True)
            os.close(file)


def is_held() -> bool:
    """Whether this process holds a run."""
    return bool(_held)


def _take(run: Path) -> int | None:
    """The locked file's descriptor; None where the file system has no locks."""
    began = time.monotonic()
    waits = False
    while True:
        file = _open(run / FILE)
        refusal = _lock(file)
        if refusal is None and _is_there(file, run / FILE):
            _sign(file)
            _held.add(file)
            return file
        os.close(file)
        if refusal is None:
            continue  # its holder has left, and taken the file along, since it was opened
        if refusal.errno not in _HELD_ELSEWHERE:
            (run / FILE).unlink(missing_ok=True)
            log.warning(
                "The file system of %s has no locks (%s): see to it yourself that no second process trains this run.",
                run,
                refusal.strerror,
            )
            return None
        holder = _holder(run / FILE)
        own = _job() is not None and holder.get("job") == _job()
        if time.monotonic() - began >= (PATIENCE if own else GRACE):
            raise UserError(_busy(run, holder))
        if own and not waits:
            log.info("This job waits until its former self, %s, has let go of %s.", _name(holder), run)
        waits = True
        time.sleep(PAUSE)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(
            f"{path} cannot be opened ({error.strerror}); choose another folder with train.run=NAME."
        ) from error


def _lock(file: int) -> OSError | None:
    """Lock it without waiting; what stands against it."""
    if fcntl is None:
        return OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None


def _is_there(file: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _sign(file: int) -> None:
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "job": _job()})
    os.truncate(file, 0)
    os.write(file, text.encode())


def _job() -> str | None:
    return os.environ.get("SLURM_JOB_ID")


def _holder(path: Path) -> dict[str, Any]:
    """What the holder has written down of itself; nothing where it has just come or just left."""
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _name(holder: dict[str, Any]) -> str:
    if "pid" not in holder:
        return "another process"
    host = holder.get("host")
    there = f" on {host}" if host and host != socket.gethostname() else ""
    job = f", SLURM job {holder['job']}" if holder.get("job") else ""
    return f"process {holder['pid']}{there}{job}"


def _busy(run: Path, holder: dict[str, Any]) -> str:
    return (
        f"{run} is being trained by {_name(holder)}; wait until that has ended, or end it, and say the same again, or "
        "choose another folder with train.run=NAME."
    )


def _let_go() -> None:
    """In a forked child (a loader's worker): close what it inherited, else the lock would outlive a killed parent."""
    for file in _held:
        os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
