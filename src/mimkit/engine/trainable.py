"""What the loop asks of the things it trains, as protocols: it knows no method, no task and no data set by name.

A module is trained when `module(batch)` gives an object with a scalar `total` and named scalar `parts`. It may also
have `after_step(step)` (moving averages of teachers and the like, called after every optimiser step; with FSDP it sees
shares, so parameters may be combined with those of the same shape alone) and `frozen()` (names of what is kept in
checkpoints but never trained).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


class LossLike(Protocol):
    """What `module(batch)` returns: the scalar to minimise and the named scalars that go into the metrics."""

    @property
    def total(self) -> Tensor: ...

    @property
    def parts(self) -> Mapping[str, Tensor]: ...


class SkipLike(Protocol):
    """A sample that could not be read: its place in the index, its name there, and why."""

    @property
    def id(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def reason(self) -> str: ...


class BatchLike(Protocol):
    """A micro-batch: images (B, ...), ids (B,) of its samples, and the samples that had to be replaced."""

    @property
    def images(self) -> Tensor: ...

    @property
    def ids(self) -> Tensor: ...

    @property
    def skipped(self) -> Sequence[SkipLike]: ...


@dataclass(frozen=True)
class Evaluator:
    """A judgement of the model while it trains: `call(module, step)` gives numbers that join that step's metrics row.

    Called every `every` steps and after the last one, by process 0 alone or `together` by all, which then must give the
    same numbers, with the raw weights (not the moving average, which lags far behind early in training) and the module
    in evaluation mode. It must leave the weights alone.
    """

    name: str
    every: int
    call: Callable[[nn.Module, int], Mapping[str, float]]
    together: bool = False

    def due(self, step: int, last: int) -> bool:
        return step % self.every == 0 or step == last


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name, in the module's order: those with a gradient that are not frozen."""
    frozen = frozen_names(module)
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and name not in frozen
    }


def frozen_names(module: nn.Module) -> set[str]:
    """Full parameter names of what `module.frozen()` names: parameters, or whole submodules by their prefix."""
    frozen: Callable[[], Iterable[str]] | None = getattr(module, "frozen", None)
    if frozen is None:
        return set()
    given = tuple(frozen())
    return {
        name
        for name, _ in module.named_parameters()
        if any(name == entry or name.startswith(f"{entry}.") for entry in given)
    }
