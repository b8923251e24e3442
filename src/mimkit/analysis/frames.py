"""The long table in which every analysis hands out its numbers: model, layer, head, metric, value (and what else it
has).

A plain dict of columns of equal length, because that costs no dependency and everything reads it:
`pandas.DataFrame(frame)`, `pyarrow.table(frame)`, `json.dumps(frame)`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Frame = dict[str, list[Any]]
COLUMNS = ("model", "layer", "head", "metric", "value")


def frame(rows: Iterable[Sequence[Any]], columns: Sequence[str] = COLUMNS) -> Frame:
    """The table of `rows`; there may be none."""
    listed = list(rows)
    return {name: [row[i] for row in listed] for i, name in enumerate(columns)}


def stack(frames: Iterable[Mapping[str, list[Any]]]) -> Frame:
    """All rows of several tables, one below the other; what a table has no column for is None."""
    tables = list(frames)
    names = list(dict.fromkeys(name for table in tables for name in table))
    made: Frame = {name: [] for name in names}
    for table in tables:
        count = len(next(iter(table.values()), []))
        for name in names:
            made[name] += table.get(name, [None] * count)
    return made
