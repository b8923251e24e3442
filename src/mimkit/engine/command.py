"""How messages tell a person to go on with a run: by the verb that began it, which the run's recipe gives away."""

import re
import shlex
from pathlib import Path

RECIPE = "recipe.yaml"
TASK = re.compile(r"^task:\s*$", re.MULTILINE)  # the section that recipes for fine-tuning have, and no others


def resume_command(run: Path) -> str:
    """`mimkit finetune RUN --resume` for a run whose recipe has a task, else `mimkit pretrain RUN --resume`."""
    recipe = run / RECIPE
    tuned = recipe.is_file() and TASK.search(recipe.read_text(encoding="utf-8", errors="replace"))
    return f"mimkit {'finetune' if tuned else 'pretrain'} {shlex.quote(str(run))} --resume"
