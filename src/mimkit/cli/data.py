"""`mimkit data`: look at images before they cost a night of training."""

from pathlib import Path
from typing import Annotated

import typer

from mimkit.cli.text import Overrides, progress, table
from mimkit.errors import counted

Images = Annotated[
    str, typer.Argument(metavar="PATH", help="Folder, glob, list, table, tar shards or array stack.")
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Processes at work; as many as there are cores.")
]

SEVERITIES = ("error", "warning", "note")
SHOWN = 40  # rows that the terminal gets


def group() -> typer.Typer:
    """The verb with its four words."""
    app = typer.Typer(rich_markup_mode=None)
    app.callback()(_help)
    for name, word in (("check", check), ("stats", stats), ("prepare", prepare), ("show", show)):
        app.command(name=name)(word)
    return app


def _help() -> None:
    """Check, measure, shrink or show images.

    \b
    mimkit data check photos/
    mimkit data show photos/ --out sheet.png
    """


def check(
    path: Images,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every row there.")
    ] = None,
    jobs: Jobs = None,
    patch: Annotated[
        int, typer.Option("--patch", min=1, help="Patch side for the near-constant share.")
    ] = 16,
) -> None:
    """Find broken, duplicate and odd images.

    Missing and wrongly named ones too, and how many patches are nearly constant.

    \b
    mimkit data check photos/
    mimkit data check photos/ --json report.json
    """
    from mimkit import api

    with progress("checking") as report:
        found = api.data_check(path, json, jobs, patch, progress=report)
    worst_first = sorted(found.rows, key=lambda row: SEVERITIES.index(row.severity))
    rows = [(row.file, row.kind.replace("_", " "), row.severity, row.detail) for row in worst_first]
    if rows:
        typer.echo(table(("file", "problem", "severity", "detail"), rows[:SHOWN]))
        if len(rows) > SHOWN:
            typer.echo(f"... and {len(rows) - SHOWN} more; --json FILE writes all of them.")
        typer.echo()
    typer.echo(found.summary())
    if json is not None:
        typer.echo(f"Wrote {json}")


def stats(path: Images, jobs: Jobs = None) -> None:
    """Measure mean and deviation of each channel.

    On 2000 images at the most, drawn evenly.

    \b
    mimkit data stats photos/
    """
    from mimkit import api

    with progress("measuring") as report:
        result = api.data_stats(path, jobs, progress=report)
    unreadable = f", {result.unreadable} unreadable" if result.unreadable else ""
    other = f", {result.other} with other channels left out" if result.other else ""
    typer.echo(
        f"{counted(result.images, 'image')} measured{unreadable}{other}; "
        f"{counted(result.channels, 'channel')} of {result.bits} bits"
    )
    typer.echo(f"data.mean=[{', '.join(f'{value:.4f}' for value in result.mean)}]")
    typer.echo(f"data.std=[{', '.join(f'{value:.4f}' for value in result.std)}]")


def prepare(
    path: Images,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    short_side: Annotated[
        int, typer.Option("--short-side", min=1, help="Largest length of the shorter side in pixels.")
    ],
    shards: Annotated[
        int | None, typer.Option("--shards", min=1, help="Write so many tar shards, not files.")
    ] = None,
    quality: Annotated[int, typer.Option("--quality", min=1, max=100, help="Quality of JPEG files.")] = 92,
    jobs: Jobs = None,
) -> None:
    """Make a smaller copy for faster training.

    It can be stopped and started again.

    \b
    mimkit data prepare photos/ small/ --short-side 256
    mimkit data prepare photos/ shards/ --short-side 256 --shards 8
    """
    from mimkit import api

    with progress("preparing") as report:
        result = api.data_prepare(
            path, out, short_side, shards=shards, quality=quality, jobs=jobs, progress=report
        )
    kept = f", {result.kept} kept from before" if result.kept else ""
    typer.echo(
        f"{result.out}: {counted(result.written, 'image')} written{kept}, {len(result.skipped)} skipped."
    )
    for skip in result.skipped[:SHOWN]:
        typer.echo(f"  {skip.name}: {skip.reason}")
    if len(result.skipped) > SHOWN:
        typer.echo(f"  ... and {len(result.skipped) - SHOWN} more")


def show(
    source: Annotated[
        str, typer.Argument(metavar="PATH|RECIPE", help="Images, or a recipe with data.path=.")
    ],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture to write.")] = Path(
        "contact-sheet.png"
    ),
    images: Annotated[int, typer.Option("--images", min=1, help="How many crops.")] = 32,
) -> None:
    """Draw what the model is really fed.

    \b
    mimkit data show photos/
    mimkit data show mae_base data.path=photos/ --out sheet.png
    """
    from mimkit import api

    typer.echo(f"Wrote {api.data_show(source, overrides or [], out, images)}")
