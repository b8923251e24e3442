"""The contract of a downstream task: a module that turns a batch into a loss, predicts, measures and draws.

A task owns neck and head, never the data or the optimiser. The engine trains it like a pre-training method, through
`forward(batch)`; a verb evaluates it through `evaluate`, whatever the task is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import nn

from mimkit.data.batch import Batch
from mimkit.encoders.base import Encoder
from mimkit.methods.base import Loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = TypeVar("P")


class Metric(ABC, Generic[P]):
    """What a task's predictions are worth, summed up batch by batch; P is the task's kind of predictions.

    It holds plain numbers on the CPU and can be pickled, so that processes may send each other theirs.
    """

    @abstractmethod
    def update(self, batch: Batch, predictions: P) -> None:
        """Take in the predictions for a batch and its targets. Raises UserError when the batch has none."""

    @abstractmethod
    def merge(self, others: Sequence["Metric[P]"]) -> None:
        """Add what other metrics of the same kind have seen (those of other processes)."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """Named numbers, for a table, a JSON file or the metrics of a run."""


class Task(nn.Module, ABC, Generic[P]):
    """Base of all tasks."""

    encoder: Encoder
    name: str
    """As in `tasks.TASKS`."""

    def forward(self, batch: Batch) -> Loss:
        """What the engine calls: `losses`."""
        return self.losses(batch)

    @abstractmethod
    def losses(self, batch: Batch) -> Loss:
        """The loss of a prepared batch (float images, normalised, with targets)."""

    @abstractmethod
    def predict(self, batch: Batch) -> P:
        """The answers for a prepared batch; its targets are not looked at."""

    @abstractmethod
    def metric(self) -> Metric[P]:
        """A new, empty measure of predictions of this task."""

    @abstractmethod
    def draw(
        self,
        batch: Batch,
        predictions: P,
        names: Sequence[str] = (),
        channels: tuple[int, ...] | None = None,
    ) -> "Figure":
        """A picture of predictions beside the images of a batch as it was loaded, before normalising.

        names: what to write below each image besides. channels: those shown as red, green, blue; None: the first three.
        """

    def after_step(self, step: int) -> None:
        """Called after each optimiser step: moving averages."""

    def frozen(self) -> set[str]:
        """Names of parameters that are kept in checkpoints but never trained."""
        return {name for name, parameter in self.named_parameters() if not parameter.requires_grad}

    @property
    def layers(self) -> int:
        """The deepest layer of `depth_of`: that of the head."""
        return self.encoder.deepest

    def depth_of(self, name: str) -> int:
        """Layer of a parameter for layer-wise learning rates: the encoder's own, `layers` for neck and head."""
        inner = name.removeprefix("encoder.")
        return self.encoder.depth_of(inner) if inner != name else self.layers


@torch.inference_mode()
def evaluate(
    task: Task[P],
    batches: Iterable[Batch],
    prepare: Callable[[Batch], Batch],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Metric[P]:
    """The metric of `task`, in evaluation mode, over `batches`; `prepare` brings each to the device, normalised.

    Batches that hold no readable image are passed over. The task is left in the mode it was in.
    """
    training, metric = task.training, task.metric()
    task.eval()
    try:
        for batch in batches:
            if len(batch.images):
                ready = prepare(batch)
                with autocast():
                    predictions = task.predict(ready)
                metric.update(ready, predictions)
    finally:
        task.train(training)
    return metric
