"""Where the metrics go besides metrics.jsonl: TensorBoard by default, wandb, mlflow or trackio when asked.

metrics.jsonl is the record; these are views of it. Each library is imported only by the writer that needs it, and its
absence is one sentence before the run starts.
"""

import importlib
import importlib.util
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mimkit.engine.run_folder import TENSORBOARD
from mimkit.errors import UserError, nearest

PROJECT = "mimkit"


class Writer(Protocol):
    """A place that takes a row of numbers for a step. Rows of a resumed run may come a second time."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check_writers(names: Sequence[str]) -> None:
    """Raise UserError for a writer that is not known or whose package is missing."""
    for name in names:
        if name not in WRITERS:
            raise UserError(
                f"Writer {name!r} is not known; use {', '.join(WRITERS)}.{nearest(name, WRITERS)}"
            )
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"The writer {name} needs the package {name}, which is not installed: "
                f"`pip install 'mimkit[{name}]'`, or leave it out of log.writers."
            )


def open_writers(names: Sequence[str], run: Path, step: int, config: Mapping[str, Any]) -> list[Writer]:
    """The writers by name for a run that continues after `step`; config is the recipe, shown beside the curves.

    Raises UserError as `check_writers` does.
    """
    check_writers(names)
    return [WRITERS[name](run, step, config) for name in names]


class TensorBoard:
    """Event files under run/tensorboard; what an earlier life of the run wrote after `step` is marked as void.

    One event carries all numbers of a step: torch's SummaryWriter makes one for each, ten times the work.
    """

    def __init__(self, run: Path, step: int, config: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._file = EventFileWriter(str(run / TENSORBOARD))
        self._file.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._file.add_event(
            self._event(wall_time=time.time(), step=step, summary=self._summary(value=values))
        )

    def close(self) -> None:
        self._file.close()


class WandB:
    """Weights & Biases; the run's id is the folder's name, so that a resumed run continues its curves."""

    def __init__(self, run: Path, step: int, config: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        name = re.sub(r"[^\w.-]", "-", run.resolve().name)  # an id may hold none of / \\ # ? % :
        self._run = wandb.init(
            project=PROJECT, id=name, name=name, dir=str(run), config=dict(config), resume="allow"
        )
        # wandb's own counter may not go back; ours does after a resume, so it is a number like the others
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **numbers})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow at its own tracking address; the id of its run is kept in the run folder for resuming."""

    def __init__(self, run: Path, step: int, config: Mapping[str, Any]) -> None:
        self._mlflow: Any = importlib.import_module("mlflow")
        note = run / "mlflow-run.txt"
        self._mlflow.set_experiment(PROJECT)
        known = note.read_text(encoding="utf-8").strip() if note.exists() else None
        active = self._mlflow.start_run(run_id=known, run_name=None if known else run.resolve().name)
        note.write_text(active.info.run_id, encoding="utf-8")
        if known is None:
            self._mlflow.log_dict(dict(config), "recipe.json")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(numbers), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class Trackio:
    """trackio, which keeps its runs in a local folder of its own."""

    def __init__(self, run: Path, step: int, config: Mapping[str, Any]) -> None:
        self._trackio: Any = importlib.import_module("trackio")
        self._trackio.init(project=PROJECT, name=run.resolve().name, config=dict(config), resume="allow")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._trackio.log(dict(numbers), step=step)

    def close(self) -> None:
        self._trackio.finish()


WRITERS: dict[str, Callable[[Path, int, Mapping[str, Any]], Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}
