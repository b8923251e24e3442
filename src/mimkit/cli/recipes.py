"""`mimkit recipes`: the packaged recipes, and one whole with a sentence for every field. Needs no torch."""

import typer

from mimkit.cli.text import Overrides, Source


def group() -> typer.Typer:
    """The verb with its two words."""
    app = typer.Typer(rich_markup_mode=None)
    app.callback(invoke_without_command=True)(_default)
    app.command(name="list")(list_recipes)
    app.command(name="show")(show)
    return app


def _default(context: typer.Context) -> None:
    """List the recipes, or show one whole.

    \b
    mimkit recipes
    mimkit recipes show mae_base
    """
    if context.invoked_subcommand is None:
        list_recipes()


def list_recipes() -> None:
    """List the packaged recipes.

    \b
    mimkit recipes list
    """
    from mimkit.recipes import load

    width = max(map(len, load.names()))
    for name in load.names():
        typer.echo(f"{name:<{width}}  {load.about(name).partition(chr(10))[0]}")


def show(source: Source, overrides: Overrides = None) -> None:
    """Print a recipe, a sentence above each field.

    \b
    mimkit recipes show mae_base
    mimkit recipes show mae_base train.epochs=200 > mine.yaml
    """
    from mimkit.recipes import load

    typer.echo(load.show(load.resolve(source, overrides or [])), nl=False)
