"""The way in, for `python -m mimkit` and for the `mimkit` script: a Ctrl-C while the rest is being imported, or when
all is said, leaves like any other. Nothing but this is loaded before it can be caught.
"""

import os
import signal
import sys


def main() -> int:
    """Run the command line; the exit code."""
    code = 130
    try:
        from mimkit.cli import main as command

        code = command()
    except KeyboardInterrupt:
        sys.stderr.write("mimkit: interrupted.\n")
    # the command has ended: who is tired of waiting for libraries to clean up gets its exit code at once
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: os._exit(code))
    return code


if __name__ == "__main__":
    sys.exit(main())
