"""Without a network, names of the hub end in one sentence, soon; with one, and with a cache, they work as before."""

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import mimkit
from mimkit.errors import UserError
from mimkit.zoo import network

from .small_run import small_run

constants = pytest.importorskip("huggingface_hub.constants")
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that answers, if only that there is no such page."""

    class Nothing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        ("timm:resnet10t.c3_in1k", "give its path, or use random:timm:resnet10t for random weights"),
        ("hf:somebody/vit", "download the folder where there is a network and give hf:FOLDER"),
    ],
)
def test_a_name_that_cannot_be_fetched_ends_in_one_sentence_without_retries(
    model: str, remedy: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as caught:
        mimkit.load(model)
    said = str(caught.value)
    assert said.startswith(f"{model} is not in the cache and the hub ({NOWHERE}) cannot be reached")
    assert said.endswith(f"{remedy}.") and "\n" not in said
    assert capfd.readouterr().err == "" and constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_who_switched_the_network_off_is_reminded_of_how(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for switch in network.SWITCHES:
        monkeypatch.delenv(switch, raising=False)
    monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match=f"the network is switched off by {name}; unset it .*, or download"):
        mimkit.load("timm:resnet10t.c3_in1k")
    assert constants.HF_HUB_OFFLINE is True


def test_what_is_in_the_cache_needs_no_network(tmp_path: Path) -> None:
    run, _ = small_run(tmp_path / "run")
    folder = mimkit.export(run, "hf", tmp_path / "out", decoder=False).path
    kept = tmp_path / "cache" / "models--somebody--vit"
    shutil.copytree(folder, kept / "snapshots" / ("0" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0" * 40)
    assert mimkit.load("hf:somebody/vit").recipe.data.mean == (0.4, 0.5, 0.6)


def test_a_hub_that_answers_is_asked_as_before(answering: None) -> None:
    with network.hub() as reached:
        assert reached and constants.HF_HUB_OFFLINE is False
    with pytest.raises(UserError, match="could not be fetched"):
        mimkit.load("hf:somebody/vit")
