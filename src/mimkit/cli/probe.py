"""`mimkit probe`: what frozen features are worth on a small labelled set."""

from pathlib import Path
from typing import Annotated

import typer

from mimkit.cli.text import Overrides


def run(
    model: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, a published file, or `timm:NAME`.")
    ],
    overrides: Overrides = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers there too.")
    ] = None,
) -> None:
    """Judge frozen features on labelled images.

    kNN and a linear probe, layer by layer, cross-validated.

    \b
    mimkit probe runs/first data.path=labelled/
    mimkit probe runs/first data.path=labels.csv --json probe.json

    `labelled/` has one sub-folder a class; a table has a column `label`.
    """
    from mimkit import api

    for line in api.probe(model, overrides or [], json).lines():
        typer.echo(line)
