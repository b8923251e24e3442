"""`mimkit report`: everything a run wrote down, on one page that needs nothing else to be read.

report.html holds its charts as inline SVG and its pictures as data, loads nothing, follows the reader's light or dark
scheme and prints. report.png beside it holds the same charts for a message or a README. Both are made from the files of
the run folder alone, so a run that is still going, was killed, or has three rows has a report too.
"""

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from mimkit import plots
from mimkit.analysis.findings import Finding, findings
from mimkit.engine.run_folder import METRICS, NONFINITE, SKIPPED, read_rows
from mimkit.errors import UserError
from mimkit.plots.curves import Series, finite
from mimkit.plots.run import last

TEMPLATE = "report.html.j2"
LISTED = 50  # rows of skipped images and of failed steps on the page
EARLIER = 3  # pictures of reconstructions besides the last
PICTURE_WIDTH = 1040  # pixels in report.png
LINE = 150  # characters of a sentence there


@dataclass(frozen=True)
class Run:
    """What a run folder holds: recipe as text and values, columns (name -> steps, values), rows of the diaries."""

    folder: Path
    recipe: Mapping[str, Any]
    recipe_text: str
    columns: dict[str, Series]
    skipped: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    samples: list[Path]

    @property
    def name(self) -> str:
        name = self.recipe.get("name")
        return f"{name}: {self.folder.name}" if name and name != self.folder.name else self.folder.name

    @property
    def epochs(self) -> float | None:
        train = self.recipe.get("train")
        planned = train.get("epochs") if isinstance(train, Mapping) else None
        return float(planned) if isinstance(planned, int | float) else None


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of the run folder `run`: an HTML page at `out` (None: run/report.html), a PNG beside it.

    Returns the page. Raises UserError when `run` holds no run, no finished step, or `out` cannot be written.
    """
    record = read_run(run)
    page = run / "report.html" if out is None else out / "report.html" if out.is_dir() else out
    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"A report is a page and a picture beside it; name {page.with_suffix('.html')} or a folder."
        )
    said = findings(record.columns, record.epochs, record.skipped, record.failures)
    panels = plots.run_panels(record.columns)
    lines = [
        line for finding in said for line in textwrap.wrap("• " + finding.text, LINE, subsequent_indent="  ")
    ]
    sample = _pixels(record.samples[-1]) if record.samples else None
    plots.save(plots.run_report(panels, record.name, lines, sample), page.with_suffix(".png"))
    try:
        page.write_text(_html(record, said, panels), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The report {page} cannot be written ({error.strerror}); choose another place."
        ) from error
    return page


def read_run(folder: Path) -> Run:
    """The files of a run; torn or missing ones are taken as they are. Raises UserError where there is no run."""
    if not (folder / METRICS).is_file():
        raise UserError(
            f"{folder} is no run folder: it holds no {METRICS}; name a folder that `mimkit pretrain` has written."
        )
    rows = [row for row in read_rows(folder / METRICS) if isinstance(row.get("step"), int | float)]
    if not rows:
        raise UserError(f"The run {folder} has no finished step yet; wait for its first one.")
    text, recipe = _recipe(folder / "recipe.yaml")
    return Run(
        folder.resolve(),
        recipe,
        text,
        columns_of(rows),
        read_rows(folder / SKIPPED),
        read_rows(folder / NONFINITE),
        sorted((folder / "samples").glob("*.png")),
    )


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Rows of metrics.jsonl -> each column's steps and values; null stands for a number that is not finite."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
                steps, values = found.setdefault(name, ([], []))
                steps.append(float(row["step"]))
                values.append(float("nan") if value is None else float(value))
    columns = {name: (np.array(steps), np.array(values)) for name, (steps, values) in found.items()}
    if "data_share" not in columns and {"data_seconds", "seconds"} <= set(columns):
        (places, waited), (_, whole) = columns["data_seconds"], columns["seconds"]
        if len(waited) == len(whole):
            columns["data_share"] = (places, waited / np.where(whole > 0, whole, np.nan))
    return columns


def _recipe(path: Path) -> tuple[str, Mapping[str, Any]]:
    """The recipe as it stands and as values; both empty where it is missing or no YAML."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return "", {}
    return text, values if isinstance(values, Mapping) else {}


def _html(run: Run, said: Sequence[Finding], panels: Sequence[plots.Panel]) -> str:
    from jinja2 import Environment
    from markupsafe import Markup

    template = (files("mimkit.analysis") / "templates" / TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        run=run,
        about=str(run.recipe.get("about", "")).strip(),
        tiles=_tiles(run.columns),
        findings=said,
        charts=[(panel, Markup(plots.svg(plots.panel_figure(panel), panel.name))) for panel in panels],
        samples=[(path.stem, _data(path)) for path in run.samples[-1:]],
        earlier=[(path.stem, _data(path)) for path in _spread(run.samples[:-1], EARLIER)],
        skipped=run.skipped[:LISTED],
        failures=run.failures[-LISTED:],
    )


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of the paths at even distances, the first among them."""
    return (
        [paths[place * len(paths) // count] for place in range(count)] if len(paths) > count else list(paths)
    )


def _tiles(columns: Mapping[str, Series]) -> list[tuple[str, str]]:
    """The few numbers on top: name and value."""
    wanted = (
        ("step", "step", ".0f"),
        ("epoch", "epoch", ".4g"),
        ("loss", "loss", ".4g"),
        ("learning rate", "lr", ".3g"),
    )
    tiles = [
        (title, format(last(columns[name]), form))
        for title, name, form in wanted
        if name in columns and len(finite(columns[name])[0])
    ]
    if "images_per_second" in columns:
        tiles.append(("images / s, median", f"{np.nanmedian(columns['images_per_second'][1]):.4g}"))
    return tiles


def _data(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _pixels(path: Path) -> np.ndarray:
    """(H, W, 3) in 0..1, no wider than the picture it goes into."""
    from PIL import Image

    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    if image.width > PICTURE_WIDTH:
        image = image.resize(
            (PICTURE_WIDTH, round(image.height * PICTURE_WIDTH / image.width)), Image.Resampling.LANCZOS
        )
    return np.asarray(image) / 255
