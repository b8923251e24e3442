"""The loop: how training works here, from the first step to the last.

One optimiser step is: take `accumulate` micro-batches; send each forward under autocast and backward; average losses
and gradients over the processes; update unless something is not finite; send the numbers off to the metrics. Around
it: a checkpoint at step 0, every `checkpoint_every` steps and at the end; evaluators at their own cadence; a stop on
request that finishes the step and saves; and a way back when training stays non-finite.

Why a killed run continues to the same bits: the learning rate is a function of the step, random numbers are one of
(seed, step, micro-batch), the data are one of (seed, step), and all else is in the checkpoint.
"""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from mimkit.engine import checkpoint, nonfinite
from mimkit.engine.checkpoint import State
from mimkit.engine.command import resume_command
from mimkit.engine.devices import autocast, peak_flops
from mimkit.engine.ema import MovingAverage
from mimkit.engine.feed import Feed
from mimkit.engine.memory import keep_freed_memory
from mimkit.engine.optimiser import gradient_norms, set_lr, update
from mimkit.engine.options import About, FitOptions, Outcome
from mimkit.engine.processes import ALONE, Processes
from mimkit.engine.progress import DataWatch, Progress
from mimkit.engine.records import Records
from mimkit.engine.recovery import continued, rollback_target, rolled_back, too_many_unreadable
from mimkit.engine.replica import Replica
from mimkit.engine.run_folder import already_there, log_file
from mimkit.engine.steps import Numbers, Step, lateness, metrics_row, step_seed
from mimkit.engine.stop import Stop
from mimkit.engine.trainable import BatchLike, Evaluator, frozen_names, trainable_parameters
from mimkit.errors import Interrupted, UserError, counted

log = logging.getLogger(__name__)
B = TypeVar("B", bound=BatchLike)
ENOUGH_IMAGES = 500  # drawn before the share of unreadable ones is judged, or one epoch if that is less
NOTHING_ABOUT = About()


def fit(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Callable[[int], Iterator[B]],
    prepare: Callable[[B], B],
    options: FitOptions,
    run: Path,
    *,
    resume: bool = False,
    evaluators: Sequence[Evaluator] = (),
    processes: Processes = ALONE,
    about: About = NOTHING_ABOUT,
    bar: bool | None = None,
) -> Outcome:
    """Train `module`, which is on its device, until the schedule ends; or continue the run in the folder `run`.

    batches(start_step) gives this process's micro-batches, `accumulate` for each step, from the step that follows
    `start_step` finished ones; prepare moves one to the device. The optimiser holds groups of the module's trainable
    parameters (engine.optimiser). bar: a progress bar; None shows one where standard error is a terminal. To compile
    the module, call `module.compile()` before: names and checkpoints stay the same.

    Raises Interrupted after SIGTERM, SIGUSR2 or Ctrl-C, with the state saved; UserError when a checkpoint cannot be
    written, when nothing can be resumed, or when training stays non-finite; DataError when too many images cannot be
    read.
    """
    with ExitStack() as stack:
        if processes.first:
            run.mkdir(parents=True, exist_ok=True)
            stack.enter_context(log_file(run))
        shown = (sys.stderr.isatty() if bar is None else bar) and processes.first
        progress = Progress(options.schedule.steps, options.log_every, shown)
        stack.callback(progress.close)
        loop = Loop(module, optimiser, prepare, options, run, evaluators, processes, about, progress)
        stack.callback(loop.close)
        return loop.run_to_the_end(batches, resume, stack.enter_context(Stop()))


