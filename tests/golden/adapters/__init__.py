"""Which adapter serves a case: the family with the longest name that the case's name begins with."""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch

from ..runner import Case, Outputs

MODULES = (
    "mae",
    "mae_parts",
    "mcmae",
    "mcmae_parts",
    "mcmae_transfer",
    "classify",
    "classify_parts",
    "analysis",
    "analysis_swin",
)


class Family(NamedTuple):
    """run: (case, dtype) -> outputs. float32: whether the outputs are worth comparing in single precision too."""

    run: Callable[[Case, torch.dtype], Outputs]
    float32: bool = False


@cache
def families() -> dict[str, Family]:
    tables: list[dict[str, Any]] = [
        importlib.import_module(f".{name}", __name__).FAMILIES for name in MODULES
    ]
    return {prefix: Family(*row) for table in tables for prefix, row in table.items()}


def find(name: str) -> Family | None:
    """The family of a case, None where nobody serves it."""
    fitting = [prefix for prefix in families() if name.startswith(prefix)]
    return families()[max(fitting, key=len)] if fitting else None
