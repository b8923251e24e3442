"""Tar shards in webdataset's form, read at random places through an own index of offsets.

Exact resuming needs sample number i of a set at any time, which a stream cannot give. A shard is walked once, from
header to header; offsets, sizes, names and the texts of `.cls` members are kept beside the folder indexes and belong
to the shard's size and time of change.
"""

import logging
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mimkit.data.formats.store import Store, why_unreadable
from mimkit.data.header import DecodeError
from mimkit.data.index import (
    IMAGE_SUFFIXES,
    KEEP_FROM,
    Ignored,
    Keys,
    LeftOut,
    encode_labels,
    keep,
    kept,
    left_out_words,
    suffix_of,
    why_not,
)
from mimkit.errors import DataError, UserError, counted

log = logging.getLogger(__name__)

LABEL = b".cls"
TRUNCATED = "the shard is truncated"


@dataclass
class Shard:
    """The images of one shard: names, first bytes, sizes, labels ("" where there is none); and what was left out.

    ended: whether the blocks of zeros stand behind the last member with which every writer ends a tar.
    """

    names: list[bytes] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    ended: bool = True


class TarSource:
    """Images in shards; keys read `shard-000.tar/0001.jpg`."""

    kind = "tar"

    def __init__(
        self,
        name: str,
        store: Store,
        paths: Sequence[str],
        root: str,
        labels: bool = False,
        progress: Callable[[int], None] | None = None,
        beside: Sequence[Ignored] = (),
    ) -> None:
        """beside: what else lies in the folder of the shards and was left out."""
        self.name = name
        self._store = store
        self._paths = tuple(paths)
        self._stamps = tuple(store.stamp(path) for path in paths)
        shards, count, left_out = [], 0, LeftOut()
        for path, stamp in zip(self._paths, self._stamps, strict=True):
            shards.append(read_shard(store, path, stamp, count, progress))
            count += len(shards[-1].names)
            for member, reason in shards[-1].ignored:
                left_out.add(f"{_short(path, root)}/{member}", reason)
            _warn_of_a_cut(path, shards[-1])
        self.ignored = (*left_out.all(), *beside)
        if not count:
            raise DataError(
                f"{name} holds no images: found {left_out_words(self.ignored) or 'nothing at all'}"
            )
        heads = [os.fsencode(_short(path, root)) + b"/" for path in self._paths]
        self._keys = Keys.pack(
            [head + n for head, shard in zip(heads, shards, strict=True) for n in shard.names]
        )
        self._shard = np.repeat(
            np.arange(len(shards), dtype=np.int32), [len(shard.names) for shard in shards]
        )
        self._starts = np.array([start for shard in shards for start in shard.starts], np.int64)
        self._sizes = np.array([size for shard in shards for size in shard.sizes], np.int64)
        self.classes: tuple[str, ...] = ()
        self._labels: np.ndarray | None = None
        if labels:
            self.classes, self._labels = self._encode([text for shard in shards for text in shard.labels])

    def _encode(self, texts: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
        if "" in texts:
            without = texts.count("")
            raise UserError(
                f"{self.name}: no .cls member beside {without} of {counted(len(texts), 'image')}, "
                f"for example {self._keys[texts.index('')]!r}; labels are asked for"
            )
        return encode_labels(texts)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, i: int) -> str:
        return self._keys[i]

    def read(self, i: int) -> bytes:
        key = self._keys[i]
        shard, start, size = int(self._shard[i]), int(self._starts[i]), int(self._sizes[i])
        try:
            data = self._store.read_range(self._paths[shard], self._stamps[shard], start, size)
        except Exception as error:  # an object store's client may raise anything
            raise DecodeError(key, f"its shard: {why_unreadable(error)}") from error
        if len(data) != size:
            raise DecodeError(key, "its shard is truncated")
        return data

    def label(self, i: int) -> int | None:
        return None if self._labels is None else int(self._labels[i])

    def digest(self) -> str:
        return self._keys.digest(self.classes, self._labels)


