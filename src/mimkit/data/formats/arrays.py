"""Stacks of images in one array: `.npy`, or an array of an `.npz`.

Axes: three are (N, H, W). Of four, the smaller of the second and the last holds the channels, so (N, H, W, C) or
(N, C, H, W); when both are equal the channels are last. Images are read by their place in the file, one at a time,
so a stack may be larger than memory and may lie in an object store (a memory map would end the process when the file
is cut under it); only a compressed `.npz` or a stack in Fortran order must be read whole, once a process.
"""

import io
import logging
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimkit.data.formats.store import Store, why_unreadable
from mimkit.data.header import DecodeError
from mimkit.data.index import Ignored, Keys, encode_labels
from mimkit.errors import DataError, UserError

log = logging.getLogger(__name__)

IMAGE_NAMES = ("images", "image", "x", "data", "arr_0")  # of an .npz with several stacks
LABEL_NAMES = ("labels", "label", "y", "targets", "target")
LARGE = 1_000_000_000  # bytes held by every worker; worth a word


@dataclass(frozen=True)
class Stack:
    """An array within a file: where its values begin, or None where they cannot be read in place."""

    member: str
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int | None


class ArraySource:
    """Rows of a stack; `read` gives (H, W, C) arrays. Keys read `images.npy[12]`."""

    kind = "arrays"
    ignored: tuple[Ignored, ...] = ()

    def __init__(self, name: str, store: Store, path: str, labels: bool = False) -> None:
        self.name = name
        self._store = store
        self._path = path
        self._stamp = store.stamp(path)
        self._stack, others = _find(name, store, path)
        self._short = path.rpartition("/")[2]
        self._channels_first = _channels_first(self._stack)
        self.classes: tuple[str, ...] = ()
        self._labels: np.ndarray | None = None
        self._whole: np.ndarray | None = None
        if labels:
            self.classes, self._labels = self._read_labels(others)
        where = "first" if self._channels_first else "last" if len(self._stack.shape) == 4 else "absent"
        log.info("%s: a stack of shape %s, its channel axis %s", name, self._stack.shape, where)

    def _read_labels(self, others: list[Stack]) -> tuple[tuple[str, ...], np.ndarray]:
        for other in others:
            if other.member.lower() in LABEL_NAMES and other.shape == (len(self),):
                values = _load(self._store, self._path, other.member)
                if values.dtype.kind in "iuUS":
                    return encode_labels([str(value) for value in values.tolist()])
                raise DataError(
                    f"{self.name} has labels of the type {values.dtype} in {other.member!r}: classes are whole numbers "
                    "or names, so store them as integers or text"
                )
        raise UserError(
            f"{self.name} has no labels: an .npz with an array named {' or '.join(LABEL_NAMES)} "
            f"of shape ({len(self)},) is wanted"
        )

    def __len__(self) -> int:
        return self._stack.shape[0]

    def key(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return f"{self._short}[{i}]"

    def read(self, i: int) -> np.ndarray:
        """(H, W, C), in the stack's own type."""
        key = self.key(i)
        try:
            image = self._row(i)
        except Exception as error:  # an object store's client may raise anything
            raise DecodeError(key, why_unreadable(error)) from error
        if image.ndim == 2:
            return image[..., None]
        return image.transpose(1, 2, 0) if self._channels_first else image

    def _row(self, i: int) -> np.ndarray:
        if self._stack.start is None:
            if self._whole is None:
                self._whole = _load(self._store, self._path, self._stack.member)
            return self._whole[i]
        shape = self._stack.shape[1:]
        size = int(np.prod(shape)) * self._stack.dtype.itemsize
        data = self._store.read_range(self._path, self._stamp, self._stack.start + i * size, size)
        if len(data) != size:
            raise OSError(0, "the stack is truncated")
        return np.frombuffer(data, self._stack.dtype).reshape(shape)

    def label(self, i: int) -> int | None:
        return None if self._labels is None else int(self._labels[i])

    def digest(self) -> str:
        """Of shape, type and labels: the values are not read."""
        return Keys.pack([]).digest(
            self.classes, self._labels, f"{self._stack.shape} {self._stack.dtype.str}"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_whole": None}


def _find(name: str, store: Store, path: str) -> tuple[Stack, list[Stack]]:
    """The stack of images, and the other arrays beside it."""
    try:
        with store.open(path) as file:
            if not path.lower().endswith(".npz"):
                shape, fortran, dtype = _npy_header(file)
                stack = Stack("", shape, dtype, None if fortran else file.tell())
                _check_whole(name, stack, store.size(path))
                return _checked(name, stack), []
            with zipfile.ZipFile(file) as archive:
                stacks = [
                    _member(archive, info) for info in archive.infolist() if info.filename.endswith(".npy")
                ]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{name} cannot be read as a NumPy file: {why_unreadable(error)}") from None
    chosen = _choose(name, stacks)
    if chosen.start is None and (size := int(np.prod(chosen.shape)) * chosen.dtype.itemsize) > LARGE:
        log.warning(
            "%s is compressed: every worker holds its %.1f GB; an .npy is read in place", name, size / 1e9
        )
    return _checked(name, chosen), [stack for stack in stacks if stack is not chosen]


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Stack:
    with archive.open(info) as file:
        shape, fortran, dtype = _npy_header(file)
        at = file.tell()
    if info.compress_type != zipfile.ZIP_STORED or fortran:
        return Stack(info.filename.removesuffix(".npy"), shape, dtype, None)
    raw = archive.fp
    assert raw is not None
    raw.seek(info.header_offset + 26)  # the local header: lengths of the name and of the extra field
    name, extra = struct.unpack("<HH", raw.read(4))
    return Stack(
        info.filename.removesuffix(".npy"), shape, dtype, info.header_offset + 30 + name + extra + at
    )


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _choose(name: str, stacks: list[Stack]) -> Stack:
    images = [stack for stack in stacks if len(stack.shape) in (3, 4)]
    if len(images) > 1:
        named = [stack for stack in images if stack.member.lower() in IMAGE_NAMES]
        images = named if len(named) == 1 else images
    if len(images) != 1:
        found = ", ".join(f"{stack.member} {stack.shape}" for stack in stacks) or "no array"
        raise DataError(
            f"{name} holds {found}: one array of three or four axes is wanted, or one of them named images; "
            "save the one you mean as .npy"
        )
    return images[0]


def _checked(name: str, stack: Stack) -> Stack:
    if stack.dtype.kind not in "buif":
        raise DataError(f"{name} holds values of type {stack.dtype}, where integers or floats are wanted")
    if len(stack.shape) not in (3, 4) or (len(stack.shape) == 3 and stack.shape[2] <= 4):
        raise DataError(
            f"{name} is an array of shape {stack.shape}: a stack (N, H, W), (N, H, W, C) or (N, C, H, W) is wanted, "
            "not a single picture"
        )
    if 0 in stack.shape:
        raise DataError(f"{name} is an array of shape {stack.shape}: it holds no images")
    return stack


def _check_whole(name: str, stack: Stack, size: int) -> None:
    wanted = int(np.prod(stack.shape)) * stack.dtype.itemsize + (stack.start or 0)
    if size < wanted:
        raise DataError(f"{name} is truncated: {size} bytes, where its header promises {wanted}")


def _channels_first(stack: Stack) -> bool:
    return len(stack.shape) == 4 and stack.shape[1] < stack.shape[3]


def _load(store: Store, path: str, member: str) -> np.ndarray:
    with store.open(path) as file:
        loaded = np.load(io.BytesIO(file.read()) if not file.seekable() else file, allow_pickle=False)
        return np.asarray(loaded[member] if member else loaded)
