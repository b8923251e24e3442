"""One file a sample: what folders, globs, lists and tables all come down to."""

import os

import numpy as np

from mimkit.data.formats.store import Local, Store, exists, why_unreadable
from mimkit.data.header import DecodeError
from mimkit.data.index import Ignored, Keys
from mimkit.errors import DataError, counted

PROBED = 100  # so many files of a list are looked for before a run begins


class FileSource:
    """Encoded images in files; keys are paths relative to `root`, or absolute where a list says so."""

    def __init__(
        self,
        name: str,
        kind: str,
        store: Store,
        root: str,
        keys: Keys,
        ignored: tuple[Ignored, ...] = (),
        classes: tuple[str, ...] = (),
        labels: np.ndarray | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.classes = classes
        self.ignored = ignored
        self._store = store
        self._root = root
        self._keys = keys
        self._labels = labels  # (n,) int32, places in `classes`

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, i: int) -> str:
        return self._keys[i]

    def read(self, i: int) -> bytes:
        key = self._keys[i]
        try:
            return self._store.read(self._store.join(self._root, key))
        except OSError as error:
            raise DecodeError(key, why_unreadable(error)) from error
        except Exception as error:
            if isinstance(self._store, Local):
                raise
            raise DecodeError(key, f"could not be fetched ({why_unreadable(error)})") from error

    def label(self, i: int) -> int | None:
        return None if self._labels is None else int(self._labels[i])

    def digest(self) -> str:
        return self._keys.digest(self.classes, self._labels)


def open_named(
    name: str,
    kind: str,
    store: Store,
    root: str,
    paths: list[bytes],
    classes: tuple[str, ...] = (),
    labels: np.ndarray | None = None,
) -> FileSource:
    """The files that a list or table names, in its order, whatever their extensions.

    Raises DataError where of up to 100 of them, evenly spread, none is there.
    """
    for path in paths[:: max(1, len(paths) // PROBED)]:
        if exists(store, store.join(root, os.fsdecode(path))):
            break
    else:
        first = os.fsdecode(paths[0])
        raise DataError(
            f"{name} names {counted(len(paths), 'file')} but none that was looked for is there, "
            f"for example {first!r}; relative paths begin at the folder of the list, {root}"
        )
    return FileSource(name, kind, store, root, Keys.pack(paths), (), classes, labels)
