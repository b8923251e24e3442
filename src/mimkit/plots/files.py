"""Figures to files: PNG of bounded size, and SVG fragments that take the colours of the page around them."""

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from mimkit.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2328", "#656d76", "#d8dee4"
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY = "#e69f00", "#56b4e9"
DPI = 100
BYTES = 400_000  # a PNG above this is written again with 256 colours, dithered: about half the size


def save(figure: "Figure", path: str | Path) -> Path:
    """Write `figure` as a PNG, under a temporary name first; large photographs are reduced to 256 colours.

    Raises UserError when the file cannot be written.
    """
    path, data = Path(path), _png(figure)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"The picture {path} cannot be written ({error.strerror}); choose another place."
        ) from error
    return path


def save_svg(figure: "Figure", path: Path) -> Path:
    """Write `figure` as an SVG on white that needs nothing else; text stays text. Raises UserError as `save` does."""
    import matplotlib

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
            figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    except OSError as error:
        raise UserError(
            f"The picture {path} cannot be written ({error.strerror}); choose another place."
        ) from error
    return path


def _png(figure: "Figure") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    if buffer.tell() > BYTES:
        image = Image.open(buffer).convert("RGB")
        buffer = io.BytesIO()
        palette = image.quantize(256, method=Image.Quantize.FASTOCTREE)
        image = image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def svg(figure: "Figure", name: str) -> str:
    """`figure` as an inline SVG: ids begin with `name`, text stays text, ink and grid take the page's colours.

    The page defines the CSS variables --muted and --grid; the ink is its text colour.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for colour, variable in ((INK, "currentColor"), (MUTED, "var(--muted)"), (GRID, "var(--grid)")):
        text = text.replace(colour, variable)
    return text


def with_tips(text: str, name: str, tips: Mapping[str, Sequence[str]]) -> str:
    """An inline SVG made by `svg` under `name`, each mark of the groups in `tips` with its text as `data-tip`."""
    for gid, said in tips.items():
        left = iter(said)

        def mark(found: re.Match[str], left: Iterator[str] = left) -> str:
            return f'<{found[1]} data-tip="{escape(next(left), quote=True)}" '

        start = text.index(f'<g id="{name}-{gid}">')
        end = _end_of_group(text, start)
        parts = re.split(r"(<defs>.*?</defs>)", text[start:end], flags=re.DOTALL)
        parts = [p if p.startswith("<defs>") else re.sub(r"<(use|path) ", mark, p) for p in parts]
        text = text[:start] + "".join(parts) + text[end:]
    return text


def _end_of_group(text: str, start: int) -> int:
    """Where the group that opens at `start` is closed."""
    depth = 0
    for tag in re.compile(r"<g[ >]|</g>").finditer(text, start):
        depth += -1 if tag[0] == "</g>" else 1
        if depth == 0:
            return tag.end()
    raise ValueError("an SVG with an open group")
