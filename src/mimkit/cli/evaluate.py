"""`mimkit evaluate`: how good a classifier is, class by class."""

from pathlib import Path
from typing import Annotated

import typer

from mimkit.cli.text import Overrides, progress, table
from mimkit.errors import counted

SHOWN = 20  # classes that the terminal gets


def run(
    model: Annotated[
        str, typer.Argument(metavar="RUN", help="A fine-tuning run, or a file of weights with a head.")
    ],
    overrides: Overrides = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers there.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Where the pictures go; RUN/evaluation if none is named."
        ),
    ] = None,
) -> None:
    """Measure a classifier on labelled images.

    Accuracy, calibration, every class, what is taken for what, and the worst mistakes as pictures.

    \b
    mimkit evaluate runs/tuned                              on the images that the run held out
    mimkit evaluate runs/tuned data.path=test/ --json test.json
    mimkit evaluate mae_finetuned_vit_base.pth data.path=imagenet/val
    """
    from mimkit import api

    with progress("evaluating") as report:
        found = api.evaluate(model, overrides or [], json, out, progress=report)
    for line in found.lines():
        typer.echo(line)
    rows = sorted((row for row in found.rows if row.images), key=lambda row: row.accuracy)
    cells = [
        (
            row.name,
            row.images,
            f"{100 * row.accuracy:.1f}",
            f"{100 * row.precision:.1f}" if row.predicted else "-",
            f"{row.taken_for[0]} ({row.taken_for[1]})" if row.taken_for else "",
        )
        for row in rows[:SHOWN]
    ]
    typer.echo()
    typer.echo(table(("class", "images", "found %", "right %", "taken for"), cells, right=(1, 2, 3)))
    if len(rows) > SHOWN:
        typer.echo(f"... and {counted(len(rows) - SHOWN, 'better class')}; --json FILE writes all of them.")
    typer.echo()
    for path in [*found.pictures, *([] if json is None else [json])]:
        typer.echo(f"Wrote {path}")
