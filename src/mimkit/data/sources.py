"""Where images come from. `open_source` looks at what a path is and gives a Source: numbered samples with names.

A Source never decodes: `read` hands out encoded bytes (or the array itself, for .npy stacks), `decode.decode` makes
pixels of either. Sources are frozen, picklable (loader workers) and open their files lazily in each process.
"""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from mimkit.data.formats.arrays import ArraySource
from mimkit.data.formats.files import FileSource
from mimkit.data.formats.folder import no_images, open_folder, scan_local, scan_remote
from mimkit.data.formats.listing import open_table, open_text
from mimkit.data.formats.pattern import fixed_part, is_pattern, match
from mimkit.data.formats.store import Local, Remote, Store, is_folder, why_unreadable
from mimkit.data.formats.tar import TarSource
from mimkit.data.index import (
    IMAGE_EXTENSIONS,
    IMAGE_SUFFIXES,
    Ignored,
    Keys,
    LeftOut,
    left_out_words,
    suffix_of,
    why_not,
)
from mimkit.errors import DataError, UserError, counted, nearest

__all__ = ["IMAGE_EXTENSIONS", "Ignored", "Source", "open_source"]
log = logging.getLogger(__name__)

SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*(://|::.*://)")
ALLOWED = (
    "a folder of images, a glob pattern, a list (.txt), a table (.csv, .tsv, .parquet), tar shards (.tar), "
    "a stack (.npy, .npz) or an address that fsspec knows (s3://...)"
)
TEXTS, TABLES, STACKS = (".txt", ".lst"), (".csv", ".tsv", ".parquet"), (".npy", ".npz")
PACKED = (".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar", ".gz")


@runtime_checkable
class Source(Protocol):
    """Numbered samples. Everything random hangs on a sample's number, so a Source never changes once opened."""

    name: str  # what the user gave
    kind: str  # image | folder | glob | list | tar | table | arrays
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
    """The images at `path`, by what it is: a folder (nested or flat), a glob or brace pattern, a text list, a table
    of paths, tar shards (one, a pattern, a folder of them), a NumPy stack, an image; here or at an fsspec address.

    labels: also read classes: the folders right below a folder, a table's label column, the `.cls` members of
    shards, the labels of an .npz. progress: called with the number of images found so far, while a scan runs.
    Raises UserError for a path that does not exist, cannot be read or is nothing of these, and for labels where
    there are none; DataError for a place without images, a class without images, a damaged list or shard.
    """
    name = os.fspath(path)
    if not name:
        raise UserError(f"the path of the images is empty: give {ALLOWED}.")
    store, place = _locate(name)
    try:
        source = _open(name, store, place, labels, progress)
    except (UserError, DataError):
        raise
    except Exception as error:  # an object store's client may raise anything
        if isinstance(store, Local) and not isinstance(error, OSError):
            raise
        raise UserError(f"{name} cannot be read: {why_unreadable(error)}") from error
    left = f"; left out: {left_out_words(source.ignored)}" if source.ignored else ""
    log.log(
        logging.INFO if left else logging.DEBUG,
        "%s: %s (%s)%s",
        name,
        counted(len(source), "image"),
        source.kind,
        left,
    )
    return source


def _locate(name: str) -> tuple[Store, str]:
    """The store and the path in it. `%20` and the like are letters of a name, also behind file://."""
    if not SCHEME.match(name):
        return Local(), os.path.expanduser(name).rstrip("/") or "/"  # noqa: PTH111 (Path would drop the ./ of a list)
    scheme, _, rest = name.partition("://")
    if scheme in ("file", "local"):
        return Local(), rest.rstrip("/") or "/"
    store = Remote(name)
    return store, store.path


def _open(name: str, store: Store, path: str, labels: bool, progress: Callable[[int], None] | None) -> Source:
    kind = store.kind(path)
    if kind is None and is_pattern(path):
        return _open_pattern(name, store, path, labels, progress)
    if kind is None:
        raise UserError(f"{name} does not exist.{_near(store, path)} Give {ALLOWED}.")
    if kind == "folder":
        return _open_folder(name, store, path, labels, progress)
    if kind == "special":
        raise UserError(f"{name} is a pipe, socket or device: give {ALLOWED}.")
    return _open_file(name, store, path, labels, progress)


def _open_folder(
    name: str, store: Store, path: str, labels: bool, progress: Callable[[int], None] | None
) -> Source:
    scan = scan_local(path, progress) if isinstance(store, Local) else scan_remote(store, path, progress)
    if scan.images or not scan.shards:
        return open_folder(name, store, path, scan, labels)
    shards = [store.join(path, os.fsdecode(shard)) for shard in scan.shards]
    return TarSource(name, store, shards, path, labels, progress, scan.left_out.all())


def _open_file(
    name: str, store: Store, path: str, labels: bool, progress: Callable[[int], None] | None
) -> Source:
    lower = path.lower()
    root, _, base = path.rpartition("/")
    root = root or ("/" if path.startswith("/") else ".")
    if lower.endswith(".tar"):
        return TarSource(name, store, [path], root if "/" in path else "", labels, progress)
    if lower.endswith(TABLES):
        return open_table(name, store, path, root, labels)
    if lower.endswith(STACKS):
        return ArraySource(name, store, path, labels)
    if labels and lower.endswith((*TEXTS, *IMAGE_EXTENSIONS)):
        raise UserError(
            f"{name} holds no labels: give class folders, or a table (.csv, .parquet) with a label column"
        )
    if lower.endswith(TEXTS):
        return open_text(name, store, path, root)
    if lower.endswith(IMAGE_EXTENSIONS):
        return FileSource(name, "image", store, root, Keys.pack([os.fsencode(base)]))
    if lower.endswith(PACKED):
        raise UserError(f"{name} is packed: unpack it to a folder or to plain .tar shards")
    raise UserError(f"{name} is a file that cannot be taken for images: give {ALLOWED}.")


def _open_pattern(
    name: str, store: Store, pattern: str, labels: bool, progress: Callable[[int], None] | None
) -> Source:
    paths = match(store, pattern)
    if not paths:
        raise UserError(
            f"{name} matches nothing; check the folder and the ending, and put a pattern in quotes"
        )
    root = fixed_part(pattern)
    shards = [path for path in paths if path.lower().endswith(".tar")]
    if len(shards) == len(paths):
        return TarSource(name, store, paths, root, labels, progress)
    if labels:
        raise UserError(
            f"{name} is a pattern, which gives no labels: name the folder of class folders, or a table"
        )
    left_out, keys = LeftOut(), []
    for path in paths:
        key = os.fsencode(path.removeprefix(root).lstrip("/") if root else path)
        if suffix_of(key) not in IMAGE_SUFFIXES:
            left_out.add(key, why_not(suffix_of(key)))
        elif is_folder(store, path):
            left_out.add(key, "a folder (** in a pattern goes into folders)")
        else:
            keys.append(key)
    if not keys:
        raise DataError(no_images(name, left_out.all()))
    return FileSource(
        name,
        "glob",
        store,
        root or ("/" if pattern.startswith("/") else "."),
        Keys.pack(keys),
        left_out.all(),
    )


def _near(store: Store, path: str) -> str:
    """The neighbour whose name is closest to a mistyped one."""
    if not isinstance(store, Local):
        return ""
    parent = Path(path).parent
    try:
        return nearest(Path(path).name, [entry.name for entry in os.scandir(parent)])
    except OSError:
        return f" Nor does {str(parent)!r}."
