"""What process 0 writes down step by step: metrics, unreadable images, failures, and the views of them elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mimkit.engine.run_folder import METRICS, NONFINITE, SKIPPED, JsonLines
from mimkit.engine.writers import open_writers


class Records:
    """The open files of a run that continues after `step` finished steps; rows behind it are cut.

    Raises UserError for a writer that is not known or not installed, and later when the disk is full.
    """

    def __init__(self, run: Path, step: int, writers: Sequence[str], config: Mapping[str, Any]) -> None:
        self._open = lambda after: open_writers(writers, run, after, config)
        self._writers = self._open(step)
        self._metrics, self._skipped, self._failures = (
            JsonLines(run / name) for name in (METRICS, SKIPPED, NONFINITE)
        )
        self._cut(step)

    def row(self, row: Mapping[str, Any]) -> None:
        """A step's metrics."""
        self._metrics.append(row)
        numbers = {key: float(value) for key, value in row.items() if key != "step" and _is_number(value)}
        for writer in self._writers:
            writer.write(int(row["step"]), numbers)

    def skipped(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Images that could not be read and were replaced."""
        for row in rows:
            self._skipped.append(row)

    def failure(self, line: Mapping[str, Any]) -> None:
        """A step that was not finite; these lines stay, whatever is resumed or rolled back later."""
        self._failures.append(line)

    def rewind(self, step: int) -> None:
        """The run has gone back: later rows are void."""
        self._cut(step)
        for writer in self._writers:
            writer.close()
        self._writers = self._open(step)

    def sync(self) -> None:
        """Wait until all rows are on the disk; done before each checkpoint, so none behind one is missing."""
        for lines in (self._metrics, self._skipped, self._failures):
            lines.sync()

    def close(self) -> None:
        for lines in (self._metrics, self._skipped, self._failures):
            lines.close()
        for writer in self._writers:
            writer.close()

    def _cut(self, step: int) -> None:
        self._metrics.cut(step)
        self._skipped.cut(step)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
