"""`mimkit export`: a model for other libraries."""

from pathlib import Path
from typing import Annotated

import typer

from mimkit.cli.text import exported


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run folder, a file or folder of weights, `hf:FOLDER` or `timm:NAME`."
        ),
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="safetensors, timm, hf or onnx.")],
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="The folder to write; a new one.")],
    decoder: Annotated[
        bool, typer.Option("--decoder/--no-decoder", help="Take the decoder along where the format holds it.")
    ] = True,
) -> None:
    """Write a model for other libraries.

    With mean and deviation of the data and a model card.

    \b
    mimkit export runs/first --to timm --out exported
    mimkit export runs/first --to onnx --out program
    """
    from mimkit import api

    for line in exported(api.export(model, to, out, decoder)):
        typer.echo(line)
