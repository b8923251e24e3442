"""Pre-training methods by name. A new one is a file here and a row in this table."""

import importlib
from typing import Any

from mimkit.encoders.base import Encoder
from mimkit.errors import UserError
from mimkit.methods.base import Method

__all__ = ["Method", "build"]

METHODS = {"mae": "mimkit.methods.mae", "mcmae": "mimkit.methods.mcmae"}


def build(name: str, encoder: Encoder, **options: Any) -> Method:
    """The method `name` around `encoder`; `options` are its own class's. Raises UserError for an unknown name."""
    if name not in METHODS:
        raise UserError(f"Unknown method {name!r}; known are {', '.join(METHODS)}.")
    return importlib.import_module(METHODS[name]).build(encoder, **options)
