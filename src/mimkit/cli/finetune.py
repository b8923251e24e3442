"""`mimkit finetune`: from an encoder and labelled images to a classifier."""

from typing import Annotated

import typer

from mimkit.cli.text import Launch, Overrides, tell


def run(
    source: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file, or a run folder with --resume.")
    ],
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run folder RECIPE where it stopped.")
    ] = False,
    launch: Launch = None,
) -> None:
    """Train an encoder for a task on labelled images.

    The whole encoder, its last blocks, or a linear layer on what it has learned.

    \b
    mimkit finetune finetune_vit_base encoder.init=runs/first data.path=train/ data.val=val/
    mimkit finetune linear_probe_vit_base encoder.init=timm:vit_base_patch16_224.mae data.path=labels.csv
    mimkit finetune finetune_vit_tiny encoder.init=runs/first data.path=labelled/ data.shots=5
    mimkit finetune runs/tuned --resume
    mimkit finetune finetune_vit_base encoder.init=runs/first data.path=train/ --launch slurm nodes=2 gpus=8

    `train/` has one sub-folder a class; a table has a column `label`.
    """
    from mimkit import api

    words = overrides or []
    if launch is None:
        tell(api.finetune(source, words, resume=resume).message)
    else:
        typer.echo(api.launch("finetune", source, words, launch, resume).message)
