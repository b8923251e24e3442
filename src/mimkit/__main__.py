"""The way in, for `python -m mimkit` and for the `mimkit` script: a Ctrl-C while the rest is being imported, or when
all is said, leaves like any other. Nothing but this is loaded before it can be caught.
"""

import os
import signal
import sys

TRAINING = {"compare", "demo", "finetune", "plan", "pretrain"}  # what takes steps
WHOLE_HEAP = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"}


def main() -> int:
    """Run the command line; the exit code."""
    code = 130
    try:
        _keep_heap_whole()
        from mimkit.cli import main as command

        code = command()
    except KeyboardInterrupt:
        sys.stderr.write("mimkit: interrupted.\n")
    # the command has ended: who is tired of waiting for libraries to clean up gets its exit code at once
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: os._exit(code))
    return code


def _keep_heap_whole() -> None:
    """Where something is trained, start this process anew with glibc's caches of small blocks switched off.

    What lies in such a cache is free, yet holds its place between the activations of a step, so that these never become
    one piece in which gradients fit: a step on a CPU then holds a tenth more memory. glibc reads its settings only when
    a process starts. Settings of the user's own stay.
    """
    trains = len(sys.argv) > 1 and sys.argv[1] in TRAINING
    if trains and sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ.update(WHOLE_HEAP)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
