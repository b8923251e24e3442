"""Features into a file, block by block, so that they need not fit into memory: .npy, .parquet or .safetensors.

A table holds the names of its images; the other two have them in a text file beside, a line a row.
"""

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mimkit.errors import UserError
from mimkit.verbs.files import replacing, writing


class Part(NamedTuple):
    """Rows in order: features (n, ...) float32, ids (n,) int64 in the index of the images, their names."""

    features: np.ndarray
    ids: np.ndarray
    names: list[str]


def check_format(path: Path) -> None:
    """Raise UserError for a name whose ending is none of the formats, or whose format needs what is not installed."""
    if path.suffix not in WRITERS:
        raise UserError(f"--out {path}: the ending says the format; give one of {', '.join(WRITERS)}.")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise UserError(f"{path}: writing parquet needs pyarrow: pip install 'mimkit[tables]'.") from None


def _npy(path: Path, parts: Iterator[Part], shape: tuple[int, ...]) -> tuple[Path, ...]:
    with replacing(path) as temporary, _names_beside(path) as note, temporary.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part.features, dtype="<f4").data)
            note(part)
    return path, _beside(path)


def _safetensors(path: Path, parts: Iterator[Part], shape: tuple[int, ...]) -> tuple[Path, ...]:
    """The format by hand: length of the header, header, features, ids. Its library wants everything in memory."""
    count, size = shape[0], 4 * int(np.prod(shape))
    header = json.dumps(
        {
            "features": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]},
            "ids": {"dtype": "I64", "shape": [count], "data_offsets": [size, size + 8 * count]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    ids: list[np.ndarray] = []
    with replacing(path) as temporary, _names_beside(path) as note, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for part in parts:
            file.write(np.ascontiguousarray(part.features, dtype="<f4").data)
            ids.append(part.ids)
            note(part)
        file.write(np.concatenate(ids).astype("<i8").data)
    return path, _beside(path)


def _parquet(path: Path, parts: Iterator[Part], shape: tuple[int, ...]) -> tuple[Path, ...]:
    """Columns id, file and features; dense features lie flat, their shape in the column's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    width = int(np.prod(shape[1:]))
    features = pa.field(
        "features", pa.list_(pa.float32(), width), metadata={"shape": json.dumps(list(shape[1:]))}
    )
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("file", pa.string()), features])
    with replacing(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for part in parts:
            flat = pa.array(np.ascontiguousarray(part.features, dtype=np.float32).reshape(-1))
            names = [
                name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in part.names
            ]
            columns = [pa.array(part.ids), pa.array(names), pa.FixedSizeListArray.from_arrays(flat, width)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return (path,)


WRITERS: dict[str, Callable[[Path, Iterator[Part], tuple[int, ...]], tuple[Path, ...]]] = {
    ".npy": _npy,
    ".parquet": _parquet,
    ".safetensors": _safetensors,
}


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.files.txt")


@contextmanager
def _names_beside(path: Path) -> Iterator[Callable[[Part], None]]:
    """A function that writes the names of a part's images, a line each, into the file beside `path`."""
    with writing(_beside(path)) as file:
        yield lambda part: file.writelines(name.replace("\n", " ") + "\n" for name in part.names)
