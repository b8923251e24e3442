"""TensorBoard and the optional writers behind one small interface."""

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mimkit.engine.records import Records
from mimkit.engine.writers import check_writers, open_writers
from mimkit.errors import UserError


def scalars(run: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_rows_arrive_in_tensorboard_and_those_behind_a_rollback_are_void(tmp_path: Path) -> None:
    records = Records(tmp_path, 0, ("tensorboard",), {})
    for step in (1, 2, 3):
        records.row({"step": step, "loss": step / 2})
    records.rewind(1)
    records.row({"step": 2, "loss": 9.0})
    records.close()
    assert scalars(tmp_path, "loss") == [(1, 0.5), (2, 9.0)]


def test_an_unknown_writer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"'tensorbord' is not known.*Did you mean 'tensorboard'"):
        check_writers(["tensorbord"])


def test_a_missing_package_is_one_sentence_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs the package wandb.*pip install 'mimkit\[wandb\]'"):
        check_writers(["wandb"])


class Recorder(ModuleType):
    """Stands in for a tracking library: remembers each call."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append((name, arguments, named))
            return SimpleNamespace(
                log=lambda numbers: self.calls.append(("log", (numbers,), {})),
                define_metric=lambda *a, **k: None,
                finish=lambda: self.calls.append(("finish", (), {})),
                info=SimpleNamespace(run_id="abc"),
            )

        return call


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_each_optional_writer_gets_the_numbers_with_their_step_and_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    library = Recorder(name)
    monkeypatch.setitem(sys.modules, name, library)
    run = tmp_path / "mae-tiny"
    run.mkdir()
    (writer,) = open_writers([name], run, 0, {"train": {"epochs": 3}})
    writer.write(7, {"loss": 0.5})
    writer.close()
    said = str(library.calls)
    assert "'loss': 0.5" in said and "7" in said and "mae-tiny" in said and "epochs" in said
    assert library.calls[-1][0] in ("finish", "end_run")


def test_a_resumed_run_keeps_its_identity_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Recorder("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", library)
    for _ in range(2):
        open_writers(["mlflow"], tmp_path, 0, {})
    started = [named for name, _, named in library.calls if name == "start_run"]
    assert [named["run_id"] for named in started] == [None, "abc"]
