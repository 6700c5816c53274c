"""Charts as SVG, drawn by matplotlib. Their words stay text, and their colours are the page's, in dark and in light."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable
from typing import Any

_COLOURS = {"ink": "#010101", "soft": "#020202", "line": "#030303", "accent": "#040404", "other": "#050505"}
"""What matplotlib draws with, in place of the page's variables: colours that occur nowhere else."""
_VARIABLES = {"ink": "--ink", "soft": "--soft", "line": "--line", "accent": "--c0", "other": "--c1"}
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vidray",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": _COLOURS["ink"],
    "axes.labelcolor": _COLOURS["soft"],
    "axes.edgecolor": _COLOURS["soft"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _COLOURS["line"],
    "grid.linewidth": 0.7,
    "xtick.color": _COLOURS["soft"],
    "ytick.color": _COLOURS["soft"],
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
_numbers = itertools.count()


def colour(name: str) -> str:
    """What to draw with: ``ink``, ``soft``, ``line``, ``accent`` or ``other``."""
    return _COLOURS[name]


def chart(draw: Callable[[Any], None], *, size: tuple[float, float] = (4.4, 2.7)) -> str:
    """An ``<svg>`` element of what ``draw`` does to matplotlib's axes.

    Args:
        size: width and height, in inches of 72 units.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.rc_context(rc=_SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        figure.savefig(file, format="svg", transparent=True)
    return _for_page(file.getvalue(), prefix=f"chart-{next(_numbers)}-")


def _for_page(svg: str, *, prefix: str) -> str:
    """Without the head of a file and fixed sizes; ids are unique in the page."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}").replace('xlink:href="#', f'href="#{prefix}')
    for name, value in _COLOURS.items():
        svg = svg.replace(value, f"var({_VARIABLES[name]})")
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
