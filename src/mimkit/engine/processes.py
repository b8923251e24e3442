"""One process or many: who this one is, and the few things that processes say to each other.

`torchrun` starts them and sets the environment; gloo carries gradients between CPUs, NCCL between GPUs. Flags and
objects travel over a gloo group of their own, so that they never wait for a GPU. Each process trains on its own
micro-batches, DDP or FSDP averages the gradients (engine.replica), and process 0 alone writes.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mimkit.errors import Interrupted

T = TypeVar("T")
PATIENCE = timedelta(
    hours=12
)  # processes wait for an evaluation or a checkpoint of process 0 at most so long


@dataclass(frozen=True)
class Processes:
    """This process among all: `rank` of `world`. side: the gloo group for flags and objects, None when alone."""

    rank: int = 0
    world: int = 1
    side: Any = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum of `numbers` over all processes, in place, on their device."""
        if self.world > 1:
            dist.all_reduce(numbers)
        return numbers

    def agree(self, wish: Callable[[], bool]) -> Callable[[], bool]:
        """Ask whether any process wishes something; the question travels while work goes on, a call answers it."""
        if self.world == 1:
            return wish
        flag = torch.tensor([float(wish())])
        work = dist.all_reduce(flag, group=self.side, async_op=True)

        def answer() -> bool:
            work.wait()
            return bool(flag.item())

        return answer

    def gather(self, value: T) -> list[T]:
        """Every process's picklable `value`, in the order of ranks, on every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.side)
        return values

    def together(self, make: Callable[[], T]) -> list[T]:
        """What `make()` gives in each process, by rank, on every process. An error in one is raised everywhere."""
        if self.world == 1:
            return [make()]
        outcome: list[Any] = [None, None]
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
        everyone = self.gather(outcome)
        for _, raised in everyone:
            if raised is not None:
                raise raised
        return [value for value, _ in everyone]

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make()` gives on process 0, on every process; the others wait. An error there is raised everywhere."""
        if self.world == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = make()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, group=self.side)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


ALONE = Processes()


@contextmanager
def start(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started (none: alone) and leave them in good order.

    With DDP or FSDP objects still alive when the group is destroyed, torch aborts at exit now and then; so they are
    collected first, then all wait for each other, then the group goes. After an error nobody waits: the others may be
    gone.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    side: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
    together = True
    try:
        yield Processes(dist.get_rank(), world, side)
    except Interrupted:
        raise  # all stopped at the same step
    except BaseException:
        together = False
        raise
    finally:
        gc.collect()
        if together:
            dist.barrier(group=side)
        dist.destroy_process_group()
