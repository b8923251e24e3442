"""The folder of an analysis: whose it may be, the numbers as tables, the figures as files.

A folder that does not exist or is empty is taken; one that holds an earlier analysis (its numbers.json says so) is
written anew; any other is refused, so that nobody's files are lost.
"""

import csv
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from mimkit import plots
from mimkit.analysis import page
from mimkit.analysis.headline import headline
from mimkit.analysis.inside import Study
from mimkit.analysis.sections import sections
from mimkit.errors import UserError
from mimkit.verbs.files import replacing, write_json, writing
from mimkit.version import __version__

log = logging.getLogger(__name__)

NUMBERS, REPORT, FIGURES = "numbers.json", "report.html", "figures"
MAKER = "mimkit analyze"
NO_PARQUET = "numbers.parquet needs pyarrow and was not written; for it: pip install 'mimkit[tables]'."


def claim(out: Path) -> None:
    """Take the folder `out` before the work begins. Raises UserError where it holds something else or cannot be
    written.
    """
    try:
        if out.is_dir() and any(out.iterdir()) and not _is_ours(out / NUMBERS):
            raise UserError(
                f"{out} holds something that is no analysis; choose another folder with --out, an analysis never "
                "overwrites other files."
            )
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}); choose another folder with --out."
        ) from error


def _is_ours(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("made_by") == MAKER


def write(study: Study, out: Path) -> tuple[str, ...]:
    """Numbers, figures and the page; what was left out and why, in words. An earlier analysis in `out` goes first."""
    shutil.rmtree(out / FIGURES, ignore_errors=True)
    for name in (REPORT, "numbers.csv", "numbers.parquet"):
        (out / name).unlink(missing_ok=True)
    table = study.to_frame()
    head, rows = headline(study)
    content = {
        "made_by": MAKER,
        "version": __version__,
        "settings": dict(study.settings),
        "models": [
            {"label": model.label, "about": model.about, "notes": model.notes} for model in study.models
        ],
        "findings": [
            {"rule": finding.rule, "text": finding.text, "numbers": _plain(finding.numbers)}
            for finding in study.findings
        ],
        "headline": [dict(zip(head, row, strict=True)) for row in rows],
        "table": table,
    }
    write_json(out / NUMBERS, content)
    with writing(out / "numbers.csv") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(table)
        lines.writerows(zip(*table.values(), strict=True))
    notes = () if _parquet(table, out / "numbers.parquet") else (NO_PARQUET,)
    _figures(study, out / FIGURES)
    with writing(out / REPORT) as file:
        file.write(page.render(study))
    return notes


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's own."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.item() if hasattr(value, "item") else value


def _parquet(table: dict[str, list[Any]], path: Path) -> bool:
    """Whether the table could be written: pyarrow is an extra."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        return False
    with replacing(path) as temporary:
        parquet.write_table(pa.table(table), temporary)
    return True


def _figures(study: Study, folder: Path) -> None:
    for figure in (
        figure for section in sections(study) for item in section.items for figure in item.figures
    ):
        drawn = plots.chart_figure(figure) if isinstance(figure, plots.Chart) else plots.sheet_figure(figure)
        plots.save(drawn, folder / f"{figure.name}.png")
        plots.save_svg(drawn, folder / f"{figure.name}.svg")
