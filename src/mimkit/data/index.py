"""The frozen index of a data set: its keys in a fixed order, what a scan left out, and where indexes are kept.

A sample's id is its place here, and everything random hangs on the id, so the order must be the same on every file
system: by folder, then by name, compared as bytes. A million keys of 30 bytes lie in one buffer with offsets: 38 MB
instead of 90 MB of strings, pickled in one piece, and no reference counts for forked workers to touch.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"),
)
IMAGE_SUFFIXES = frozenset(os.fsencode(extension) for extension in IMAGE_EXTENSIONS)
NAMED = 1000  # so many left-out things are named one by one, the rest only counted
KEEP_FROM = 1000  # an index of fewer entries is made anew faster than it is worth keeping
CACHE_VERSION = 1


@dataclass(frozen=True)
class Ignored:
    """Something that a scan left out. `count` is above 1 where one line stands for many of the same reason."""

    key: str
    reason: str
    count: int = 1


class LeftOut:
    """Collects what a scan leaves out, in bounded memory."""

    def __init__(self) -> None:
        self.named: list[Ignored] = []
        self.more: Counter[str] = Counter()

    def add(self, key: str | bytes, reason: str) -> None:
        if len(self.named) < NAMED:
            self.named.append(Ignored(os.fsdecode(key), reason))
        else:
            self.more[reason] += 1

    def all(self) -> tuple[Ignored, ...]:
        rest = [Ignored(f"({count} more)", reason, count) for reason, count in sorted(self.more.items())]
        return (*self.named, *rest)


def left_out_words(ignored: Iterable[Ignored]) -> str:
    """ "12 not an image (.xml), 1 hidden": counts by reason, the most frequent first; at most four."""
    counts: Counter[str] = Counter()
    for entry in ignored:
        counts[entry.reason] += entry.count
    words = [f"{count} {reason}" for reason, count in counts.most_common(4)]
    return ", ".join(words) + (", ..." if len(counts) > 4 else "")


class Keys:
    """Names as one buffer. Bytes that are not UTF-8 survive as surrogates (os.fsdecode)."""

    def __init__(self, buffer: bytes, offsets: np.ndarray) -> None:
        self.buffer = buffer
        self.offsets = offsets  # (n + 1,) int64

    @classmethod
    def pack(cls, names: Sequence[bytes]) -> "Keys":
        offsets = np.zeros(len(names) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, names), np.int64, len(names)), out=offsets[1:])
        return cls(b"".join(names), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return os.fsdecode(self.buffer[self.offsets[i] : self.offsets[i + 1]])

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def digest(self, classes: Sequence[str] = (), labels: np.ndarray | None = None, more: str = "") -> str:
        """SHA-256 over keys, their order and the labels: equal digests mean equal ids."""
        found = hashlib.sha256(self.offsets.astype("<i8").tobytes())
        found.update(self.buffer)
        found.update(json.dumps([list(classes), more]).encode())
        if labels is not None:
            found.update(labels.astype("<i4").tobytes())
        return found.hexdigest()


def encode_labels(values: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes and the place of each value in them, int32; sorted as numbers where all are integers, else as text."""
    distinct = set(values)
    try:
        classes = tuple(sorted(distinct, key=int))
    except ValueError:
        classes = tuple(sorted(distinct))
    place = {value: i for i, value in enumerate(classes)}
    return classes, np.fromiter((place[value] for value in values), np.int32, len(values))


def suffix_of(name: bytes) -> bytes:
    """The extension in small letters with its dot, or b"" (".jpg" alone is a hidden file without one)."""
    dot = name.rfind(b".")
    return name[dot:].lower() if dot > 0 else b""


def why_not(suffix: bytes) -> str:
    """Why a file of this extension is no image."""
    return f"not an image ({os.fsdecode(suffix)})" if suffix else "without an extension"


def cache_folder() -> Path:
    """MIMKIT_CACHE, or `mimkit` in the user's cache folder."""
    given = os.environ.get("MIMKIT_CACHE")
    return (
        Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mimkit"
    )


def keep(about: str, facts: dict[str, Any], names: Sequence[bytes]) -> None:
    """Keeps facts (JSON) and names (without NUL bytes) under `about`; a full or read-only disk costs only time."""
    path = _place(about)
    body = b"\0".join(names)
    about_it = {"version": CACHE_VERSION, "about": about, "bytes": len(body)}
    head = json.dumps({**about_it, **facts}, separators=(",", ":")).encode()
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(head + b"\n" + body)
        temporary.replace(path)
    except OSError as error:
        log.warning("the index of %s could not be kept in %s (%s)", about, path.parent, error.strerror)
        with contextlib.suppress(OSError):
            temporary.unlink()


def kept(about: str) -> tuple[dict[str, Any], list[bytes]] | None:
    """What `keep` wrote; None where there is nothing, or nothing that can be used."""
    try:
        head, _, body = _place(about).read_bytes().partition(b"\n")
        facts = json.loads(head)
    except (OSError, ValueError):
        return None
    wanted = {"version": CACHE_VERSION, "about": about, "bytes": len(body)}
    if not isinstance(facts, dict) or not wanted.items() <= facts.items():
        return None
    return facts, body.split(b"\0") if body else []


def _place(about: str) -> Path:
    return (
        cache_folder() / "index" / hashlib.sha256(about.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    )
