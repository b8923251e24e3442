"""Files named in a list: a plain text file, a line a path; or a table (.csv, .tsv, .parquet) with a label beside it.

Relative paths begin at the folder of the list; absolute ones and `..` are followed, because the user wrote them.
Files are taken whatever their extension.
"""

import csv
import io
import os
from collections.abc import Iterable

from mimkit.data.formats.files import FileSource, open_named
from mimkit.data.formats.store import Store, exists
from mimkit.data.index import encode_labels
from mimkit.errors import DataError, UserError, counted

PATH_COLUMNS = (
    "path",
    "file",
    "image",
    "filepath",
    "file_path",
    "image_path",
    "filename",
    "file_name",
    "img",
)
LABEL_COLUMNS = ("label", "class", "target", "category")
MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def open_text(name: str, store: Store, path: str, root: str) -> FileSource:
    """A path a line. Blank lines are skipped, and so are lines that begin with # and name no file.

    Where the list holds NUL bytes (`find -print0`), those part the paths, so that names with line breaks pass.
    """
    data = _without_mark(store.read(path))
    lines = data.split(b"\0") if b"\0" in data else [line.rstrip(b"\r") for line in data.split(b"\n")]
    paths = [line for line in lines if line.strip() and not _is_comment(store, root, line)]
    if not paths:
        raise DataError(f"{name} names no files: one path a line is wanted")
    return open_named(name, "list", store, root, paths)


def open_table(name: str, store: Store, path: str, root: str, labels: bool) -> FileSource:
    """A column of paths and, with `labels`, a column of classes (sorted as numbers where all are integers).

    Raises DataError naming the line for a row of another length, a blank path or label, a file with two labels.
    """
    if path.lower().endswith(".parquet"):
        columns, rows = _parquet(name, store, path, labels)
    else:
        columns, rows = _csv(name, store, path)
    at = _column(name, columns, PATH_COLUMNS, "a path")
    by = _column(name, columns, LABEL_COLUMNS, "a label") if labels else None
    paths, values = list[bytes](), list[str]()
    for line, row in rows:
        if not row[at]:
            raise DataError(f"{name}: line {line} has no path in its column {columns[at]!r}")
        paths.append(os.fsencode(row[at]))
        if by is not None:
            if not row[by]:
                raise DataError(
                    f"{name}: line {line} has no label in its column {columns[by]!r}; write one, or take the line out"
                )
            values.append(row[by])
    if not paths:
        raise DataError(f"{name} has the columns {', '.join(columns)} but no rows, so no images")
    if by is None:
        return open_named(name, "table", store, root, paths)
    _check_one_label(name, paths, values)
    return open_named(name, "table", store, root, paths, *encode_labels(values))


Rows = Iterable[tuple[int, list[str]]]  # line number in the file, cells


def _csv(name: str, store: Store, path: str) -> tuple[list[str], Rows]:
    try:
        text = _without_mark(store.read(path)).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not in UTF-8 (byte {error.start}): save it with that encoding") from None
    tab = path.lower().endswith(".tsv")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tab else ",", strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            if row:
                rows.append((reader.line_num, [cell.strip() for cell in row]))
    except csv.Error as error:
        raise DataError(f"{name}: line {reader.line_num} is not CSV ({error})") from None
    if not rows:
        raise DataError(f"{name} is empty: a header line and a row an image are wanted")
    columns = rows.pop(0)[1]
    for line, row in rows:
        if len(row) != len(columns):
            hint = "; a name with a comma needs quotes" if len(row) > len(columns) else ""
            raise DataError(
                f"{name}: line {line} has {counted(len(row), 'column')}, the header has {len(columns)}{hint}"
            )
    return columns, rows


def _parquet(name: str, store: Store, path: str, labels: bool) -> tuple[list[str], Rows]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"{name}: reading parquet needs pyarrow: pip install 'mimkit[tables]'") from None
    try:
        with store.open(path) as file:
            table = parquet.ParquetFile(file)
            columns = list(table.schema_arrow.names)
            wanted = [columns[_column(name, columns, PATH_COLUMNS, "a path")]]
            if labels:
                wanted.append(columns[_column(name, columns, LABEL_COLUMNS, "a label")])
            data = table.read(columns=wanted).to_pydict()
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise DataError(f"{name} cannot be read as parquet: {error}") from None
    cells = zip(*(data[column] for column in wanted), strict=True)
    return wanted, ((i, [_text(name, cell) for cell in row]) for i, row in enumerate(cells, 1))


def _text(name: str, cell: object) -> str:
    if isinstance(
        cell, str | int | float
    ):  # a fraction is no label, which whoever reads labels says with its line
        return str(cell)
    if cell is None:
        return ""
    raise DataError(
        f"{name} holds {type(cell).__name__} where a path or a label is wanted; pictures in tables are not read"
    )


def _column(name: str, columns: list[str], known: tuple[str, ...], what: str) -> int:
    lower = [column.strip().lower() for column in columns]
    for word in known:
        if word in lower:
            return lower.index(word)
    raise DataError(
        f"{name} has no column for {what}: its header reads {', '.join(map(repr, columns))}, "
        f"one of {', '.join(known)} is wanted (columns parted by commas)"
    )


def _check_one_label(name: str, paths: list[bytes], values: list[str]) -> None:
    seen: dict[bytes, str] = {}
    for path, value in zip(paths, values, strict=True):
        if seen.setdefault(path, value) != value:
            raise DataError(f"{name} gives {os.fsdecode(path)!r} two labels, {seen[path]!r} and {value!r}")


def _is_comment(store: Store, root: str, line: bytes) -> bool:
    """A name may begin with # too; asking costs a call, but only for such lines."""
    return line.lstrip().startswith(b"#") and not exists(store, store.join(root, os.fsdecode(line)))


def _without_mark(data: bytes) -> bytes:
    """The text in UTF-8 without its byte order mark (spreadsheets and Windows shells write one)."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return data[3:] if encoding == "utf-8" else data.decode(encoding, "replace").encode()
    return data
