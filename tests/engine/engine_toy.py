"""A toy to train: a small network with dropout and a channels-last convolution, on images made from their ids.

Run as a program it trains in a process of its own, so that tests can kill it, stop it, or start two with torchrun.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mimkit.engine import processes
from mimkit.engine.loop import fit
from mimkit.engine.optimiser import adamw, pretrain_groups
from mimkit.engine.options import About, FitOptions, Outcome
from mimkit.engine.processes import ALONE, Processes
from mimkit.engine.schedule import Schedule
from mimkit.engine.trainable import Evaluator
from mimkit.errors import MimkitError

MICRO = 4
STEPS_PER_EPOCH = 8
REST = 600.0  # seconds: until it is killed


@dataclass(frozen=True)
class ToySkip:
    id: int
    name: str
    reason: str


@dataclass(frozen=True)
class ToyBatch:
    images: Tensor  # (B, 3, 8, 8)
    ids: Tensor  # (B,)
    skipped: tuple[ToySkip, ...] = ()


@dataclass(frozen=True)
class ToyLoss:
    total: Tensor
    parts: dict[str, Tensor]


class Toy(nn.Module):
    """Reconstructs its images through a bottleneck; `teacher` is frozen and follows by after_step."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.conv = nn.Conv2d(3, 8, 3, padding=1).to(memory_format=torch.channels_last)
        self.mixer = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 3))
        self.teacher = nn.Linear(3, 3)
        self.steps_seen: list[int] = []
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)

    def frozen(self) -> set[str]:
        return {"teacher"}

    def after_step(self, step: int) -> None:
        self.steps_seen.append(step)
        with torch.no_grad():
            self.teacher.weight.lerp_(self.mixer[3].weight[:, :3], 0.1)

    def forward(self, batch: ToyBatch) -> ToyLoss:
        hidden = self.conv(batch.images).permute(0, 2, 3, 1)  # (B, 8, 8, 8)
        out = self.mixer(hidden).float()  # (B, 8, 8, 3)
        target = batch.images.permute(0, 2, 3, 1)
        error = (out - target).square().mean()
        aim = (out - self.teacher(target).float().detach()).square().mean()
        return ToyLoss(error + 0.1 * aim, {"pixel": error, "aim": aim})


def image(number: int) -> Tensor:
    return torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(number))


def toy_batches(
    accumulate: int = 1,
    who: Processes = ALONE,
    micro: int = MICRO,
    spoil: Callable[[int, ToyBatch], ToyBatch] | None = None,
    slow: float = 0.0,
    rest_at: int | None = None,
) -> Callable[[int], Iterator[ToyBatch]]:
    """Micro-batches by the rule of the loader: micro-batch j of process r is number j x world + r of its step.

    slow: seconds that each takes. rest_at: after so many steps it rests until it is killed, however late that comes.
    """

    def batches(start_step: int) -> Iterator[ToyBatch]:
        step = start_step
        while True:
            for index in range(accumulate):
                place = index * who.world + who.rank
                first = (step * accumulate * who.world + place) * micro
                ids = torch.arange(first, first + micro)
                batch = ToyBatch(torch.stack([image(int(number)) for number in ids]), ids)
                time.sleep(slow if step != rest_at else REST)
                yield spoil(step, batch) if spoil else batch
            step += 1

    return batches


def train(
    run: Path,
    steps: int = 16,
    accumulate: int = 1,
    who: Processes = ALONE,
    resume: bool = False,
    module: nn.Module | None = None,
    micro: int = MICRO,
    spoil: Callable[[int, ToyBatch], ToyBatch] | None = None,
    slow: float = 0.0,
    rest_at: int | None = None,
    evaluators: tuple[Evaluator, ...] = (),
    about: About | None = None,
    lr: float = 3e-3,
    **options: object,
) -> Outcome:
    module = Toy() if module is None else module
    optimiser = adamw(pretrain_groups(module, 0.05))
    schedule = Schedule(lr, steps / STEPS_PER_EPOCH, STEPS_PER_EPOCH, warmup_epochs=0.5)
    settings = FitOptions(schedule, micro, accumulate, checkpoint_every=5, writers=())
    return fit(
        module,
        optimiser,
        toy_batches(accumulate, who, micro, spoil, slow, rest_at),
        lambda batch: replace(batch, images=batch.images.to(memory_format=torch.channels_last)),
        replace(settings, **options),  # type: ignore[arg-type]
        run,
        resume=resume,
        evaluators=evaluators,
        processes=who,
        about=about or About(data="toy", extra={"mean": [0.5]}),
        bar=False,
    )


class Trouble:
    """Not a number in some steps of process 1, once each; and one unreadable image in its every third step."""

    def __init__(self, bad_steps: list[int], rank: int) -> None:
        self.left, self.rank = set(bad_steps), rank

    def __call__(self, step: int, batch: ToyBatch) -> ToyBatch:
        if self.rank != 1:
            return batch
        if step % 3 == 0:
            batch = replace(batch, skipped=(ToySkip(step, f"broken/{step}.png", "truncated"),))
        if step + 1 in self.left:
            self.left.remove(step + 1)
            batch = replace(batch, images=batch.images * float("nan"))
        return batch


def judge(module: nn.Module, step: int) -> dict[str, float]:
    """What one process finds that calls the module alone."""
    batch = ToyBatch(torch.stack([image(-1), image(-2)]), torch.tensor([-1, -2]))
    with torch.no_grad():
        return {"probe": float(step), "judged": module(batch).total.item()}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--bad-steps", type=json.loads)
    parser.add_argument("--settings", type=json.loads, default={})
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        with processes.start(torch.device("cpu")) as who:
            spoil = None if given.bad_steps is None else Trouble(given.bad_steps, who.rank)
            probe = Evaluator("probe", 6, judge)
            train(given.run, who=who, resume=given.resume, spoil=spoil, evaluators=(probe,), **given.settings)
    except MimkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
