"""A model at work on images: on its device, fed as it was trained, with what could not be read on the side."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from mimkit.data.batch import Batch, Skip
from mimkit.data.loader import eval_batches
from mimkit.data.normalise import prepare
from mimkit.data.sources import Source
from mimkit.engine import devices
from mimkit.engine.memory import keep_freed_memory
from mimkit.errors import DataError, none_readable
from mimkit.recipes import build
from mimkit.recipes.schema import Recipe

CHUNK = 64  # images that go through the model at once
Progress = Callable[[int, int], None] | None


@dataclass
class Runner:
    """Device and precision as the recipe of a model says, and the batches for it; `skipped` grows as they are read."""

    recipe: Recipe
    chunk: int = CHUNK
    skipped: list[Skip] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device = devices.choose_device(self.recipe.train.device)
        self.precision = devices.choose_precision(self.recipe.train.precision, self.device)

    def autocast(self) -> AbstractContextManager[object]:
        return devices.autocast(self.precision, self.device)

    def prepare(self, batch: Batch) -> Batch:
        """On the device, normalised as the model knows it."""
        part = self.recipe.data
        assert part.mean is not None and part.std is not None
        return prepare(batch, self.device, part.mean, part.std)

    def batches(
        self, source: Source, ids: Sequence[int] | None = None, progress: Progress = None
    ) -> Iterator[Batch]:
        """The images of `source` (or those at `ids`) as they were loaded, through the evaluation transform."""
        part = self.recipe.data
        assert part.channels is not None
        count, done = len(source) if ids is None else len(ids), 0
        workers = self.workers if count > build.FEW_IMAGES else 0
        pin = self.device.type == "cuda"
        for batch in eval_batches(source, part.size, part.channels, self.chunk, workers, ids, pin):
            self.skipped += batch.skipped
            done += len(batch.ids) + len(batch.skipped)
            if progress is not None:
                progress(done, count)
            yield batch

    def nothing_read(self, images: int, name: str) -> DataError:
        """Says that none of the images of `name` can be read, and why as far as this process has met it."""
        first = f", the first one: {self.skipped[0].reason}" if self.skipped else ""
        return DataError(f"{none_readable(images, name)}{first}; `mimkit data check {name}` looks at each.")

    @property
    def workers(self) -> int:
        given = self.recipe.data.workers
        return build.default_workers(self.device.type == "cuda") if given is None else given


def on_device(model: torch.nn.Module, runner: Runner) -> None:
    """Move `model` there, in evaluation mode. On a CPU memory is kept from batch to batch: an eighth of the time."""
    if runner.device.type == "cpu":
        keep_freed_memory()
    model.to(runner.device).eval()
