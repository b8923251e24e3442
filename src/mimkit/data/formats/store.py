"""Where files lie: on this machine (`Local`) or behind an fsspec address (`Remote`). Sources ask both the same way.

Reads never wait for ever (a named pipe is refused) and hold nothing that pickling or forking could break.
"""

import errno
import functools
import glob
import os
import stat
from collections.abc import Callable
from typing import Any, BinaryIO, Literal, cast

from mimkit.errors import UserError

Kind = Literal["folder", "file", "special"]


class NotRegularError(OSError):
    """A folder, pipe, socket or device where a file is wanted."""


class Local:
    """Files of this machine."""

    def kind(self, path: str) -> Kind | None:
        """What lies at `path`; None for nothing. Raises OSError where it cannot be found out."""
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116 (names may hold any bytes)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL byte
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None
            raise
        return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "special"

    def identity(self, path: str) -> str:
        """A name that only this file has, for what is kept about it."""
        return os.path.realpath(path)

    def join(self, root: str, key: str) -> str:
        return key if key.startswith("/") else f"{root}/{key}"

    def read(self, path: str) -> bytes:
        fd = _open_regular(path)
        try:
            return _read(fd, 0, os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def read_range(self, path: str, stamp: str, start: int, size: int) -> bytes:
        """Bytes out of a shard. The last 32 shards stay open; `stamp` keeps a replaced file from being mistaken."""
        return _read(_held(path, stamp).fd, start, size)

    def open(self, path: str) -> BinaryIO:
        return os.fdopen(_open_regular(path), "rb")

    def size(self, path: str) -> int:
        return os.stat(path).st_size  # noqa: PTH116

    def stamp(self, path: str) -> str:
        """Changes when the file does."""
        found = os.stat(path)  # noqa: PTH116
        return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}"

    def glob(self, pattern: str) -> list[str]:
        return glob.glob(pattern)  # noqa: PTH207


class Remote:
    """Files behind an fsspec address (s3://, gs://, https://, memory://, ...). Made of its address alone."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.path = str(self._open()[1])  # as the file system wants it; a scheme nobody knows shows here

    def _open(self) -> tuple[Any, str]:
        """fsspec keeps one object for each address and process (and makes a new one after a fork)."""
        import fsspec

        try:
            return cast(tuple[Any, str], fsspec.core.url_to_fs(self.address))
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.address} cannot be opened: {error}") from None

    def _filesystem(self) -> Any:
        return self._open()[0]

    def kind(self, path: str) -> Kind | None:
        try:
            return "folder" if self._filesystem().info(path)["type"] == "directory" else "file"
        except FileNotFoundError:
            return None

    def identity(self, path: str) -> str:
        return f"{self.address.partition('://')[0]}://{path.lstrip('/')}"

    def join(self, root: str, key: str) -> str:
        return f"{root.rstrip('/')}/{key}"

    def read(self, path: str) -> bytes:
        return cast(bytes, self._filesystem().cat_file(path))

    def read_range(self, path: str, stamp: str, start: int, size: int) -> bytes:
        return cast(bytes, self._filesystem().cat_file(path, start=start, end=start + size))

    def open(self, path: str) -> BinaryIO:
        return cast(BinaryIO, self._filesystem().open(path, "rb"))

    def size(self, path: str) -> int:
        return int(self._filesystem().size(path))

    def stamp(self, path: str) -> str:
        return str(self._filesystem().ukey(path))

    def glob(self, pattern: str) -> list[str]:
        return [str(path) for path in self._filesystem().glob(pattern)]

    def find(self, root: str, progress: Callable[[int], None] | None = None) -> list[str]:
        """Every file below `root`, as paths relative to it."""
        base = root.rstrip("/") + "/"
        found = [str(path) for path in self._filesystem().find(root)]
        if progress is not None:
            progress(len(found))
        return [path.removeprefix(base) for path in found]


Store = Local | Remote


def exists(store: Store, path: str) -> bool:
    """What cannot be looked at counts as there: reading it will say why."""
    try:
        return store.kind(path) is not None
    except OSError:
        return True


def is_folder(store: Store, path: str) -> bool:
    try:
        return store.kind(path) == "folder"
    except OSError:
        return False


def why_unreadable(error: Exception) -> str:
    """A short reason for a report."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "no permission to read"
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return str(error) or type(error).__name__


def _open_regular(path: str) -> int:
    """Opens without waiting (a pipe without a writer would block for ever) and refuses what is no file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise NotRegularError(0, f"{what}, not a file")
    return fd


def _read(fd: int, start: int, size: int) -> bytes:
    """One call for all but files above 2 GB, of which the kernel gives a part at a time. Short at the end."""
    data = os.pread(fd, size, start)
    if len(data) == size:
        return data
    parts = [data]
    while parts[-1] and size > (have := sum(map(len, parts))):
        parts.append(os.pread(fd, size - have, start + have))
    return b"".join(parts)


class _Held:
    """An open shard; closes with the cache that holds it. `pread` has no position, so forks may share it."""

    def __init__(self, path: str, stamp: str) -> None:
        self.fd = _open_regular(path)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


_held = functools.lru_cache(maxsize=32)(_Held)
