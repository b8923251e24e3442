"""How a task of a job of `--launch local` begins: it hears `kill` and Ctrl-C before anything slow is loaded.

torch takes two seconds to load, and until then a signal would end the task without a word. `launch` gives submitit
`python -u -m mimkit.verbs.task` as its Python; what submitit writes behind it is `-u -m MODULE FOLDER`.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

from mimkit.engine.command import resume_command
from mimkit.errors import Interrupted

RANKS = (
    "RANK",
    "SUBMITIT_LOCAL_GLOBALID",
    "SLURM_PROCID",
)  # the first is set when a task knows of the others


def is_first() -> bool:
    """Whether this task is the one that tells the story."""
    return next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0"


def leave_when_told(run: Path) -> None:
    """Until the engine listens there is nothing to save, so a task leaves at once; submitit would let SIGTERM pass.

    Under SLURM it should: whether the job ends or comes back is for SLURM to say.
    """

    def leave(number: int, frame: object) -> None:
        if is_first():
            os.write(2, f"Stopped, with nothing to save; continue with `{resume_command(run)}`.\n".encode())
        os._exit(Interrupted.exit_code)

    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        signal.signal(signal.SIGTERM, leave)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)


def main() -> None:
    """Run submitit's module as it asked for, listening."""
    *_, module, folder = sys.argv
    sys.argv[1:] = [folder]
    leave_when_told(Path(folder).parent)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
