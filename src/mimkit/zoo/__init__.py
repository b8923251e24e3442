"""Published checkpoints in, models out. A family of files is one module of key rules (`zoo.rules`) and a row in this
table.
"""

import importlib
from collections.abc import Iterable

from mimkit.zoo.rules import Family, explained

__all__ = ["families", "recognise"]

FAMILIES = ("mimkit.zoo.mcmae", "mimkit.zoo.mae")


def families() -> list[Family]:
    """Every family of files that can be read, the most particular ones first."""
    return [family for module in FAMILIES for family in importlib.import_module(module).FAMILIES]


def recognise(names: Iterable[str]) -> tuple[Family, float]:
    """The family that explains most of the names of a file's tensors, and the share that it explains."""
    known = list(names)
    shares = [(explained(family, known), family) for family in families()]
    share, best = max(shares, key=lambda row: row[0])
    return best, share
