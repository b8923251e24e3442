"""`mimkit report`: one page about a run."""

from pathlib import Path
from typing import Annotated

import typer


def run(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, finished or still growing.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to write it; else into the run.")
    ] = None,
) -> None:
    """Make one page of a run.

    Losses beside trivial predictors, probes, where the time went, reconstructions.

    \b
    mimkit report runs/first
    """
    from mimkit import api

    typer.echo(f"Wrote {api.report(folder, out)}")
