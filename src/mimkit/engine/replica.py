"""The module as one process among several calls it: through DDP or FSDP, or as it is when alone.

DDP keeps everything in every process and averages the gradients; FSDP (`engine.shards`) keeps a share of everything.
Nothing else in the engine asks which it is.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mimkit.engine import shards
from mimkit.engine.processes import Processes
from mimkit.engine.trainable import frozen_names


class Replica:
    """The called form of a module. parallel: "ddp" or "fsdp"; with one process they are the same.

    With FSDP the module and the optimiser, which has made no step yet, hold shards from here on.
    """

    def __init__(
        self, module: nn.Module, optimiser: torch.optim.Optimizer, processes: Processes, parallel: str
    ) -> None:
        self.module = module
        self.sharded = processes.world > 1 and parallel == "fsdp"
        self._ddp: DistributedDataParallel | None = None
        self._root: shards.Root | None = None
        self._twin: nn.Module | None = None
        if processes.world > 1:
            _start_alike(module)
        if self.sharded:
            self._twin = shards.hollow(module)
            self._root = shards.shard(module, optimiser, next(module.parameters()).device)
        elif processes.world > 1:
            self._ddp = _replicate(module)

    def __call__(self, batch: Any) -> Any:
        if self._root is not None:
            return self._root(batch)[0]
        return (self._ddp or self.module)(batch)

    def gradients_stay(self, here: bool) -> AbstractContextManager[None]:
        """While accumulating (`here`), gradients are not exchanged: only the last micro-batch of a step does it.

        FSDP exchanges them each time: whole ones, kept until the last, would take the memory that shards save.
        """
        return self._ddp.no_sync() if here and self._ddp is not None else nullcontext()

    def norms(self, shares: Tensor) -> Tensor:
        """(P,) norms of the gradients from those (P,) of what this process has of them."""
        return shards.norms(shares) if self.sharded else shares

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The plain module with whole weights, which one process may call alone; all processes enter together."""
        if self._twin is None:
            yield self.module
            return
        with shards.filled(self._twin, self.module) as twin:
            yield twin

    def close(self) -> None:
        self._ddp = self._root = self._twin = None


def _start_alike(module: nn.Module) -> None:
    """Every process starts from the weights of process 0, teachers and buffers included."""
    for tensor in module.state_dict().values():
        dist.broadcast(tensor, src=0)


def _replicate(module: nn.Module) -> DistributedDataParallel:
    """DDP around the trained part."""
    # buffers are tables that never change: to broadcast them with each forward pass would buy nothing
    ignored = [*frozen_names(module), *(name for name, _ in module.named_buffers())]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)
    return DistributedDataParallel(module, gradient_as_bucket_view=True, init_sync=False)
