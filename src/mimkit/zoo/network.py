"""Whether the Hugging Face hub answers: asked once, briefly, before anything is downloaded from it.

Its client tries six times with longer and longer pauses for each file, and warns of each try: without a network that is
half a minute for one file and more than one file. So the question comes first, and where there is no answer the client
is told to look in its cache alone. Proxies, HF_ENDPOINT and HF_HUB_OFFLINE hold as they do for the client.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mimkit.errors import UserError

log = logging.getLogger(__name__)

SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # either keeps the hub's client from the network
PATIENCE = 5.0  # seconds for an answer; HF_HUB_ETAG_TIMEOUT, where it is set, for those whose way is longer


@contextmanager
def hub() -> Iterator[bool]:
    """What is asked of the hub inside comes from the cache alone where the hub does not answer.

    Gives whether it does.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    reached = not offline and _answers()
    constants.HF_HUB_OFFLINE = not reached
    try:
        yield reached
    finally:
        constants.HF_HUB_OFFLINE = offline


def unreached(name: str, remedy: str) -> UserError:
    """The sentence for `name`, which is neither in the cache nor to be had."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        switch = next((name for name in SWITCHES if os.environ.get(name)), SWITCHES[0])
        return UserError(
            f"{name} is not in the cache and the network is switched off by {switch}; unset it where there is one, or "
            f"{remedy}."
        )
    return UserError(
        f"{name} is not in the cache and the hub ({constants.ENDPOINT}) cannot be reached from here; {remedy}."
    )


def _answers() -> bool:
    """Whether the hub says anything at all. In a thread, since looking up a name knows no time limit."""
    from huggingface_hub import constants

    asked = "HF_HUB_ETAG_TIMEOUT" in os.environ
    patience = float(constants.HF_HUB_ETAG_TIMEOUT) if asked else PATIENCE
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(_asks(constants.ENDPOINT, patience)), daemon=True)
    thread.start()
    thread.join(patience + 1)
    return bool(answers and answers[0])


def _asks(endpoint: str, patience: float) -> bool:
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # its place in old versions too

    try:
        get_session().head(endpoint, timeout=patience)
    except (
        Exception
    ) as error:  # whatever its HTTP library, which has changed before, raises without a connection
        log.debug("%s does not answer: %s", endpoint, error)
        return False
    return True
