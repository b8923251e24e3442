"""Figures to files: PNG of bounded size, and SVG fragments that take the colours of the page around them."""

import io
import os
import re
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
