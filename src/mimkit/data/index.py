"""The frozen index of a data set: its keys in a fixed order, and what a scan left out.

A sample's id is its place here, and everything random hangs on the id, so the order must be the same on every file
system. A million keys lie in one bytes buffer with offsets: 60 MB instead of 110 MB of strings, and nothing for a
forked worker's reference counts to copy.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Ignored(NamedTuple):
    """Something that a scan left out. `count` is above 1 where one line stands for many of the same reason."""

    key: str
    reason: str
    count: int = 1


class Keys(Sequence[str]):
    """Names as one buffer. Bytes that are not UTF-8 survive as surrogates (os.fsdecode)."""

    def __init__(self, buffer: bytes, offsets: np.ndarray) -> None:
        self.buffer = buffer
        self.offsets = offsets  # (n + 1,) int64

    @classmethod
    def pack(cls, names: Iterable[bytes]) -> "Keys":
        names = list(names)
        offsets = np.zeros(len(names) + 1, np.int64)
        np.cumsum([len(name) for name in names], out=offsets[1:])
        return cls(b"".join(names), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i):  # type: ignore
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        return os.fsdecode(self.buffer[self.offsets[i] : self.offsets[i + 1]])

    def digest(self, *more: bytes) -> str:
        found = hashlib.sha256(self.offsets.tobytes())
        for part in (self.buffer, *more):
            found.update(part)
        return found.hexdigest()
