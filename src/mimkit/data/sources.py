"""Where images come from. `open_source` looks at what a path is and gives a Source: numbered samples with names.

A Source never decodes: `read` hands out encoded bytes (or the array itself, for .npy stacks), `decode.decode` makes
pixels of either. Sources are frozen, picklable (loader workers) and open their files lazily in each process.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from mimkit.data.header import DecodeError
from mimkit.data.index import Ignored, Keys
from mimkit.errors import DataError, UserError

__all__ = ["IMAGE_EXTENSIONS", "Ignored", "Source", "open_source"]

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")


@runtime_checkable
class Source(Protocol):
    """Numbered samples. Everything random hangs on a sample's number, so a Source never changes once opened."""

    name: str  # what the user gave
    kind: str  # folder | glob | list | tar | table | arrays
    classes: tuple[str, ...]  # () when there are no labels
    ignored: tuple[Ignored, ...]  # what a scan left out, with reasons

    def __len__(self) -> int: ...

    def key(self, i: int) -> str:
        """The sample's name in reports: path relative to the root, member of the shard, row of the stack."""
        ...

    def read(self, i: int) -> bytes | np.ndarray:
        """Encoded bytes, or the array itself (H, W, C). Raises DecodeError (missing, no permission, not a file)."""
        ...

    def label(self, i: int) -> int | None:
        """The place of the sample's class in `classes`; None when there are no labels."""
        ...

    def digest(self) -> str:
        """Hash of the keys, their order and labels: equal digests mean equal ids."""
        ...


def open_source(
    path: str | Path, labels: bool = False, progress: Callable[[int], None] | None = None
) -> Source:
    """The images at `path`."""
    root = Path(path)
    if not root.exists():
        raise UserError(f"{path} does not exist: give a folder of images")
    names = []
    for folder, folders, files in os.walk(os.fsencode(root)):
        folders[:] = sorted(f for f in folders if not f.startswith(b"."))
        for f in sorted(files):
            if not f.startswith(b".") and os.fsdecode(f).lower().endswith(IMAGE_EXTENSIONS):
                names.append(os.path.relpath(os.path.join(folder, f), os.fsencode(root)))
    if not names:
        raise DataError(f"{path} holds no images")
    classes: tuple[str, ...] = ()
    label: np.ndarray | None = None
    if labels:
        names = [n for n in names if b"/" in n]
        classes = tuple(sorted({os.fsdecode(n.split(b"/")[0]) for n in names}))
        label = np.array([classes.index(os.fsdecode(n.split(b"/")[0])) for n in names], np.int32)
    return FileSource(str(path), "folder", str(root), Keys.pack(names), classes, label, ())


class FileSource:
    def __init__(self, name, kind, root, keys, classes, labels, ignored):  # type: ignore
        self.name, self.kind, self.root, self.keys = name, kind, root, keys
        self.classes, self.labels, self.ignored = classes, labels, ignored

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, i: int) -> str:
        return self.keys[i]

    def read(self, i: int) -> bytes:
        try:
            return (Path(self.root) / self.keys[i]).read_bytes()
        except OSError as error:
            raise DecodeError(self.keys[i], str(error.strerror)) from error

    def label(self, i: int) -> int | None:
        return None if self.labels is None else int(self.labels[i])

    def digest(self) -> str:
        return self.keys.digest()
