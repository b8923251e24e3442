"""Stopping on request."""

import os
import signal
import threading

import pytest

from mimkit.engine import stop as stop_module
from mimkit.engine.stop import Stop


def test_the_first_signal_asks_and_its_echo_changes_nothing() -> None:
    with Stop() as stop:
        assert not stop.asked()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # as when a terminal and torchrun both pass it on
        assert stop.asked()


def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_module, "ECHO", -1.0)
    with Stop():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_handlers_from_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stop():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_an_ignored_ctrl_c_stays_ignored_and_sigterm_asks_all_the_same() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.asked()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.asked() and stop.heard == {signal.SIGTERM}
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_it_is_just_never_asked() -> None:
    answers: list[bool] = []

    def work() -> None:
        with Stop() as stop:
            answers.append(stop.asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
