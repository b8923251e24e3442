"""What `fit` is told and what it gives back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimkit.engine.checkpoint import State
from mimkit.engine.schedule import Schedule


@dataclass(frozen=True)
class FitOptions:
    """How a run goes.

    schedule: learning rate and length. micro_batch: images that go through the model at once; accumulate:
    micro-batches of one process in an optimiser step. seed: of everything random in the model. precision: "fp32" or
    "bf16". parallel: "ddp" or "fsdp", how several processes share the work (engine.replica). clip: largest gradient
    norm, None for none (MAE). ema: decay of the moving average of the weights, None for none. checkpoint_every:
    steps; keep: checkpoints kept besides step 0. log_every: steps between plain lines. rollback_after: non-finite
    steps in a row after which the run goes back; max_rollbacks: how often before it gives up. bad_share: stop when
    more of the images than this cannot be read. writers: see engine.writers.
    """

    schedule: Schedule
    micro_batch: int
    accumulate: int = 1
    seed: int = 0
    precision: str = "fp32"
    parallel: str = "ddp"
    clip: float | None = None
    ema: float | None = None
    checkpoint_every: int = 500
    keep: int = 2
    log_every: int = 10
    rollback_after: int = 5
    max_rollbacks: int = 3
    bad_share: float = 0.1
    writers: tuple[str, ...] = ("tensorboard",)


@dataclass(frozen=True)
class About:
    """What the engine writes down for others and never looks into, but for comparing digests.

    recipe, data: digests; a run resumes only on the data it began with. data_named: those data in a few words, for
    the sentence that says so ("48 images in photos/"). drawn: what is drawn, or averaged, for each micro-batch ("drop
    path and Mixup"), so that other micro-batches mean another training; empty for nothing. extra: goes into every
    state.json (channel statistics, kind of target, ...), JSON values only. config: the recipe for the writers.
    flops_per_image: FLOPs of a training step for one image, forward and backward, for the share of the device's peak;
    None shows none.
    """

    recipe: str = ""
    data: str = ""
    data_named: str = ""
    drawn: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    flops_per_image: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A finished run: its last state and its last checkpoint."""

    state: State
    checkpoint: Path
