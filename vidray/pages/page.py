"""From values to one HTML file. It has no script, and its content policy forbids every request."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from vidray import __version__
from vidray.pages.blocks import Bar, Code, Histogram, Page
from vidray.pages.words import count, seconds, short, visible


def render(page: Page) -> str:
    """The page as HTML. Every string in it is escaped, and shown without characters that act unseen."""
    css = resources.files("vidray.pages").joinpath("page.css").read_text()
    html: str = _template().render(page=page, css=css, version=__version__)
    return html.lstrip()


@functools.cache
def _template() -> Any:
    import jinja2
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vidray.pages", package_path=""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"short": short, "seconds": seconds, "count": count, "markup": Markup}
    environment.tests |= {
        "bar": lambda cell: isinstance(cell, Bar),
        "histogram": lambda cell: isinstance(cell, Histogram),
        "code": lambda cell: isinstance(cell, Code),
    }
    return environment.get_template("page.html.jinja")
