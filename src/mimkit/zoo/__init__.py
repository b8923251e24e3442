"""Published checkpoints in, models out. A family of files is one module of key rules (`zoo.rules`) and a row in this
table.
"""

import importlib
from collections.abc import Iterable

from mimkit.errors import DataError
from mimkit.zoo.rules import Family, covers, explained

__all__ = ["families", "publisher", "recognise"]

OWN_NAME = "mimkit"
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


def publisher(names: Iterable[str]) -> Family:
    """The published format that has a name for each of ours. Raises DataError where there is none."""
    known = list(names)
    published = [family for family in families() if family.name != OWN_NAME]
    found = next((family for family in published if covers(family, known)), None)
    if found is None:
        lone = [name for name in known if not any(covers(family, [name]) for family in published)]
        raise DataError(
            f"No published format has names for all of these tensors (such as {(lone or known)[0]}); "
            "write mimkit's own."
        )
    return found
