"""`mimkit plan`: what a recipe costs on this machine, before it is started.

The model is built and trained for a few steps on grey noise; counts come from `analysis.cost`, speed and memory from
the clock and the device. Loading is not measured here (`data_share` in a run's metrics tells).
"""

import logging
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

from mimkit.analysis import cost
from mimkit.data.batch import Batch
from mimkit.data.sources import Source
from mimkit.engine import devices
from mimkit.errors import counted
from mimkit.methods.base import Method
from mimkit.recipes import build
from mimkit.recipes.schema import Recipe
from mimkit.tasks import Task
from mimkit.verbs.pretrain import find_recipe

log = logging.getLogger(__name__)

STEPS = 3  # timed, after one that is not
CLASSES = 1000  # of a classifier, where no images say it


@dataclass(frozen=True)
class Plan:
    """The costs of a recipe. flops: of one image in a training step. memory: bytes at the peak of a step.

    images: in the data set, None when the recipe names none. micro_batch, accumulate: what fits into this machine.
    """

    recipe: str
    device: str
    precision: str
    parameters: int
    encoder_gmacs: float
    flops: int
    micro_batch: int
    accumulate: int
    memory: int
    images_per_second: float
    peak: float | None
    epochs: int
    images: int | None

    @property
    def seconds(self) -> float | None:
        """The whole run, in seconds."""
        return None if self.images is None else self.images * self.epochs / self.images_per_second

    def lines(self) -> list[str]:
        """The plan for a terminal."""
        batch = self.micro_batch * self.accumulate
        share = (
            ""
            if self.peak is None
            else f", {self.images_per_second * self.flops / self.peak:.0%} of the peak"
        )
        made = [
            f"recipe          {self.recipe} on {self.device}, {self.precision}",
            f"parameters      {self.parameters / 1e6:.1f} M",
            f"operations      {self.encoder_gmacs:.2f} GMACs an image through the encoder, "
            f"{self.flops / 1e9:.1f} GFLOP an image in a training step",
            f"batch           {batch} = {self.micro_batch} at once x accumulate {self.accumulate} "
            f"(train.micro_batch={self.micro_batch})",
            f"memory          {self.memory / 2**30:.2f} GiB at the peak",
            f"speed           {self.images_per_second:.1f} images/s{share}",
        ]
        if self.seconds is None:
            return [*made, "time            add data.path= to see how long the run takes"]
        passes = f"{counted(self.epochs, 'epoch')} of {counted(self.images or 0, 'image')}"
        length = timedelta(seconds=round(self.seconds))
        return [*made, f"time            {length} for {passes}"]


def plan(source: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """See `mimkit.api.plan`."""
    recipe = find_recipe(source, overrides)
    images = None if recipe.data.path is None else build.source(recipe)
    if images is not None:
        recipe = build.settle_data(recipe, images)
    elif recipe.data.channels is None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"channels": 3})})
    device = devices.choose_device(recipe.train.device)
    precision = devices.choose_precision(recipe.train.precision, device)
    autocast = partial(devices.autocast, precision, device)
    model = _model(recipe, images).to(device)
    recipe = build.settle_batch(recipe, model, autocast, build.free_bytes(device), 1, device.type == "cpu")
    micro = recipe.train.micro_batch
    assert micro is not None
    flops = cost.step_flops(model, recipe.data.size)
    seconds, memory = _measure(model, recipe, micro, precision, device)
    return Plan(
        recipe.name,
        str(device),
        precision,
        cost.parameters(model),
        cost.encoder_flops(model.encoder, recipe.data.size) / 2e9,
        flops,
        micro,
        recipe.train.batch_size // micro,
        memory,
        micro / seconds,
        devices.peak_flops(device, precision),
        recipe.train.epochs,
        None if images is None else len(images) * recipe.data.repeats,
    )


def _model(recipe: Recipe, images: Source | None) -> Method | Task:
    """What would be trained; a classifier of so many classes as the images have, or as ImageNet has."""
    if recipe.task is None:
        return build.method(recipe)
    return build.task(recipe, images.classes if images is not None else [str(i) for i in range(CLASSES)])


def _measure(
    model: Method | Task, recipe: Recipe, micro: int, precision: str, device: torch.device
) -> tuple[float, int]:
    """Seconds of a step with one micro-batch (the fastest of a few), and bytes in use at its peak."""
    optimise = build.optimiser(recipe, model)
    batch = cost.example_batch(model, recipe.data.size, micro)
    best = float("inf")
    for step in range(1 + STEPS):
        began = time.perf_counter()
        _step(model, optimise, batch, precision, device)
        if step:
            best = min(best, time.perf_counter() - began)
    if device.type == "cuda":
        return best, torch.cuda.max_memory_allocated(device)
    return best, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _step(
    model: Method | Task, optimise: torch.optim.Optimizer, batch: Batch, precision: str, device: torch.device
) -> None:
    with devices.autocast(precision, device):
        loss = model(batch).total
    loss.backward()
    optimise.step()
    optimise.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
