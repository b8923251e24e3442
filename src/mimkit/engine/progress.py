"""What a person sees while training: a bar on a terminal, plain lines without one, and words when the loader is slow.

Every line carries images per second, the share of the device's peak FLOP/s, the share of the time spent waiting for
data, the loss and the time that is left.
"""

import logging
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from mimkit.engine.run_folder import FILE_ONLY

log = logging.getLogger(__name__)

WINDOW = 100  # steps over which data time is held against step time
STARVING, FED = (
    0.25,
    0.10,
)  # shares of the time spent waiting for data: where an episode begins and where it ends
RECENT = 20  # steps that the shown speed is an average of


class Progress:
    """Follows the rows of metrics. total: steps of the run; log_every: steps between plain lines; bar: show a bar."""

    def __init__(self, total: int, log_every: int, bar: bool) -> None:
        self.total = total
        self.log_every = log_every
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=RECENT)
        self._bar = _Bar(total) if bar else None

    def follow(self, row: Mapping[str, Any]) -> None:
        """Show the row of a finished step."""
        self._recent.append(row)
        step = int(row["step"])
        if self._bar is not None:
            self._bar.show(step, self.brief(row))
        if step % self.log_every == 0 or step == self.total:
            logger = log if self._bar is None else FILE_ONLY
            logger.info("step %d/%d  %s", step, self.total, self.describe(row))

    def describe(self, row: Mapping[str, Any]) -> str:
        """'epoch 3.20  lr 1.20e-04  loss 0.5123  98.3 images/s  41% of peak  data 3%  left 0:12:31'."""
        return f"epoch {row['epoch']:.2f}  lr {row['lr']:.2e}  {self.brief(row)}"

    def brief(self, row: Mapping[str, Any]) -> str:
        """'loss 0.5123  98.3 images/s  41% of peak  data 3%  left 0:12:31', which fits beside a bar."""
        seconds = sum(entry["seconds"] for entry in self._recent)
        images = sum(entry["images_per_second"] * entry["seconds"] for entry in self._recent)
        waited = sum(entry["data_seconds"] for entry in self._recent)
        left = timedelta(seconds=round((self.total - row["step"]) * seconds / len(self._recent)))
        reached = sum(entry.get("peak_share", 0.0) * entry["seconds"] for entry in self._recent)
        peak = f"  {reached / seconds:.0%} of peak" if "peak_share" in row else ""
        speed = f"{images / seconds:.1f} images/s{peak}  data {waited / seconds:.0%}"
        return f"loss {row['loss']:.4f}  {speed}  left {left}"

    def rewind(self) -> None:
        """Forget the speeds: the run has gone back or paused."""
        self._recent.clear()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class DataWatch:
    """Holds the time spent waiting for data against that of the steps, and says in words when the loader starves."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, float]] = []
        self._starving = False

    def follow(self, row: Mapping[str, Any]) -> None:
        """Take in a step; every 100 of them say how it stands, and once an episode what to change."""
        self._rows.append((row["data_seconds"], row["seconds"]))
        if len(self._rows) < WINDOW:
            return
        data, whole = (sum(times) / WINDOW for times in zip(*self._rows, strict=True))
        self._rows.clear()
        FILE_ONLY.info("Data: %.3f s of %.3f s a step (%.0f %%).", data, whole, 100 * data / whole)
        if data > STARVING * whole and not self._starving:
            log.warning(
                "The loader starves the loop: of %.3f s a step, %.3f s (%.0f %%) went into waiting for data. More "
                "loader processes (data.workers=) help while cores are free; a copy at training size, made once with "
                "`mimkit data prepare`, helps always; data.repeats= takes several crops from each decoded image.",
                whole,
                data,
                100 * data / whole,
            )
        self._starving = data > (FED if self._starving else STARVING) * whole


class _Bar:
    """A rich progress bar on standard error."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._progress = RichProgress(
            MofNCompleteColumn(),
            BarColumn(bar_width=10),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("", total=total)
        self._progress.start()

    def show(self, step: int, text: str) -> None:
        """Noted at once, drawn at rich's own pace."""
        self._progress.update(self._task, completed=step, description=text)

    def close(self) -> None:
        self._progress.stop()
