"""report.html of `mimkit analyze`: one file that loads nothing, with charts as inline SVG, pictures and maps as data.

It opens by double click, follows the reader's light or dark scheme, prints, and fits a phone. The script beside the
template says what a mark is when it is pointed at or reached with the arrow keys, and draws the attention map of the
patch that is clicked.
"""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from mimkit import plots
from mimkit.analysis.headline import headline
from mimkit.analysis.inside import Study
from mimkit.analysis.sections import Item, Section, sections
from mimkit.analysis.viewer import picture
from mimkit.errors import counted
from mimkit.plots.charts import SHALLOW_TO_DEEP
from mimkit.plots.curves import CYCLE
from mimkit.version import __version__

TEMPLATES = files("mimkit.analysis") / "templates"


@dataclass(frozen=True)
class Panel:
    """One chart of a page: whose it is, the SVG, what a screen reader says in its place, and its width in pixels."""

    title: str
    svg: str
    alt: str
    width: int


@dataclass(frozen=True)
class Shown:
    """A figure as the page holds it: the panels of a chart, or the pictures of a sheet row by row."""

    figure: plots.Chart | plots.Sheet
    panels: list[Panel]
    cells: list[list[str]]


def render(study: Study) -> str:
    """The page as text."""
    from jinja2 import Environment, select_autoescape
    from markupsafe import Markup

    environment = Environment(
        autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True
    )
    head, rows = headline(study)
    text = environment.from_string(_read("analyze.html.j2")).render(
        study=study,
        counted=counted,
        title="What did " + _and([model.label for model in study.models]) + " learn?",
        style=Markup(_read("analyze.css")),
        script=Markup(_read("analyze.js")),
        head=head,
        rows=rows,
        sections=[(section, list(_items(section))) for section in sections(study)],
        viewer=Markup(_json(study.viewer)) if study.viewer else None,
        viewer_mib=len(json.dumps(study.viewer)) / 2**20,
        version=__version__,
        size="{SIZE}",
    )
    return text.replace("{SIZE}", f"{len(text.encode()) / 2**20:.1f} MiB")


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that cannot close the element that it stands in."""
    return json.dumps(value).replace("<", "\\u003c")


def _items(section: Section) -> Iterator[tuple[Item, list[Shown]]]:
    """Each item with its figures."""
    for item in section.items:
        yield item, [_shown(figure) for figure in item.figures]


def _shown(figure: plots.Chart | plots.Sheet) -> Shown:
    if isinstance(figure, plots.Chart):
        return Shown(figure, list(_panels(figure)), [])
    return Shown(figure, [], [[_cell(cell, figure.crisp) for cell in row] for row in figure.cells])


def _panels(chart: plots.Chart) -> Iterator[Panel]:
    from markupsafe import Markup

    for number, panel in enumerate(chart.panels):
        figure, tips = plots.panel_of(panel)
        name = f"{chart.name}-{number}"
        text = plots.with_tips(plots.svg(figure, name), name, tips)
        for kind, colours in (("line", CYCLE), ("depth", SHALLOW_TO_DEEP)):
            for place, colour in enumerate(colours):
                text = text.replace(colour, f"var(--{kind}-{place})")
        yield Panel(panel.title, Markup(text), _alt(chart, panel, tips), round(110 * panel.size[0]))


def _alt(chart: plots.Chart, panel: plots.ChartPanel, tips: plots.Tips) -> str:
    """What the chart says, in words: its title, and the first and last of its means."""
    title = f"{chart.title}, {panel.title}" if panel.title else chart.title
    said = tips.get("mean") or [text for group in tips.values() for text in group]
    ends = [said[0], said[-1]] if len(said) > 1 else said
    return ". ".join([title, *ends, *(["Arrow keys read every mark"] if said else [])]) + "."


def _cell(cell: np.ndarray | None, crisp: bool) -> str:
    """A picture as data: squares stay squares as PNG, photographs become JPEG; "" for an empty place."""
    if cell is None:
        return ""
    return _png(cell) if crisp and max(cell.shape[:2]) <= 64 else picture(cell, 224)


def _png(image: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.round(255 * np.clip(np.nan_to_num(image), 0, 1)).astype(np.uint8)).save(
        buffer, format="PNG", optimize=True
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _and(words: list[str]) -> str:
    *some, last = words
    return f"{', '.join(some)} and {last}" if some else last
