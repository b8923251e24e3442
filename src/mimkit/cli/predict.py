"""`mimkit predict`: what a classifier says of images."""

from pathlib import Path
from typing import Annotated

import typer

from mimkit.cli.text import Overrides, progress


def run(
    model: Annotated[
        str, typer.Argument(metavar="RUN", help="A fine-tuning run, or a file of weights with a head.")
    ],
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="An image, a folder, a glob, a list, tar shards.")
    ],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The JSON lines to write.")] = Path(
        "predictions.jsonl"
    ),
    sheet: Annotated[
        Path, typer.Option("--sheet", metavar="FILE", help="The contact sheet to write.")
    ] = Path("predictions.png"),
    top: Annotated[int, typer.Option("--top", min=1, help="Classes of each image in the JSON lines.")] = 5,
) -> None:
    """Classify images without labels.

    \b
    mimkit predict runs/tuned photo.jpg
    mimkit predict runs/tuned photos/ --out photos.jsonl --top 3
    """
    from mimkit import api

    with progress("predicting") as report:
        found = api.predict(model, path, overrides or [], out, sheet, top, progress=report)
    for line in found.lines():
        typer.echo(line)
    typer.echo(f"Wrote {found.out} and {found.sheet}")
