"""`mimkit reconstruct`: a picture of what a model makes of hidden patches."""

from pathlib import Path
from typing import Annotated

import typer

from mimkit.cli.text import numbers


def run(
    model: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, or a published file with a decoder.")
    ],
    path: Annotated[
        str | None,
        typer.Argument(metavar="PATH", help="Images; those that the run was trained on if none are named."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture to write.")] = Path(
        "reconstruction.png"
    ),
    ratios: Annotated[
        str | None,
        typer.Option(
            "--ratios",
            metavar="A,B,...",
            help="Mask ratios, a panel each; 0.5,0.75,0.9 if none are named, as far as patches suffice.",
        ),
    ] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="How many images, a row each.")] = 8,
    features: Annotated[
        bool, typer.Option("--features", help="Draw feature maps at every stride instead; needs no decoder.")
    ] = False,
    beside: Annotated[
        list[str] | None,
        typer.Option("--beside", metavar="MODEL", help="With --features: another model for the same images."),
    ] = None,
) -> None:
    """Draw what a model makes of hidden patches.

    \b
    mimkit reconstruct runs/first
    mimkit reconstruct runs/first photos/ --out picture.png --ratios 0.6,0.75
    mimkit reconstruct runs/mcmae photos/ --features --beside runs/mae --out features.png
    """
    from mimkit import api
    from mimkit.errors import UserError

    if beside and not features:
        raise UserError("--beside sets feature maps beside each other; add --features.")
    if features:
        typer.echo(f"Wrote {api.feature_maps([model, *(beside or ())], path, out, images)}")
        return
    shares = None if ratios is None else numbers(ratios, "--ratios")
    typer.echo(f"Wrote {api.reconstruct(model, path, out, shares, images)}")
