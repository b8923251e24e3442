"""`mimkit pretrain`: from images to a run folder."""

from typing import Annotated

import typer

from mimkit.cli.text import Launch, Overrides, tell


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
    launch: Launch = None,
) -> None:
    """Pre-train an encoder on unlabelled images.

    \b
    mimkit pretrain photos/                                         a recipe is chosen, and why is said
    mimkit pretrain mae_base data.path=photos/ train.epochs=200     a recipe with changes
    mimkit pretrain runs/mae_base-20260101-120000 --resume          go on after a stop
    torchrun --nproc-per-node 8 -m mimkit pretrain mae_base data.path=photos/
    mimkit pretrain mae_base data.path=photos/ --launch slurm nodes=4 gpus=8 time=24:00:00 partition=gpu
    """
    from mimkit import api

    words = overrides or []
    if launch is None:
        tell(api.pretrain(source, words, resume=resume).message)
    else:
        typer.echo(api.launch("pretrain", source, words, launch, resume).message)
