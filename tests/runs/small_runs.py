"""The smallest recipe that trains on photographs in seconds, and running the command line as a user does."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
