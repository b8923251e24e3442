"""`python -m benchmarks [NAME ...] [--json FILE] [--quick]`: run pairs, print a table, keep the rows."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import (
    attention_statistics,
    embedding,
    finetune_step,
    imports,
    mae_step,
    mcmae_step,
    onnx_program,
    optimiser,
    pipeline,
)
from benchmarks.pairs import Aim, Benchmark, Options, Row
from mimkit.errors import nearest

BENCHMARKS: dict[str, Benchmark] = {
    **mae_step.BENCHMARKS,
    **mcmae_step.BENCHMARKS,
    **optimiser.BENCHMARKS,
    **pipeline.BENCHMARKS,
    **finetune_step.BENCHMARKS,
    **embedding.BENCHMARKS,
    **onnx_program.BENCHMARKS,
    **attention_statistics.BENCHMARKS,
    **imports.BENCHMARKS,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks that were named, or all; 2 for a name that is not known."""
    asked = parser().parse_args(arguments)
    names: list[str] = asked.names or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            print(
                f"No benchmark {name!r}; known are {', '.join(BENCHMARKS)}.{nearest(name, BENCHMARKS)}",
                file=sys.stderr,
            )
            return 2
    options = Options(asked.threads, asked.rounds, asked.quick, asked.device, asked.compile)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for the contenders, before they load torch
    rows: list[Row] = []
    print(HEADER)
    for name in names:
        for row in BENCHMARKS[name].run(options):
            rows.append(row)
            print(line(row, BENCHMARKS[name].aims.get(row.metric), options.quick), flush=True)
        if asked.json:  # after each, so that an interrupted run keeps what it has
            asked.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    return 0


def parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:<22} {benchmark.about}" for name, benchmark in BENCHMARKS.items())
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Ours against theirs, in turns; ratios are ours / theirs, smaller is better.",
        epilog=f"benchmarks:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("names", nargs="*", metavar="NAME", help="which ones; all without a name")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    made.add_argument(
        "--quick", action="store_true", help="small sizes and few laps: shows that it runs, not how fast"
    )
    made.add_argument(
        "--threads", type=int, default=2, help="threads of torch (default 2); loaders always have one"
    )
    made.add_argument("--rounds", type=int, help="pairs of laps; each benchmark has its own default")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for the training steps")
    made.add_argument("--compile", action="store_true", help="torch.compile both models")
    return made


HEADER = f"{'name':<22} {'metric':<16} {'ours':>10} {'theirs':>10} {'unit':<4} {'ratio':>6}  aim"


def line(row: Row, aim: Aim | None, quick: bool) -> str:
    """A row for people; small sizes say nothing about the aim."""
    verdict = "" if aim is None or quick else f"{aim}: {'reached' if aim.reached(row) else 'NOT REACHED'}"
    numbers = f"{row.ours:>10.4g} {row.theirs:>10.4g} {row.unit:<4} {row.ratio:>6.3f}"
    return f"{row.name:<22} {row.metric:<16} {numbers}  {verdict}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
