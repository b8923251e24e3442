"""What every benchmark shares: rows, aims, and two contenders that take turns.

Speed drifts on shared machines, so ours and theirs alternate lap by lap (and swap who goes first), and what counts is
the median of the paired ratios. Each contender lives in a process of its own, started afresh: allocator, thread pools
and imported libraries of one do not leak into the other, and each has a peak memory that is its own. The time is taken
inside, around the lap alone; CPU time is kept as a cross-check.
"""

import ctypes
import gc
import math
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol
from unittest.mock import patch

from mimkit.__main__ import WHOLE_HEAP

LINUX = sys.platform.startswith("linux")

Lap = Callable[[], float | None]
"""What is timed. A number that it returns is the same for both contenders (a loss, a checksum) and is compared."""
Make = Callable[[], dict[str, Lap]]
"""Builds a contender in its own process: metric -> what is timed for it."""


@dataclass(frozen=True)
class Options:
    """How to measure. rounds: pairs of laps; None leaves it to the benchmark. quick: small, to see that it works."""

    threads: int = 2
    rounds: int | None = None
    quick: bool = False
    device: str = "cpu"
    compile: bool = False

    def laps(self, usual: int) -> int:
        return self.rounds or (2 if self.quick else usual)


@dataclass(frozen=True)
class Row:
    """One pair of numbers; ratio is ours / theirs, smaller is better."""

    name: str
    metric: str
    ours: float
    theirs: float
    ratio: float
    unit: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Aim:
    """What a row should reach: its ratio, ours alone, or ours - theirs (in the row's unit) is at most `limit`."""

    limit: float
    of: Literal["ratio", "ours", "difference"] = "ratio"

    def reached(self, row: Row) -> bool:
        return {"ratio": row.ratio, "ours": row.ours, "difference": row.ours - row.theirs}[
            self.of
        ] <= self.limit

    def __str__(self) -> str:
        return {"ratio": "<= {}", "ours": "ours <= {}", "difference": "<= {} more"}[self.of].format(
            self.limit
        )


@dataclass(frozen=True)
class Benchmark:
    """about: the pair in words. run: its rows. aims: metric -> aim."""

    about: str
    run: Callable[[Options], list[Row]]
    aims: dict[str, Aim]


@dataclass(frozen=True)
class Measured:
    """What one lap took: seconds, seconds of CPU over all threads, and what it returned."""

    seconds: float
    cpu: float
    value: float | None


class Contender:
    """One side: a process that builds `make()` and then runs a lap at a time. `ready` waits until it is built.

    trains: start it with the settings of memory that the command line starts training with.
    """

    def __init__(self, make: Make, options: Options, trains: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # no daemon, which could have no loader processes of its own; it ends when its pipe does
        self._process = context.Process(target=_serve, args=(theirs, make, options))
        with patch.dict(os.environ, WHOLE_HEAP if trains else {}):
            self._process.start()
        theirs.close()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()

    def ready(self) -> list[str]:
        """Its metrics."""
        return list(self._answer())

    def lap(self, metric: str) -> Measured:
        self._pipe.send(metric)
        return Measured(*self._answer())

    def peak(self) -> float:
        """Its peak memory so far above what it held when it was built, in MiB."""
        self._pipe.send(None)
        return float(self._answer())

    def _answer(self) -> Any:
        try:
            kind, content = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"A contender ended with exit code {self._process.exitcode}.") from None
        if kind == "failed":
            raise RuntimeError(f"A contender failed:\n{content}")
        return content


def _serve(pipe: Connection, make: Make, options: Options) -> None:
    """The contender's process: answers a metric with a lap of it, None with its peak memory."""
    try:
        import torch

        torch.set_num_threads(options.threads)
        laps, cuda = make(), options.device == "cuda"
        built = _memory_now(cuda)
        pipe.send(("ready", list(laps)))
        wait = torch.cuda.synchronize if cuda else _nothing
        while True:
            metric = pipe.recv()
            pipe.send(("done", _memory_peak(cuda) - built if metric is None else _timed(laps[metric], wait)))
    except EOFError:
        return  # nobody asks any more
    except Exception:
        pipe.send(("failed", traceback.format_exc()))


