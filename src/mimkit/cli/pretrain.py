"""`mimkit pretrain`: from images to a run folder."""

from typing import Annotated

import typer

from mimkit.cli.text import Overrides


def run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Images (a recipe is chosen), a recipe, a YAML file or a run folder."
        ),
    ],
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run folder SOURCE where it stopped.")
    ] = False,
) -> None:
    """Pre-train an encoder on unlabelled images.

    \b
    mimkit pretrain photos/                                         a recipe is chosen, and why is said
    mimkit pretrain mae_base data.path=photos/ train.epochs=200     a recipe with changes
    mimkit pretrain runs/mae_base-20260101-120000 --resume          go on after a stop
    torchrun --nproc-per-node 8 -m mimkit pretrain mae_base data.path=photos/
    """
    from mimkit import api

    typer.echo(api.pretrain(source, overrides or [], resume=resume).message)
