"""Who of several processes tells a person what goes wrong: each sentence once, by the first that has it to say.

Under torchrun all of them meet the same mistake, some before they have joined each other. What they share from the
beginning is the store in which torchrun's agent brought them together; it counts who has said what. Elsewhere
(submitit keeps an output of each task) everybody speaks.
"""

import hashlib
import os
import time
from datetime import timedelta

PATIENCE = timedelta(seconds=10)  # for the store to answer
LINGER = (
    1.0  # seconds: torchrun ends all processes as soon as one has gone, also the one that is about to speak
)
ANY = "any"


def several() -> bool:
    """Whether torchrun has started this process together with others."""
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return shared and int(os.environ.get("WORLD_SIZE", "1")) > 1


def first_to_say(sentence: str) -> bool:
    """Whether no other process has said `sentence`; who may not waits a moment for the one that does."""
    count = _count(_digest(sentence), 1)
    _count(ANY, 1)
    if count > 1:
        time.sleep(LINGER)
    return count <= 1


def first_to_warn(sentence: str, time: int) -> bool:
    """Whether no other process has said `sentence` for the `time`-th time: what all of them meet is said once, what one
    meets again is said again.
    """
    return _count(_digest(f"{time} {sentence}"), 1) <= 1


def others_have_said_why() -> bool:
    """Whether another process has told its mistake, of which what happened here (it no longer answers) follows."""
    if several():
        time.sleep(LINGER)  # the connection breaks before the other one speaks
    return _count(ANY, 0) > 0


def _count(name: str, more: int) -> int:
    """How often `name` has been counted, with `more`; 0 where nobody counts, or no longer."""
    if not several():
        return 0
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=PATIENCE)
        return int(store.add(_key(name), more))
    except (KeyError, ValueError, RuntimeError):
        return 0


def _digest(sentence: str) -> str:
    return hashlib.blake2b(sentence.encode(errors="replace")).hexdigest()


def _key(name: str) -> str:
    """Of this attempt: after a restart by torchrun everything may be said again."""
    return f"mimkit/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"