def _timed(lap: Lap, wait: Callable[[], None]) -> tuple[float, float, float | None]:
    """The fields of `Measured`."""
    wait()
    seconds, cpu = time.perf_counter(), time.process_time()
    value = lap()
    wait()
    return time.perf_counter() - seconds, time.process_time() - cpu, value


def _nothing() -> None:
    pass


def _memory_now(cuda: bool) -> float:
    """MiB that this process holds: on the GPU, or resident in memory (elsewhere than on Linux: its peak so far)."""
    if cuda:
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # what building has freed is not held
    return _resident("VmRSS") if LINUX else _memory_peak(cuda)


def _memory_peak(cuda: bool) -> float:
    if cuda:
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    if LINUX:
        return _resident("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _resident(field: str) -> float:
    """MiB in a field of /proc/self/status. (getrusage's peak would count the parent's pages before exec.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


Pair = tuple[Measured, Measured]


@dataclass(frozen=True)
class Race:
    """metric -> the laps of ours and theirs, pair by pair; and the peaks of their memory in MiB."""

    laps: dict[str, list[Pair]]
    memory: tuple[float, float]

    def time(self, name: str, settings: dict[str, Any], metric: str = "time", per_lap: float = 1.0) -> Row:
        """Seconds of a lap (over `per_lap`); the CPU time's ratio stands in the settings."""
        cpu = statistics.median(ours.cpu / theirs.cpu for ours, theirs in self.laps[metric])
        pairs = [(ours.seconds / per_lap, theirs.seconds / per_lap) for ours, theirs in self.laps[metric]]
        return paired_row(name, metric, pairs, "s", settings | {"cpu_ratio": round(cpu, 3)})

    def peak(self, name: str, settings: dict[str, Any], metric: str = "peak_memory") -> Row:
        """Peak memory above the built contender."""
        ours, theirs = self.memory
        return Row(name, metric, ours, theirs, ours / theirs, "MiB", settings)


def race(
    ours: Make,
    theirs: Make,
    options: Options,
    rounds: int,
    tolerance: float = 0.0,
    train: tuple[bool, bool] = (False, False),
    starts: int = 1,
) -> Race:
    """Let the two take turns at each metric of ours: a lap each to warm up, then `rounds` pairs.

    tolerance: how far what the warm-up laps return may differ, relative to theirs; more raises RuntimeError, since two
    different computations are no pair. train: which of the two is started as the command line starts training.
    starts: how many processes of each run one after the other and share the rounds; peaks are their medians. Where
    memory falls in pieces, the peak depends on where the system lays things: a tenth between two starts.
    """
    laps: dict[str, list[Pair]] = defaultdict(list)
    peaks = []
    for _ in range(starts):
        with Contender(ours, options, train[0]) as us, Contender(theirs, options, train[1]) as them:
            metrics, _ = us.ready(), them.ready()
            for metric in metrics:
                laps[metric] += alternate(us, them, metric, math.ceil(rounds / starts), tolerance)
            peaks.append((us.peak(), them.peak()))
    our_peaks, their_peaks = zip(*peaks, strict=True)
    return Race(laps, (statistics.median(our_peaks), statistics.median(their_peaks)))


class Takes(Protocol):
    """What can take a lap."""

    def lap(self, metric: str) -> Measured: ...


def alternate(us: Takes, them: Takes, metric: str, rounds: int, tolerance: float) -> list[Pair]:
    """A warm-up lap each, then `rounds` pairs; every other pair theirs goes first."""
    _check_agreement(us.lap(metric).value, them.lap(metric).value, tolerance)
    pairs = []
    for number in range(rounds):
        if number % 2:
            second = them.lap(metric)
            pairs.append((us.lap(metric), second))
        else:
            pairs.append((us.lap(metric), them.lap(metric)))
    return pairs


def _check_agreement(ours: float | None, theirs: float | None, tolerance: float) -> None:
    if ours is None or theirs is None or abs(ours - theirs) <= tolerance * abs(theirs):
        return
    raise RuntimeError(f"Ours gives {ours}, theirs {theirs}: the two do not compute the same.")


def paired_row(
    name: str, metric: str, pairs: list[tuple[float, float]], unit: str, settings: dict[str, Any]
) -> Row:
    """Medians of both sides, and the median of the paired ratios."""
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return Row(name, metric, ours, theirs, ratio, unit, settings)
