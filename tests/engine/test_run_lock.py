"""One process trains a run: the lock on its folder."""

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mimkit.engine import run_lock
from mimkit.errors import UserError

HOLDER = """
import os, sys, time
from pathlib import Path
from mimkit.engine.run_lock import hold
with hold(Path(sys.argv[1])):
    heard, tells = os.pipe()
    child = os.fork()  # as a loader's worker is
    if child:
        os.read(heard, 1)
        print(os.getpid(), child, flush=True)
    else:
        os.write(tells, b".")  # it has closed what it took over
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "GRACE", 0.0)


def held_elsewhere(folder: Path) -> tuple[threading.Thread, threading.Event]:
    """A thread that holds the run until the event is set."""
    entered, leave = threading.Event(), threading.Event()

    def former() -> None:
        with run_lock.hold(folder):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=former)
    thread.start()
    entered.wait(30)
    return thread, leave


def test_a_holder_that_is_just_ending_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was killed is, until the kernel has taken it apart; nobody should have to ask twice."""
    thread, leave = held_elsewhere(tmp_path)
    monkeypatch.setattr(run_lock, "GRACE", 30.0)
    threading.Timer(0.3, leave.set).start()
    with run_lock.hold(tmp_path):
        assert leave.is_set()
    thread.join()


def test_a_second_holder_is_told_who_the_first_is_and_nothing_stays_behind(tmp_path: Path) -> None:
    with run_lock.hold(tmp_path):
        said = f"{tmp_path} is being trained by process {os.getpid()};"
        with pytest.raises(UserError, match=said), run_lock.hold(tmp_path):
            pytest.fail("two at once")
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())
    with run_lock.hold(tmp_path):
        pass


def test_a_killed_holder_holds_no_longer_though_its_workers_live(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    _, child = map(int, process.stdout.readline().split())
    with pytest.raises(UserError, match=f"process {process.pid}"), run_lock.hold(tmp_path):
        pytest.fail("two at once")
    process.kill()
    process.wait()
    try:
        assert (tmp_path / ".lock").exists()
        with run_lock.hold(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_holder_elsewhere_is_named_with_its_machine_and_job(tmp_path: Path) -> None:
    with run_lock.hold(tmp_path):
        (tmp_path / ".lock").write_text('{"pid": 7, "host": "node12", "job": "4711"}')
        with pytest.raises(UserError, match="process 7 on node12, SLURM job 4711"), run_lock.hold(tmp_path):
            pytest.fail("two at once")
        (tmp_path / ".lock").write_text('{"pid": 7, "ho')
        with pytest.raises(UserError, match="being trained by another process;"), run_lock.hold(tmp_path):
            pytest.fail("two at once")


def test_a_job_that_comes_back_waits_until_its_former_self_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    thread, leave = held_elsewhere(tmp_path)
    monkeypatch.setattr(run_lock, "PATIENCE", 0.0)
    with pytest.raises(UserError, match="4711"), run_lock.hold(tmp_path):
        pytest.fail("two at once")
    monkeypatch.setattr(run_lock, "PATIENCE", 30.0)

    def wait(_: float) -> None:  # it goes once it is waited for, and is gone at the second attempt
        leave.set()
        thread.join(30)

    monkeypatch.setattr(run_lock.time, "sleep", wait)
    with caplog.at_level(logging.INFO), run_lock.hold(tmp_path):
        assert caplog.text.count("waits") == 1
    thread.join()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_and_the_run_goes_on(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_lock.hold(tmp_path):
        pass
    assert caplog.text.count("no locks") == 1 and str(tmp_path) in caplog.text
    assert not list(tmp_path.iterdir())


def test_the_machine_is_named_only_where_it_is_another(tmp_path: Path) -> None:
    with run_lock.hold(tmp_path), pytest.raises(UserError) as raised, run_lock.hold(tmp_path):
        pytest.fail("two at once")
    assert socket.gethostname() not in str(raised.value)
