"""`mimkit embed`: features of images in a file."""

from pathlib import Path
from typing import Annotated

import typer

from mimkit.cli.text import Overrides, progress


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A run folder, a published file, timm:NAME, hf:FOLDER or random:NAME."
        ),
    ],
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Folder, glob, list, table, tar shards or array stack.")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The file to write: .npy, .parquet or .safetensors.")
    ] = Path("features.npy"),
    pooling: Annotated[
        str | None,
        typer.Option(
            "--pooling",
            metavar="HOW",
            help="mean of the patches, or cls, the class token; a classifier's own if none is named.",
        ),
    ] = None,
    dense: Annotated[bool, typer.Option("--dense", help="The whole feature map, not pooled.")] = False,
    layer: Annotated[
        int | None,
        typer.Option("--layer", min=1, help="An inner layer, from 1; blocks count through all stages."),
    ] = None,
) -> None:
    """Write the features of images to a file.

    It can be stopped and started again, and shared out over processes with torchrun.

    \b
    mimkit embed runs/first photos/ --out photos.npy
    mimkit embed timm:vit_base_patch16_224.mae photos/ --out photos.parquet --pooling cls
    mimkit embed runs/first photos/ --out maps.safetensors --dense data.size=128
    """
    from mimkit import api

    with progress("embedding") as report:
        found = api.embed(model, path, out, overrides or [], pooling, dense, layer, progress=report)
    for line in found.lines():
        typer.echo(line)
