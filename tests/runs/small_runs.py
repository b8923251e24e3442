"""The smallest recipe that trains on photographs in seconds, and running the command line as a user does."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mimkit.cli import main

SMALL = (  # mae_tiny made small enough for a test: 32-pixel crops, a step in a tenth of a second
    "data.size=32",
    "encoder.patch=8",
    "train.batch_size=16",
    "method.decoder.depth=1",
    "method.decoder.width=64",
    "train.checkpoint_every=5",
    "log.samples_every=1000",
    "log.writers=[]",
    "data.workers=0",
)


def mimkit(
    *words: str, processes: int = 1, threads: int = 1, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does; under torchrun for several processes."""
    return subprocess.run(
        [*launcher(processes), *words],
        env=environment(threads),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def launcher(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", "mimkit"]
    rendezvous = ["--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, "-m", "torch.distributed.run", *rendezvous, "-m", "mimkit"]


def environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}


def rows(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run)]


def arguments(data: Path, run: Path, *more: str) -> Sequence[str]:
    """`pretrain` on `data` with the small recipe into `run`."""
    return ("pretrain", "mae_tiny", f"data.path={data}", f"train.run={run}", *SMALL, *more)


def start(*words: str, processes: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*launcher(processes), *words],
        env=environment(1),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_rows(run: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until the run has written so many rows of metrics."""
    deadline = time.monotonic() + 180
    while (
        not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_bytes().splitlines()) < count
    ):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline, "the run makes no steps"
        time.sleep(0.02)


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and what stands on standard error; no traceback ever."""
    code = main(list(words))
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return code, error
