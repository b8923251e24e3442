"""The learning rate as a pure function of the step: nothing to store, nothing to restore.

Warm-up from exactly zero, then half a cosine (MAE, He et al. 2022, appendix A; SGDR, Loshchilov and Hutter 2017),
both over fractional epochs. The rate itself follows the linear rule lr = base_lr x effective batch / 256 (Goyal et
al. 2017).
"""

import math
from dataclasses import dataclass

REFERENCE_BATCH = 256  # images; the batch for which a base learning rate is given


@dataclass(frozen=True)
class Schedule:
    """A whole run's learning rate.

    lr: the peak. epochs, warmup_epochs: lengths in passes over the data. min_lr: where the cosine ends; the warm-up
    ignores it. steps_per_epoch: optimiser steps in one pass.
    """

    lr: float
    epochs: float
    steps_per_epoch: int
    warmup_epochs: float = 0.0
    min_lr: float = 0.0

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return round(self.epochs * self.steps_per_epoch)

    def at(self, step: int) -> float:
        """The learning rate of the step that follows `step` finished ones; 0 for the first when there is a warm-up."""
        return learning_rate(
            step / self.steps_per_epoch, self.lr, self.min_lr, self.warmup_epochs, self.epochs
        )


def learning_rate(epoch: float, lr: float, min_lr: float, warmup_epochs: float, epochs: float) -> float:
    """The rate at fractional epoch `epoch`: `lr x epoch / warmup_epochs`, then half a cosine from lr to min_lr."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    share = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * share))


def peak_lr(base_lr: float, batch_size: int) -> float:
    """The peak rate for `batch_size` images in each optimiser step: base_lr x batch_size / 256."""
    return base_lr * batch_size / REFERENCE_BATCH


def describe_lr(base_lr: float, micro_batch: int, accumulate: int, processes: int) -> str:
    """Where the rate comes from: 'lr 6.0e-4 = 1.5e-4 x (batch 8 x accumulate 16 x processes 8 = 1024) / 256'."""
    batch = micro_batch * accumulate * processes
    return (
        f"lr {short(peak_lr(base_lr, batch))} = {short(base_lr)} x (batch {micro_batch} x accumulate {accumulate} "
        f"x processes {processes} = {batch}) / {REFERENCE_BATCH}"
    )


def short(rate: float) -> str:
    """A rate as people write it, two figures or as many as it needs up to four: 6.0e-4, 1.875e-5."""
    mantissa, exponent = f"{rate:.3e}".split("e")
    digits = mantissa.rstrip("0")
    return f"{digits + '0' if digits.endswith('.') else digits}e{int(exponent)}"
