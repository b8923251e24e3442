"""Which of several processes says what went wrong."""

import pytest
from torch.distributed import TCPStore

from mimkit.engine import voices


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """The store of torchrun's agent, as the processes that it starts find it."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr(voices, "LINGER", 0.0)
    settings = {"TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for name, value in {**settings, "MASTER_PORT": str(store.port)}.items():
        monkeypatch.setenv(name, value)
    return store


def test_a_sentence_is_said_once_and_another_one_too(agent: TCPStore) -> None:
    assert not voices.others_have_said_why()
    assert [voices.first_to_say(text) for text in ("a", "a", "b", "a")] == [True, False, True, False]
    assert voices.others_have_said_why()


def test_a_warning_is_given_once_each_time_and_explains_no_failure(agent: TCPStore) -> None:
    said = [
        voices.first_to_warn(text, time) for text, time in (("a", 1), ("a", 1), ("a", 2), ("b", 1), ("a", 2))
    ]
    assert said == [True, False, True, True, False]
    assert voices.first_to_say("a") and not voices.first_to_say("a")


def test_a_warning_alone_is_no_reason_to_be_silent(agent: TCPStore) -> None:
    voices.first_to_warn("a", 1)
    assert not voices.others_have_said_why()


def test_after_a_restart_it_is_said_again(agent: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert voices.first_to_say("a")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not voices.others_have_said_why()
    assert voices.first_to_say("a")


def test_without_an_agent_or_with_one_that_has_gone_everybody_speaks(
    agent: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_PORT", "no number")
    assert voices.first_to_say("a") and voices.first_to_say("a")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    assert voices.first_to_say("a") and voices.first_to_say("a") and not voices.others_have_said_why()
