"""Start-up: what importing mimkit adds to importing torch, and how long `mimkit --help` takes.

Whole processes, from start to exit. `import mimkit` itself loads no torch; `training` loads all that a pre-training run
needs, torch included.
"""

import subprocess
import sys
import time

from benchmarks.pairs import Aim, Benchmark, Options, Row, paired_row

TORCH = ("-c", "import torch")
NOTHING = ("-c", "pass")
METRICS = {
    "import": (("-c", "import torch, mimkit"), TORCH),
    "training": (("-c", "import mimkit.recipes.build, mimkit.engine.loop"), TORCH),
    "help": (("-c", "from mimkit.cli import main; main(['--help'])"), NOTHING),
}


def seconds(arguments: tuple[str, ...]) -> float:
    """Wall time of one Python process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def rows(options: Options) -> list[Row]:
    made, rounds = [], options.laps(9)
    for metric, (ours, theirs) in METRICS.items():
        seconds(ours), seconds(theirs)  # files into memory, bytecode written
        pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
        against = "python -c pass" if theirs is NOTHING else "import torch"
        made.append(paired_row("import", metric, pairs, "s", {"against": against, "rounds": rounds}))
    return made


BENCHMARKS = {
    "import": Benchmark(
        "`import mimkit` and what training needs over `import torch`; `mimkit --help` in all",
        rows,
        {"import": Aim(0.3, "difference"), "help": Aim(0.5, "ours")},
    )
}
