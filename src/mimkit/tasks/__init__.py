"""Downstream tasks by name. A new one is a file (or folder) here and a row in this table."""

import importlib
from typing import Any

from mimkit.encoders.base import Encoder
from mimkit.errors import UserError, nearest
from mimkit.tasks.base import Metric, Task, evaluate

__all__ = ["Metric", "Task", "build", "evaluate", "names"]

TASKS = {"classify": "mimkit.tasks.classify"}


def names() -> list[str]:
    """The tasks that mimkit has."""
    return list(TASKS)


def build(name: str, encoder: Encoder, **options: Any) -> Task:
    """The task `name` on `encoder`, its head with random weights; `options` are those of the task's own `build`.

    Raises UserError for an unknown name.
    """
    if name not in TASKS:
        raise UserError(f"Unknown task {name!r}; known are {', '.join(TASKS)}.{nearest(name, TASKS)}")
    return importlib.import_module(TASKS[name]).build(encoder, **options)
