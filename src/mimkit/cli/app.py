"""The table of verbs and what stands in `mimkit --help`."""

from typing import Annotated, Any

import typer

from mimkit.cli import (
    analyze,
    compare,
    convert,
    data,
    demo,
    embed,
    evaluate,
    export,
    finetune,
    models,
    plan,
    predict,
    pretrain,
    probe,
    recipes,
    reconstruct,
    report,
)
from mimkit.version import __version__

HELP = """Pre-train a vision backbone on your own images, see what it learned, use it.

\b
mimkit demo                                 see that everything works here
mimkit pretrain photos/                     a recipe is chosen for you
mimkit pretrain mae_base data.path=photos/ train.epochs=200
mimkit finetune finetune_vit_base encoder.init=runs/first data.path=labelled/
mimkit recipes show mae_base                everything that key.path=value can say
"""
# Plain text: typer would hand help and errors to rich, which takes a quarter of a second to import.
PLAIN: dict[str, Any] = {
    "rich_markup_mode": None,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 100},
}


def command() -> Any:
    """The whole command line as one callable of typer."""
    app = typer.Typer(help=HELP, **PLAIN)
    app.callback()(_options)
    for verb in (
        demo,
        pretrain,
        finetune,
        evaluate,
        predict,
        embed,
        compare,
        reconstruct,
        probe,
        analyze,
        plan,
        report,
        convert,
        export,
    ):
        app.command(name=verb.__name__.rpartition(".")[2])(verb.run)
    app.add_typer(data.group(), name="data")
    app.command(name="models")(models.run)
    app.add_typer(recipes.group(), name="recipes")
    return typer.main.get_command(app)


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and leave.", callback=lambda v: _version(v), is_eager=True
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; it may stand anywhere.")] = False,
) -> None:
    """What stands before the verb: both options have done their work when this is called."""


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mimkit {__version__}")
        raise typer.Exit
