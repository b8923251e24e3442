"""`mimkit plan`: what a recipe costs on this machine."""

import typer

from mimkit.cli.text import Overrides, Source


def run(source: Source, overrides: Overrides = None) -> None:
    """Say what a recipe would take here.

    Builds the model and runs a step: parameters, memory, images a second, the time of the whole run.

    \b
    mimkit plan mae_base data.path=photos/
    mimkit plan mae_large train.precision=bf16
    """
    from mimkit import api

    for line in api.plan(source, overrides or []).lines():
        typer.echo(line)