class Loop(Generic[B]):
    """The state of a run between two steps, and what happens in one."""

    feed: Feed[B]
    records: Records | None = None  # of process 0

    def __init__(
        self,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        prepare: Callable[[B], B],
        options: FitOptions,
        run: Path,
        evaluators: Sequence[Evaluator],
        processes: Processes,
        about: About,
        progress: Progress,
    ) -> None:
        self.module, self.optimiser, self.prepare = module, optimiser, prepare
        self.options, self.run, self.about, self.evaluators = options, run, about, evaluators
        self.processes, self.progress, self.watch = processes, progress, DataWatch()
        for name in frozen_names(module):
            module.get_parameter(name).requires_grad_(False)
        self.device = next(iter(trainable_parameters(module).values())).device
        if self.device.type == "cpu":
            keep_freed_memory()
        self.replica = Replica(module, optimiser, processes, options.parallel)
        self.parameters = trainable_parameters(module)  # shards, where it is sharded
        self.average = None if options.ema is None else MovingAverage(self.parameters, options.ema)
        self.pending: deque[Step] = deque()  # made, not yet read: on a GPU a few, on a CPU none
        self.saved_step = -1
        self.peak = peak_flops(self.device, options.precision) if about.flops_per_image else None
        self.state = State(
            seed=options.seed,
            threads=torch.get_num_threads(),
            micro_batch=options.micro_batch,
            accumulate=options.accumulate,
            world=processes.world,
            parallel="fsdp" if self.replica.sharded else "ddp",
            precision=options.precision,
            recipe=about.recipe,
            data=about.data,
            data_named=about.data_named,
            extra=about.extra,
        )

    def run_to_the_end(self, batches: Callable[[int], Iterator[B]], resume: bool, stop: Stop) -> Outcome:
        last = self.options.schedule.steps
        self.begin(resume)
        self.feed = Feed(batches, self.state.step)
        while self.state.step < last:
            stopping = self.take_step(stop)
            self.evaluate(last)
            due = stopping or self.state.step == last or self.state.step % self.options.checkpoint_every == 0
            if self.settle(0 if due else lateness(self.device)):
                self.roll_back()
            elif due:
                self.save()
            if stopping and self.state.step < last:
                raise Interrupted(
                    f"Stopped as asked after step {self.state.step} of {last}; the state is saved. "
                    f"Continue with `{resume_command(self.run)}`.",
                    stop.heard,
                )
        return Outcome(self.state, checkpoint.folder_of(self.run, self.state.step))

    def begin(self, resume: bool) -> None:
        """Take up the newest good checkpoint; where a run has none yet, write the one of step 0."""
        there = self.processes.from_first(lambda: bool(checkpoint.saved(self.run)))
        if there and not resume:
            raise UserError(already_there(self.run))
        if there:
            newest = self.processes.from_first(lambda: checkpoint.latest_good(self.run))
            self.state = continued(self._restore(newest), self.state, self.run, self.about.drawn)
            self.saved_step = self.state.step
            log.info("Resumed %s after step %d.", self.run, self.state.step)
        if self.processes.first:
            self.records = Records(self.run, self.state.step, self.options.writers, self.about.config)
            checkpoint.drop_after(self.run, self.state.step)  # damaged ones, which would count as the newest
        self.module.train()
        self.optimiser.zero_grad()
        self.save()

    def take_step(self, stop: Stop) -> bool:
        """One optimiser step; says whether the run shall stop after it, which all processes agree on."""
        began = time.perf_counter()
        step = Step(self.state.step + 1, self.options.schedule.at(self.state.step) * self.state.lr_factor)
        for index in range(self.options.accumulate):
            self.micro_step(step, index)
        stopping = self.processes.agree(stop.asked)  # the question travels while the update is made
        self.update(step)
        self.state = replace(self.state, step=step.number)
        self.pending.append(step)
        if len(self.pending) > lateness(self.device):
            self.pending[0].wait()  # the host may run ahead of a GPU by so much, not more
        step.seconds = time.perf_counter() - began
        return stopping()

    def micro_step(self, step: Step, index: int) -> None:
        """Forward and backward for one micro-batch; gradients add up, and are exchanged in the step's last one."""
        batch, waited = self.feed.next()
        # its place among the micro-batches of all processes: one process that accumulates has the same places
        place = index * self.processes.world + self.processes.rank
        seed = step_seed(self.options.seed, self.state.step, place)
        torch.manual_seed(seed)
        with self.replica.gradients_stay(index + 1 < self.options.accumulate):
            with self._autocast():
                loss = self.replica(self.prepare(batch))
            (loss.total / self.options.accumulate).backward()
        step.add(batch, place, seed, loss, waited)

    def update(self, step: Step) -> None:
        """Move the weights unless loss or gradient is not finite, which the device decides without telling the host."""
        sums = self.processes.sum(step.sums())
        replaced, means = sums[0], sums[1:] / (self.options.accumulate * self.processes.world)
        norms = self.replica.norms(gradient_norms(self.parameters.values()))
        norm = torch.linalg.vector_norm(norms)
        finite = torch.isfinite(norm) & torch.isfinite(means[0])
        set_lr(self.optimiser, step.lr)
        update(self.optimiser, norm, finite, self.options.clip)
        self.optimiser.zero_grad()
        if self.average is not None:
            self.average.update(self.parameters, finite)
        after: Callable[[int], None] | None = getattr(self.module, "after_step", None)
        if after is not None:
            after(step.number)
        step.send(replaced, means, norms, norm, finite)

    def evaluate(self, last: int) -> None:
        """Let the evaluators that are due judge the raw model; their numbers join the row of the step just made."""
        due = [evaluator for evaluator in self.evaluators if evaluator.due(self.state.step, last)]
        if not due:
            return

        def judge(module: nn.Module, together: bool) -> dict[str, float]:
            found: dict[str, float] = {}
            for evaluator in due:
                if evaluator.together == together:
                    found.update(evaluator.call(module, self.state.step))
            return found

        self.module.eval()
        with self.replica.whole() as module:
            shared = judge(module, together=True)
            alone = self.processes.from_first(lambda: judge(module, together=False))
        self.pending[-1].extra.update({**shared, **alone})
        self.module.train()

    def settle(self, keep: int) -> bool:
        """Read all pending steps but the last `keep` and write them down. True when the run must go back."""
        while len(self.pending) > keep:
            step = self.pending.popleft()
            numbers = step.read()
            self._count(step, numbers)
            if numbers.replaced:
                self._note_replaced(step)
            if not numbers.finite:
                self._note_failure(step, numbers)
            if self.processes.first:
                self._write_row(step, numbers)
            if self.state.bad_in_a_row >= self.options.rollback_after:
                self.pending.clear()
                return True
        return False

    def save(self) -> None:
        """Write a checkpoint of the settled state, once for each step."""

        if self.saved_step == self.state.step:
            return
        first = self.processes.first
        files = checkpoint.tensors_of(self.module, self.optimiser, self.average, keep=first)

        def write() -> None:
            assert self.records is not None
            self.records.sync()  # rows first: none behind a checkpoint may be missing
            checkpoint.write(self.run, self.state, files)
            checkpoint.prune(self.run, self.options.keep)

        self.processes.from_first(write)
        self.saved_step = self.state.step

    def roll_back(self) -> None:
        """Go back to the last good checkpoint and on with half the rate; gives up after a few times."""
        failed, most = self.state, self.options.max_rollbacks
        folder = self.processes.from_first(lambda: rollback_target(self.run, failed, most))
        self.state = rolled_back(continued(self._restore(folder), self.state, self.run), failed)
        if self.records is not None:
            checkpoint.drop_after(self.run, self.state.step)
            checkpoint.rewrite_state(folder, self.state)
            self.records.rewind(self.state.step)
        log.warning(
            "Not finite for %s in a row: back from step %d to step %d, on with %g of the learning rate.",
            *(counted(failed.bad_in_a_row, "step"), failed.step, self.state.step, self.state.lr_factor),
        )
        self.saved_step = self.state.step
        self.progress.rewind()
        self.feed.restart(self.state.step)

    def close(self) -> None:
        """Let go of everything: DDP objects must be gone before the process group is."""
        self.replica.close()
        if hasattr(self, "feed"):
            self.feed.close()
        if self.records is not None:
            self.records.close()

    def _restore(self, folder: Path) -> State:
        return checkpoint.restore(folder, self.module, self.optimiser, self.average)

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(self.options.precision, self.device)

    def _count(self, step: Step, numbers: Numbers) -> None:
        self.state = replace(
            self.state,
            bad_in_a_row=0 if numbers.finite else self.state.bad_in_a_row + 1,
            bad_steps=self.state.bad_steps if numbers.finite else (*self.state.bad_steps, step.number),
            images=self.state.images + step.images * self.processes.world,
            skipped_images=self.state.skipped_images + numbers.replaced,
        )

    def _note_replaced(self, step: Step) -> None:
        """List the images that could not be read; too many of them end the run."""
        mine = [
            {"step": step.number, "id": skip.id, "name": skip.name, "reason": skip.reason}
            for batch in step.batches
            for skip in batch.skipped
        ]
        everyone = self.processes.gather(mine)
        if self.records is not None:
            self.records.skipped(row for rows in everyone for row in rows)
        enough = self.state.images >= ENOUGH_IMAGES or step.number >= self.options.schedule.steps_per_epoch
        error = too_many_unreadable(self.state, self.options.bad_share) if enough else None
        if error is not None:
            raise error

    def _note_failure(self, step: Step, numbers: Numbers) -> None:
        """Write down which samples and which module, and for the first of a streak save what it takes to try again."""
        names = list(self.parameters)
        with self.replica.whole() as module:
            failures = self.processes.gather(nonfinite.examine(step, module, self.prepare, self._autocast))
            line = nonfinite.describe(step, numbers, failures, self.state.lr_factor, names)
            if self.state.bad_in_a_row == 1:
                line["saved"] = nonfinite.save(self.run, line, step, module, self.state.step, self.processes)
        if self.records is not None:
            self.records.failure(line)
        log.warning(nonfinite.sentence(line))

    def _write_row(self, step: Step, numbers: Numbers) -> None:
        assert self.records is not None
        images = step.images * self.processes.world
        row = metrics_row(step, numbers, self.options.schedule.steps_per_epoch, images)
        if self.peak and self.about.flops_per_image:
            row["peak_share"] = (
                self.about.flops_per_image * images / (step.seconds * self.peak * self.processes.world)
            )
        self.records.row(row)
        self.progress.follow(row)
        self.watch.follow(row)
