"""`mimkit demo`: see that everything works here, on photographs that come with scikit-image."""

from pathlib import Path
from typing import Annotated

import typer


def run(
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the pictures and the run go.")
    ] = Path("demo"),
) -> None:
    """Try everything here, on real photographs.

    Pre-trains a small model, draws what it reconstructs and probes its features, in under four minutes.

    \b
    mimkit demo
    mimkit demo --out somewhere/else
    """
    from mimkit import api

    result = api.demo(out)
    for line in result.lines:
        typer.echo(line)
    for picture in result.pictures:
        typer.echo(f"  {picture}")
