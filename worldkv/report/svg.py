"""How every plot of the page is drawn: one style, inline SVG, the same bytes for the same run.

Text and axes take the page's own font and colour, so a plot is readable in a light and in a dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Stands for the page's text colour until the SVG is finished; no plot uses it for anything else.
INK = "#010203"
GIVEN_COLOUR = "#8A94A0"
# Keys are literals to matplotlib's types, which not every version has.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "worldkv",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": GIVEN_COLOUR,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "font.size": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 2,
}


@dataclass
class Sheet:
    """A figure to draw on, and what became of it."""

    figure: Figure
    svg: str = ""
    """The finished element, once the sheet is left."""


@contextmanager
def drawing(name: str, size_inches: tuple[float, float]) -> Iterator[Sheet]:
    """A sheet in the page's style; `name` is unique within the page."""
    with matplotlib.rc_context(STYLE):
        sheet = Sheet(Figure(figsize=size_inches, layout="constrained"))
        yield sheet
        sink = io.StringIO()
        # Not savefig, which draws everything a first time to no effect.
        canvas: Any = FigureCanvasSVG(sheet.figure)
        canvas.print_svg(sink, metadata={"Date": None, "Creator": None})
    sheet.svg = _inline(sink.getvalue(), name)


def _inline(document: str, name: str) -> str:
    """The <svg> element alone, its ids made unique within a page, its ink the page's text colour."""
    element = document[document.index("<svg") :].replace(INK, "currentColor")
    prefix = re.sub(r"\W+", "-", name)
    element = re.sub(r'\bid="', f'id="{prefix}-', element)
    element = re.sub(r"(href=\"#|url\(#)", rf"\g<1>{prefix}-", element)
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    # Plots grow and shrink with the page; the view box keeps their shape.
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", element, count=2)
