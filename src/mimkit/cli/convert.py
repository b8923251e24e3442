"""`mimkit convert`: a file of weights under other names."""

from pathlib import Path
from typing import Annotated

import typer

from mimkit.cli.text import exported


def run(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A published file, a folder of weights, a run, `hf:FOLDER` or `timm:NAME`."
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A new folder; a new .pth file with --to published.")
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="FORM", help="mimkit, or published: as the MAE code names it.")
    ] = "mimkit",
) -> None:
    """Rewrite weights under other names.

    Nothing may be missing or left over.

    \b
    mimkit convert mae_pretrain_vit_base.pth mae_base
    mimkit convert mae_base mae_base.pth --to published
    """
    from mimkit import api

    for line in exported(api.convert(file, out, to)):
        typer.echo(line)
