"""What the verbs share: arguments that several take, tables, progress."""

import math
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from mimkit.errors import UserError

if TYPE_CHECKING:
    from mimkit.verbs.exchange import Exported

Source = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's name, a YAML file or a run folder.")
]


def _no_file(context: typer.Context, words: list[str] | None) -> list[str] | None:
    """The overrides; a word that is none, of a verb that takes `--out`, is the file to write said in the wrong way."""
    bare = [word for word in words or [] if "=" not in word]
    if bare and takes_out(context.command):
        hint = f"what to write is named with --out {bare[0]}"
        if len(bare) > 1:
            hint = "a pattern stands in quotation marks, as 'photos/*.jpg', else the shell spells it out"
        raise UserError(f"{bare[0]!r} stands where overrides do (key.path=value); {hint}.")
    return words


def takes_out(command: object) -> bool:
    """Whether a verb has the option `--out`."""
    return any("--out" in parameter.opts for parameter in getattr(command, "params", ()))


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY.PATH=VALUE",
        help="Overrides; `mimkit recipes show NAME` lists the keys.",
        callback=_no_file,
    ),
]
Launch = Annotated[
    str | None,
    typer.Option(
        "--launch",
        metavar="CLUSTER",
        help="Run it as a job: slurm (or local, on this machine), with nodes= gpus= tasks= cpus= mem= time= "
        "partition= account= qos= constraint= among the overrides.",
    ),
]


def tell(text: str) -> None:
    """Print `text`, of several processes by the first alone."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(text)


def table(head: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Plain columns under their heads, two blanks apart; `right` names the columns that are aligned to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(columns_of, column)) for column in zip(*cells, strict=True)]

    def padded(cell: str, place: int) -> str:
        blanks = " " * (widths[place] - columns_of(cell))
        return blanks + cell if place in right else cell + blanks

    lines = ["  ".join(padded(cell, place) for place, cell in enumerate(row)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def columns_of(text: str) -> int:
    """Columns that a terminal takes for `text`: two for wide letters (Chinese, ...), none for combining marks."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def numbers(text: str, option: str) -> list[float]:
    """The numbers in "0.5,0.75,0.9". Raises UserError that names the option."""
    try:
        found = [float(part) for part in text.split(",")]
        if all(map(math.isfinite, found)):
            return found
        raise ValueError
    except ValueError:
        raise UserError(
            f"{option}: {text!r} given; allowed: numbers with commas between them, as 0.5,0.75."
        ) from None


def exported(written: "Exported") -> Iterator[str]:
    """What an export or a conversion wrote, and how to load it."""
    if written.report is not None:
        yield str(written.report)
    yield f"Wrote {written.path}" + (f": {', '.join(written.files)}" if written.path.is_dir() else "")
    for note in written.notes:
        yield f"Mind: {note}"
    if written.use:
        yield ""
        yield "Load it with:"
        yield ""
        yield from (f"    {line}".rstrip() for line in written.use.splitlines())


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal while something counts up: the caller reports (done, total).

    Nothing is drawn where standard error is no terminal.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
