"""`mimkit compare`: does my pre-training help?"""

import re
from pathlib import Path
from typing import Annotated

import typer

from mimkit.cli.text import numbers

OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)+=")


def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL... KEY.PATH=VALUE", help="More starts, and overrides of the recipe."),
    ] = None,
    inits: Annotated[
        list[str] | None,
        typer.Option(
            "--inits",
            metavar="MODEL",
            help="A start: random, a run folder, a published file, timm:NAME or hf:FOLDER; more may follow it.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FOLDER", help="Where everything is kept; the same command goes on."),
    ] = Path("compare"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds, from 0.")] = 3,
    shares: Annotated[
        str, typer.Option("--shares", metavar="A,B,...", help="Shares of the labels.")
    ] = "0.01,0.1,1",
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", metavar="RECIPE", help="How to fine-tune; that of the encoder if none is named."
        ),
    ] = None,
) -> None:
    """Say which start of an encoder is best for your labels.

    Each one is probed and fine-tuned under equal settings at several shares of the labels, with several seeds.

    \b
    mimkit compare --inits random runs/first data.path=labelled/
    mimkit compare --inits random runs/first timm:vit_base_patch16_224.mae data.path=train/ data.val=val/
    mimkit compare --inits random runs/first data.path=labelled/ train.epochs=30 --seeds 5 --out compare-30
    """
    from mimkit import api

    overrides = [word for word in words or [] if OVERRIDE.match(word)]
    starts = [*(inits or []), *(word for word in words or [] if not OVERRIDE.match(word))]
    found = api.compare(starts, overrides, out, seeds, numbers(shares, "--shares"), recipe)
    for line in found.lines():
        typer.echo(line)
    typer.echo(f"Wrote {out / 'compare.png'} and {out / 'compare.json'}")
