"""A forward pass that rests after each block, so that many of them go through a model side by side.

CKA compares all images of its estimator's block, layer by layer. With passes that run to their end one after the other,
the features of all layers of all images must be held (1.8 GB for 256 images of ViT-B at 224 px); passes that wait for
each other hold those of one layer. Each runs in a thread of its own, since nothing else can pause in the middle of
somebody else's `forward`, but never two at once: a pass moves on when its next output is asked for.
"""

from collections.abc import Callable, Generator, Sequence
from queue import SimpleQueue
from threading import Semaphore, Thread, current_thread
from typing import Any

import torch
from torch import Tensor, nn

Output = tuple[str, Tensor]


class _Abandoned(BaseException):
    """Ends a pass that nobody wants to see the end of."""


def walk(model: nn.Module, names: Sequence[str], run: Callable[[], Any]) -> Generator[Output, None, None]:
    """(name, output) of the modules `names` of `model`, in order of computation, as `run()` (a forward pass, without
    gradients) gets to them. What `run` raises is raised here. Closing the iterator ends the pass where it is.
    """
    outputs: SimpleQueue[Output | BaseException | None] = SimpleQueue()
    go, wanted = Semaphore(0), True

    def rest(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if current_thread() is thread:  # another pass goes through the same modules
                outputs.put((name, (output[0] if isinstance(output, tuple) else output).detach()))
                go.acquire()
                if not wanted:
                    raise _Abandoned

        return hook

    def forward() -> None:
        go.acquire()
        try:
            with torch.no_grad():  # a thread begins with gradients
                if wanted:
                    run()
            outputs.put(None)
        except BaseException as error:
            outputs.put(error)

    modules = dict(model.named_modules())
    thread = Thread(target=forward, daemon=True)
    thread.start()
    handles = [modules[name].register_forward_hook(rest(name)) for name in names]
    try:
        while True:
            go.release()
            found = outputs.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                return
            yield found
    finally:
        wanted = False
        go.release()
        thread.join()
        for handle in handles:
            handle.remove()