def _warn_of_a_cut(path: str, shard: Shard) -> None:
    whole = counted(len(shard.names), "image")
    if any(TRUNCATED in reason for _, reason in shard.ignored):
        log.warning("%s is truncated: %s before the cut; copy it anew for the rest.", path, whole)
    elif not shard.ended:
        log.warning(
            "%s does not end as tars do, with blocks of zeros: %s found; where it should hold more, it was cut between "
            "two of them or its writer was never closed, so copy or write it anew.",
            path,
            whole,
        )


def read_shard(
    store: Store, path: str, stamp: str, count: int = 0, progress: Callable[[int], None] | None = None
) -> Shard:
    """The index of one shard, from the cache or from the shard. `count`: images found before, for `progress`.

    Raises DataError for what is no tar, UserError for a compressed one.
    """
    about = f"tar {store.identity(path)}"
    found = kept(about)
    if found is not None and found[0].get("stamp") == stamp and "ended" in found[0]:
        facts, names = found
        ignored = list(map(tuple, facts["ignored"]))
        return Shard(names, facts["starts"], facts["sizes"], facts["labels"], ignored, facts["ended"])
    shard = _index(store, path, count, progress)
    if len(shard.names) >= KEEP_FROM:
        lists = {
            "starts": shard.starts,
            "sizes": shard.sizes,
            "labels": shard.labels,
            "ignored": shard.ignored,
            "ended": shard.ended,
        }
        keep(about, {"stamp": stamp, **lists}, shard.names)
    return shard


def _index(store: Store, path: str, count: int, progress: Callable[[int], None] | None) -> Shard:
    shard, classes = Shard(), dict[str, str]()
    length = store.size(path)
    with store.open(path) as file:
        magic = file.read(4)
        if magic[:2] == b"\x1f\x8b" or magic[:3] == b"BZh" or magic == b"\xfd7zX":
            raise UserError(
                f"{path} is compressed, so nothing in it can be read alone: unpack it to a plain .tar"
            )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:", errorlevel=0) as tar:
                for member in _members(tar, shard):
                    _take(shard, classes, tar, member, length)
                    if progress is not None and len(shard.names) % 1000 == 999:
                        progress(count + len(shard.names))
                file.seek(tar.offset)  # where no further header was found
                shard.ended = file.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE
        except tarfile.ReadError as error:
            if not shard.names:
                raise DataError(f"{path} cannot be read as a tar shard: {error}") from None
            if not (shard.ignored and TRUNCATED in shard.ignored[-1][1]):  # which that member says already
                shard.ignored.append(("(end)", f"{TRUNCATED} ({error})"))
    if progress is not None:
        progress(count + len(shard.names))
    shard.labels = [classes.get(_sample(os.fsdecode(name)), "") for name in shard.names]
    return shard


def _members(tar: tarfile.TarFile, shard: Shard) -> Iterator[tarfile.TarInfo]:
    """Files only. tarfile keeps every header it met; dropping them keeps a million members out of memory."""
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]
        if member.isreg() and not member.issparse():
            yield member
        elif not member.isdir():
            shard.ignored.append((member.name, "not a plain file"))


def _take(
    shard: Shard, classes: dict[str, str], tar: tarfile.TarFile, member: tarfile.TarInfo, length: int
) -> None:
    name = os.fsencode(member.name)
    base = name.rpartition(b"/")[2]
    suffix = suffix_of(base)
    if member.offset_data + member.size > length:
        shard.ignored.append((member.name, f"cut off: {TRUNCATED}"))
    elif base.startswith(b"."):
        shard.ignored.append((member.name, "hidden"))
    elif suffix == LABEL:
        content = tar.extractfile(member)
        classes[_sample(member.name)] = (
            "" if content is None else content.read().decode("utf-8", "replace").strip()
        )
    elif suffix in IMAGE_SUFFIXES:
        shard.names.append(name)
        shard.starts.append(member.offset_data)
        shard.sizes.append(member.size)
    else:
        shard.ignored.append((member.name, why_not(suffix)))


def _sample(name: str) -> str:
    """webdataset's key: the path up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _short(path: str, root: str) -> str:
    return path.removeprefix(root).lstrip("/") if root else path
