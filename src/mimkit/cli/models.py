"""`mimkit models`: the encoders and what they cost."""

import typer

from mimkit.cli.text import table


def run() -> None:
    """List the encoders.

    Parameters, multiply-adds of one image of 224 pixels, strides, paper.

    \b
    mimkit models
    """
    from mimkit import api

    rows = [
        (
            row.name,
            "x".join(map(str, row.patch)),
            f"{row.params / 1e6:.1f} M",
            f"{row.gmacs:.1f}",
            " ".join(
                "x".join(map(str, level)) if isinstance(level, tuple) else str(level) for level in row.levels
            ),
            row.paper,
        )
        for row in api.models()
    ]
    head = ("encoder", "patch", "parameters", "GMACs", "strides", "paper")
    typer.echo(table(head, rows, right=(2, 3)))
    typer.echo("\nAny timm model gives features too: timm:resnet50, timm:vit_small_patch16_224.")
