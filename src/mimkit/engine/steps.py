"""One optimiser step and its numbers, on their way from the device into a metrics row.

Reading a loss from a GPU makes the host wait for everything queued before it. So a step's numbers are sent off as one
small tensor and read a few steps later, when they have long arrived; on a CPU they are read at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimkit.engine.trainable import BatchLike, LossLike

LATE = 4  # steps that a GPU's numbers are read late


def lateness(device: torch.device) -> int:
    """How many steps the host may run ahead of the device before it reads a step's numbers."""
    return LATE if device.type == "cuda" else 0


def step_seed(seed: int, step: int, place: int) -> int:
    """The seed of torch's generators for one micro-batch after `step` finished steps.

    A pure function, so nothing has to be stored to resume. place: the micro-batch's number among those of all
    processes in this step, so it draws the same whichever process computes it.
    """
    high, low = np.random.SeedSequence((seed, step, place)).generate_state(2)
    return int(high) << 31 | int(low) >> 1


@dataclass
class Step:
    """An optimiser step in the making, then waiting to be read.

    number: finished steps with this one. batches: this process's micro-batches as the loader gave them; places: their
    numbers among those of all processes; seeds and losses (name -> scalar on the device): of each. norms: (P,) of
    each parameter's gradient. waited, seconds: for data, and in all. extra: evaluators' numbers.
    """

    number: int
    lr: float
    batches: list[BatchLike] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    losses: list[dict[str, Tensor]] = field(default_factory=list)
    norms: Tensor = field(default_factory=lambda: torch.zeros(0))
    waited: float = 0.0
    seconds: float = 0.0
    extra: dict[str, float] = field(default_factory=dict)

    def add(self, batch: BatchLike, place: int, seed: int, loss: LossLike, waited: float) -> None:
        """Take in a micro-batch that has gone forward and backward."""
        self.batches.append(batch)
        self.places.append(place)
        self.seeds.append(seed)
        self.losses.append(
            {"loss": loss.total.detach(), **{name: part.detach() for name, part in loss.parts.items()}}
        )
        self.waited += waited

    @property
    def images(self) -> int:
        return sum(batch.ids.shape[0] for batch in self.batches)

    def sums(self) -> Tensor:
        """(2 + parts,) float32: images replaced, then loss and parts, summed over this process's micro-batches."""
        table = torch.stack(
            [torch.stack([value.float() for value in row.values()]) for row in self.losses]
        )  # (A, 1 + parts)
        replaced = table.new_full((1,), float(sum(len(batch.skipped) for batch in self.batches)))
        return torch.cat([replaced, table.sum(0)])

    def send(self, replaced: Tensor, means: Tensor, norms: Tensor, norm: Tensor, finite: Tensor) -> None:
        """Start the way to the host. means: (1 + parts,) over micro-batches and processes."""
        self.norms = norms
        self._numbers = torch.cat([replaced[None], norm[None], finite.float()[None], means]).to(
            "cpu", non_blocking=means.is_cuda
        )
        self._arrival: torch.cuda.Event | None = None
        if means.is_cuda:
            self._arrival = torch.cuda.Event()
            self._arrival.record()

    def wait(self) -> None:
        """Until the numbers are on the host."""
        if self._arrival is not None:
            self._arrival.synchronize()

    def read(self) -> "Numbers":
        self.wait()
        replaced, norm, finite, *means = (float(number) for number in self._numbers.tolist())
        return Numbers(int(replaced), norm, bool(finite), dict(zip(self.losses[0], means, strict=True)))


@dataclass(frozen=True)
class Numbers:
    """What a step came to over all processes: images replaced, norm before clipping, means of loss and parts."""

    replaced: int
    norm: float
    finite: bool
    losses: Mapping[str, float]


def metrics_row(step: Step, numbers: Numbers, steps_per_epoch: int, images: int) -> dict[str, Any]:
    """The row of metrics.jsonl. images: of the step, over all processes. Losses are written in full precision."""
    row: dict[str, Any] = {
        "step": step.number,
        "epoch": step.number / steps_per_epoch,
        **numbers.losses,
        "lr": step.lr,
        "grad_norm": numbers.norm,
        "images_per_second": images / step.seconds,
        "seconds": step.seconds,
        "data_seconds": step.waited,
    }
    if not numbers.finite:
        row["nonfinite"] = 1
    if numbers.replaced:
        row["replaced_images"] = numbers.replaced
    clashes = set(row) & set(step.extra)
    if clashes:
        raise ValueError(
            f"An evaluator uses the name {sorted(clashes)[0]!r}, which a metrics row has already."
        )
    return {**row, **step.extra}
